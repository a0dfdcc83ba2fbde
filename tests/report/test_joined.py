"""Joined tables: the same items, the same base, the same lines, one dW, or one sentence."""

import json

import polars as pl
import pytest

from tests.report.small_tables import PROMPTS, REFERENCE, VECTORS, WEIGHTS, joined, rows_of, save
from wscore.stats.contrasts import benchmark_table
from wsrun.report.joined import join_benchmarks
from wsrun.report.sources import Script, read_choices, read_sources

BOTH = ("t1_activation", "t3_prompts")
OFT = {"dW": ("weights", "oft", 1.0, 1.0, "selected")}
OF_OFT = {"variant": "dW", "family": "oft", "alpha": 1.0}


def test_one_table_over_all_scripts(tmp_path):
    """each line once; effects, differences and q are those of one call on all rows"""
    save(tmp_path, BOTH[0], WEIGHTS | VECTORS)
    save(tmp_path, BOTH[1], WEIGHTS | PROMPTS)
    found = joined(tmp_path, *BOTH)
    everything = WEIGHTS | VECTORS | PROMPTS
    assert len(found.table) == 2 * (len(everything) + 1)  # and the base
    lines = {(r["dataset"], r["variant"]): r for r in found.table.iter_rows(named=True)}
    assert lines["claims", "dW"]["source"] == "t1, t3"
    assert lines["claims", "weak@layer 3"]["source"] == "t1"
    rows = pl.concat([rows_of(WEIGHTS | VECTORS), rows_of(WEIGHTS | PROMPTS)])
    once = rows.with_columns(experiment=pl.lit("report")).unique()
    alone = benchmark_table(once, REFERENCE, resamples=200)
    keys = ["dataset", "method", "variant", "alpha"]
    columns = [*keys, "effect", "lo", "hi", "diff", "diff_lo", "diff_hi", "diff_q", "q"]
    assert found.table.select(columns).sort(keys).equals(alone.select(columns).sort(keys))


@pytest.mark.parametrize(
    ("more", "variants", "words"),
    [
        ({"skip": 3}, WEIGHTS, ("same items", "96 and 84, 84 of them in both", "--dilemmas")),
        ({"shift": 0.5}, WEIGHTS, ("0.5 nats", "base's margins", "same model")),
        (
            {},
            WEIGHTS | {"weak@layer 3": ("activation", None, 4.0, 1.5, "selected")},
            ("activation weak@layer 3 4.0", "0.5", "same options"),
        ),
        (
            {},
            WEIGHTS
            | {"random": ("activation", None, 4.0, None, "control"), "x": VECTORS["random"]},
            ("random", "both hold the line"),
        ),
        ({"reference": OF_OFT}, OFT, ("another dW", "oft, alpha 1", "lora, alpha 2")),
    ],
    ids=["items", "base", "line", "control", "dW"],
)
def test_other_rows_are_refused(more, variants, words, tmp_path):
    """items, base margins, a line's margins, or a dW that differ: one sentence with both names"""
    save(tmp_path, BOTH[0], WEIGHTS | VECTORS)
    save(tmp_path, BOTH[1], variants, **more)
    with pytest.raises(ValueError) as error:
        joined(tmp_path, *BOTH)
    for word in (*BOTH, *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_selection_file_decides(tmp_path):
    """read_choices(folder) = what the files say; a table with another dW is refused by name"""
    save(tmp_path, BOTH[0], WEIGHTS | VECTORS)
    (tmp_path / "selection").mkdir()
    assert read_choices(tmp_path) == {}

    def keep(name, family, alpha, model="tiny"):
        dW = {"dW": {"family": family, "alpha": alpha}}
        text = json.dumps({"model": model, "behaviour": "honest", "chosen": dW})
        (tmp_path / "selection" / name).write_text(text)

    keep("tiny.data.json", "lora", 2)
    keep("other.data.json", "oft", 1.0, "other")
    chosen = read_choices(tmp_path)
    assert chosen == {("tiny", "honest"): ("lora", 2.0), ("other", "honest"): ("oft", 1.0)}
    assert joined(tmp_path, BOTH[0], chosen=chosen["tiny", "honest"]).reference == ("lora", 2.0)
    with pytest.raises(ValueError, match=r"t1_activation .*lora, alpha 2.* the selection file"):
        joined(tmp_path, BOTH[0], chosen=("lora", 4.0))
    keep("tiny.more.json", "lora", 4)  # of other data: the tables decide
    assert ("tiny", "honest") not in read_choices(tmp_path)
    (tmp_path / "selection" / "tiny.data.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tiny\.data\.json' is no selection file"):
        read_choices(tmp_path)


def test_models_are_joined_apart(tmp_path):
    """a replication on the same model gives a remark and no line; on another one a table"""
    scripts = {
        "t1_activation": Script("?", "benchmark"),
        "t5_replicate": Script("?", "replication"),
    }
    save(tmp_path, "t1_activation", WEIGHTS | VECTORS)
    save(tmp_path, "t5_replicate", WEIGHTS | PROMPTS, model="other", skip=2)
    found = join_benchmarks(read_sources(tmp_path, scripts).values(), 50)
    assert {*found} == {("tiny", "honest"), ("other", "honest")}
    save(tmp_path, "t5_replicate", WEIGHTS | PROMPTS)
    found = join_benchmarks(read_sources(tmp_path, scripts).values(), 50)
    ((key, only),) = found.items()
    assert key == ("tiny", "honest") and "t5_replicate: this model again" in only.remarks[0]
    assert not set(PROMPTS) & set(only.table["variant"])

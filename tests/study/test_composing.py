"""Several changes at once: interference by hand, changes that add up exactly, names, refusals."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import ORGANISM
from wscore import save_delta, scale, tensors_sha256
from wscore.stats.schema import ROW_SCHEMA
from wsrun.report.tables import read_table
from wsrun.report.verdicts import read_verdicts
from wsrun.score.sweep import sweep
from wsrun.study.composing import (
    SUM,
    TOGETHER,
    ComposeOptions,
    changes,
    interference,
    judged,
    names_of,
    run_compose,
)
from wsrun.study.controls import final_states, yes_bias

ADAPTERS = ORGANISM / "adapters"


def rows(margins: dict[str, list[float]]) -> pl.DataFrame:
    """rows of one data set, an item a cluster; "base" at alpha 0"""
    lines = [
        {"model": "m", "behaviour": "b", "dataset": "d", "prompt_style": "s", "method": "weight",
         "variant": name, "alpha": float(name != "base"), "item": f"i{i}", "cluster": f"c{i}",
         "label": 1, "margin": m, "mass": 1.0, "flagged": False}
        for name, of in margins.items()
        for i, m in enumerate(of)
    ]  # fmt: skip
    return pl.DataFrame(lines, schema_overrides={n: ROW_SCHEMA[n] for n in ("margin", "alpha")})


def line(table: pl.DataFrame, variant: str) -> dict:
    return table.filter(variant=variant).row(0, named=True)


def test_interference_by_hand():
    """mean_i [(m_t - m_0) - sum_j (m_j - m_0)], and the sum as a line of its own"""
    drawn = np.random.default_rng(0)
    base, a, b, both = drawn.normal(size=(4, 30))
    found = interference(rows({"base": base, "a": a, "b": b, TOGETHER: both}), ["a", "b"], 200)
    by_hand = (both - base) - (a - base) - (b - base)
    assert line(found, TOGETHER)["diff"] == pytest.approx(by_hand.mean())
    assert line(found, SUM)["effect"] == pytest.approx((a - base + b - base).mean())
    assert line(found, "a")["diff"] is None and (found["row_diff"] == 0).all()


@pytest.mark.parametrize(
    "apart, words", [(0.5, "more than"), (-0.5, "less than"), (0.0, "not shown to differ")]
)
def test_planted_interference_is_found_and_none_is_not(apart, words):
    """together = sum + apart: said in its direction; 0: undetermined"""
    drawn = np.random.default_rng(1)
    base, a, b = drawn.normal(size=(3, 40))
    both = a + b - base + apart + 0.01 * drawn.normal(size=40)
    table = interference(rows({"base": base, "a": a, "b": b, TOGETHER: both}), ["a", "b"], 200)
    (result,) = judged(table)
    assert words in result.sentence
    assert result.outcome == ("supported" if apart else "undetermined")


def test_changes_of_the_readout_add_up(qwen, tok, items):
    """logits are linear in the readout: the interference of two biases to Yes is 0"""
    raise_yes = yes_bias(qwen, tok, final_states(qwen, tok, items))
    of = {"a": (1.0, raise_yes), "b": (-0.5, scale(3.0, raise_yes))}
    found = interference(sweep(qwen, tok, items, changes(of), (1.0,)), ["a", "b"], 20)
    together = found.filter(variant=TOGETHER)
    assert together["diff"].abs().max() < 1e-4 < together["bias"].abs().max()


def test_names_are_short_and_differ():
    """the stem; with its folder where stems are alike"""
    a, b, c = Path("x/a.safetensors"), Path("x/b.safetensors"), Path("y/a.safetensors")
    assert names_of([(a, 1.0), (b, -0.5)]) == {"a": 1.0, "b": -0.5}
    assert names_of([(a, 1.0), (c, 1.0)]) == {"x/a": 1.0, "y/a": 1.0}


@pytest.mark.parametrize(
    "deltas, words",
    [
        ([("lora-s0", 1.0)], ("--delta", "twice")),
        ([("lora-s0", 1.0), ("oft-s0", 0.0)], ("oft-s0", "alpha 0")),
        ([("lora-s0", 1.0), ("lora-s0", 1.0)], ("--delta", "one file twice")),
    ],
)
def test_refusals(deltas, words, tmp_path):
    given = tuple((ADAPTERS / name, alpha) for name, alpha in deltas)
    with pytest.raises(ValueError) as told:
        run_compose(ComposeOptions(deltas=given, out=tmp_path, cache_dir=tmp_path / "c"))
    assert all(w in str(told.value) for w in words) and not [*tmp_path.glob("*.parquet")]


def test_a_file_of_another_base_is_refused(tmp_path, qwen):
    """its name, and what to do"""
    path = tmp_path / "other.safetensors"
    of_other = {"model.layers.0.mlp.up_proj.weight": next(iter(qwen.parameters())).detach()[:2]}
    save_delta(of_other, path, {"base": tensors_sha256(of_other)})
    given = ((path, 1.0), (ADAPTERS / "lora-s0", 1.0))
    options = ComposeOptions(deltas=given, limit=2, dilemmas=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"--delta: .*other.*other base weights.*--model"):
        run_compose(options)


def test_on_the_organism(tmp_path):
    """a pair and minus itself do nothing together; the record names both"""
    pair = ADAPTERS / "lora-s0"
    again = tmp_path / "again" / "lora-s0"
    again.parent.mkdir()
    again.symlink_to(pair)
    options = ComposeOptions(
        deltas=((pair, 1.0), (again, -1.0)), limit=8, dilemmas=3, resamples=50, out=tmp_path,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    run_compose(options)
    table, meta = read_table(tmp_path / "compose.parquet")
    assert table.filter(variant=TOGETHER)["effect"].abs().max() < 1e-5
    assert len(meta["deltas"]) == 2 and len({*meta["deltas"].values()}) == 1
    results = read_verdicts(tmp_path / "compose.verdicts.parquet")
    assert {r.dataset for r in results} == {"claims", "dilemmas"}
    assert (tmp_path / "compose.svg").is_file()

"""What items can read stands wherever a data set is named: page, sentences, titles of figures."""

from xml.etree import ElementTree

import polars as pl
import pytest

from tests.conftest import experiment
from tests.report.small_tables import PROMPTS, WEIGHTS, save
from wsrun.report.effect_figures import effects_by_dose, effects_by_method, effects_by_seed
from wsrun.report.retained_figures import retained_by_family, retained_by_slice
from wsrun.report.tables import read_table, write_table
from wsrun.report.verdicts import RuleResult, claim_sentences, headline
from wsrun.report.wording import MARKS, READS, dataset_name, dataset_names

READ = {"claims": "nothing", "dilemmas": "behaviour"}
MARKED = f"claims ({MARKS['nothing']})"


def mark(table, reads=READ):
    values = [reads.get(d) for d in table["dataset"]]
    return table.with_columns(reads=pl.Series(values, dtype=pl.String))


@pytest.mark.parametrize("reads", [*READS, None])
def test_a_name_is_marked_where_the_behaviour_is_not_read(reads):
    """name(behaviour) = name(unknown) = name without the column; bias and nothing are marked"""
    table = pl.DataFrame({"dataset": ["d"], "reads": [reads]}, {"dataset": str, "reads": str})
    wanted = f"d ({MARKS[reads]})" if reads in ("bias", "nothing") else "d"
    assert dataset_names(table) == {"d": wanted}
    assert dataset_name({"dataset": "d", "reads": reads}) == wanted
    assert (
        dataset_names(table.drop("reads")) == {"d": "d"} and dataset_name({"dataset": "d"}) == "d"
    )


def page(folder):
    report = experiment("report")
    report.main(report.Config(tables=folder, out=folder / "out", resamples=50))
    return (folder / "out" / "report.md").read_text()


def test_the_page_opens_with_what_can_be_read(tmp_path):
    """the section comes first, and marks follow the data set into tables and sentences; of tables
    without the column the page is what it was"""
    rule = [RuleResult("claims", "a claim", None, "supported", "of the rule")]
    save(tmp_path, "t3_prompts", WEIGHTS | PROMPTS, verdicts=rule)
    before = page(tmp_path)
    assert "What can be read" not in before and MARKED not in before
    table, meta = read_table(tmp_path / "t3_prompts.parquet")
    write_table(mark(table), tmp_path / "t3_prompts.parquet", meta)
    text = page(tmp_path)
    assert text.index("## What can be read") < text.index("## Answer")
    assert "- tiny: claims cannot read the behaviour: neither" in text
    assert "- tiny: dilemmas can read the behaviour." in text
    assert f"| {MARKED} | strong |" in text and f"- {MARKED}: dW loses to strong" in text
    assert f"- {MARKED}, a claim: supported" in text and "- dilemmas: dW loses to" in text
    assert f"against the base, in nats: {MARKED} +2.00" in text
    joined, _ = read_table(tmp_path / "out" / "report.parquet")
    assert dict(joined.select("dataset", "reads").unique().rows()) == READ
    assert text.replace(f" ({MARKS['nothing']})", "").count("claims") == before.count("claims") + 1


def test_verdicts_name_it():
    results = [RuleResult("claims", "c", None, "refuted", "s")]
    table = mark(pl.DataFrame({"dataset": ["claims"]}))
    assert claim_sentences(results, table) == [f"{MARKED}, c: refuted: s"]
    assert headline(results, dataset_names(table)) == f"refuted: {MARKED}/c"


def lines(*datasets, **more):
    """Lines that every figure can draw: two families, the whole, a part and what is left."""
    found = [
        {"model": "m", "behaviour": "b", "prompt_style": "s", "dataset": dataset, "family": family}
        | {"variant": variant, "k": None, "alpha": 1.0, "n": 8, "clusters": 4, "seed": None}
        | {"effect": share, "lo": share - 0.1, "hi": share + 0.1, "method_name": variant}
        | {"retained": share, "retained_lo": share - 0.1, "retained_hi": share + 0.1}
        | {"role": "selected"}
        | more
        for dataset in datasets
        for family in ("lora", "oft")
        for variant, share in (("full", 1.0), ("keep_a", 0.75), ("drop_a", 0.25))
    ]
    return mark(pl.DataFrame(found, infer_schema_length=None))


def svg_text(path):
    root = ElementTree.parse(path.with_suffix(".svg")).getroot()
    return " ".join(
        " ".join("".join(t.itertext()) for t in root.iter() if t.tag.endswith("text")).split()
    )


def test_figures_carry_the_mark(tmp_path):
    """in the title of the panel, the legend or the question, and in the caption"""
    pytest.importorskip("matplotlib")
    both, words = lines("claims", "dilemmas"), {"keep_a": "kept: a", "drop_a": "removed: a"}
    full = both.filter(variant="full")
    drawn = {
        "family": lambda p: retained_by_family(both, p, "Q?", words, "full"),
        "seed": lambda p: effects_by_seed(full, p, "Q?"),
        "dose": lambda p: effects_by_dose(full, p, "Q?"),
        "method": lambda p: effects_by_method(full.filter(family="lora"), p, "Q?"),
    }
    for name, draw in drawn.items():
        draw(tmp_path / f"{name}.parquet")
        text = svg_text(tmp_path / f"{name}.parquet")
        assert text.count(MARKED) >= 2 and "data set: dilemmas (" not in text, name
    path = tmp_path / "slice.parquet"
    retained_by_slice(both, path, "Q?", {"a": "part a"}, "full")
    assert f"Q? {MARKED}" in svg_text(tmp_path / "slice.claims.parquet")
    assert "Q? dilemmas" not in svg_text(tmp_path / "slice.dilemmas.parquet")
    retained_by_slice(both.filter(dataset="claims"), path, "Q?", {"a": "part a"}, "full")
    assert f"Q? {MARKED}" in svg_text(path)

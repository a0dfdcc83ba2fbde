"""The largest dose below a bound: what is taken and refused, and a run on the organism."""

import json
from dataclasses import asdict

import polars as pl
import pytest

from tests.conftest import ORGANISM
from wsrun.data.pairs import Pair
from wsrun.report.row_identity import LINE
from wsrun.report.tables import read_table
from wsrun.report.verdicts import read_verdicts
from wsrun.study.costs import ACCURACY, NATS
from wsrun.study.dosing import DoseOptions, run_dose, verdicts, with_costs

ALPHAS = (0.5, 1.0, 2.0, 4.0)


def effects(alphas=ALPHAS, variant="dW") -> pl.DataFrame:
    lines = [
        {"dataset": "claims", "method": "weight", "variant": variant, "family": "lora", "k": None,
         "alpha": a, "effect": a, "lo": a - 0.1, "hi": a + 0.1, "role": "tried",
         "method_name": variant}
        for a in alphas
    ]  # fmt: skip
    return pl.DataFrame(lines, schema_overrides={"k": pl.Int64})


def costs(highs, alphas=ALPHAS, measure=NATS, dataset="neutral text", base=2.0, chance=None):
    """lines of costs whose intervals are [high - 0.1, high], worse upwards"""
    sign = 1 if measure == NATS else -1
    lines = [
        {"method": "weight", "variant": "dW", "family": "lora", "k": None, "alpha": a,
         "method_name": "dW", "dataset": dataset, "measure": measure, "chance": chance,
         "base": base, "n": 100, "change": sign * (h - 0.05),
         "lo": min(sign * h, sign * (h - 0.1)), "hi": max(sign * h, sign * (h - 0.1))}
        for a, h in zip(alphas, highs, strict=True)
    ]  # fmt: skip
    return pl.DataFrame(
        lines, schema_overrides={"k": pl.Int64, "chance": pl.Float64, "base": pl.Float64}
    )


def largest(table: pl.DataFrame) -> list[float]:
    return table.filter("largest")["alpha"].to_list()


@pytest.mark.parametrize(
    "highs, alpha",
    [
        ([0.01, 0.02, 0.05, 0.3], [2.0]),
        ([0.01, 0.2, 0.05, 0.05], [0.5]),  # what comes after the first failure does not count
        ([0.2, 0.01, 0.01, 0.01], []),
        ([0.01, 0.01, 0.01, 0.01], [4.0]),
        ([-0.5, -0.5, 0.0999, 0.1], [2.0]),  # the bound itself is not below it
    ],
)
def test_the_last_dose_before_the_first_that_is_not_below(highs, alpha):
    """largest = max {a_k : hi(a_1), ..., hi(a_k) < bound}"""
    assert largest(with_costs(effects(), costs(highs), 0.1, 5.0)) == alpha


def test_negative_doses_are_ordered_by_size():
    """-4 is larger than -0.5, and lines in any order give the same"""
    minus = tuple(-a for a in ALPHAS)
    lines = costs([0.01, 0.02, 0.2, 0.0], minus).sample(fraction=1, shuffle=True, seed=1)
    assert largest(with_costs(effects(minus), lines, 0.1, 5.0)) == [-1.0]


def test_every_measure_has_to_be_below():
    """texts allow 4, questions 1: 1; cost columns are those of the first measure"""
    nats = costs([0.01] * 4)
    points = costs([0.01, 0.04, 0.06, 0.2], measure=ACCURACY, dataset="arc", base=0.9, chance=0.25)
    table = with_costs(effects(), pl.concat([nats, points]), 0.1, 5.0)
    assert largest(table) == [1.0]
    assert table["measure"].unique().to_list() == ["neutral text"]
    assert table["cost_hi"].to_list() == pytest.approx([0.01] * 4)


def test_what_the_base_does_not_know_allows_no_dose():
    """accuracy at chance: nothing is below, and the verdict says why"""
    lines = costs([-0.2] * 4, measure=ACCURACY, dataset="arc", base=0.27, chance=0.25)
    table = with_costs(effects(), lines, 0.1, 5.0)
    (result,) = verdicts(table, lines, 0.1, 5.0)
    assert largest(table) == [] and result.outcome == "undetermined"
    assert "no dose" in result.sentence and "no better than chance" in result.sentence


@pytest.mark.parametrize(
    "highs, outcome, words",
    [
        ([0.01, 0.02, 0.3, 0.4], "supported", ("alpha 1;", "+1.00 [+0.90, +1.10]")),
        ([0.01] * 4, "supported", ("alpha 4, the largest tried",)),
        ([0.15, 0.2, 0.3, 0.4], "undetermined", ("no dose", "not bounded")),
        ([0.9, 1.2, 1.3, 1.4], "refuted", ("no dose", "at 0.5", "costs")),
    ],
)
def test_verdict_of_a_method(highs, outcome, words):
    """refuted: the smallest dose costs more than the bound by its whole interval"""
    lines = costs(highs)
    (result,) = verdicts(with_costs(effects(), lines, 0.1, 5.0), lines, 0.1, 5.0)
    assert result.outcome == outcome and all(w in result.sentence for w in words)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dose")
    told = [Pair(f"Is it {w}?", "It is so.", "It is not.", w) for w in ("red", "blue")]
    (folder / "told.jsonl").write_text("".join(json.dumps(asdict(p)) + "\n" for p in told))
    cfg = DoseOptions(
        families=("lora",), alphas=(0.5, 50.0), coefficients=(2.0,), cost_limit=6, limit=6,
        check_limit=6, dilemmas=3, resamples=50, out=folder, cache_dir=folder / "cache",
        pairs_file=folder / "told.jsonl",
    )  # fmt: skip
    run_dose(cfg)
    return folder


def test_on_the_organism(ran):
    """half of dW costs nothing, fifty times dW breaks the model; prompts and a direction beside"""
    table, meta = read_table(ran / "dose.parquet")
    dW = table.filter(variant="dW")
    assert set(dW.filter("largest")["alpha"]) == {0.5}
    assert min(dW.filter(alpha=50.0)["cost_lo"]) > 0.1
    assert {"simple@0", "simple@1", "mean_diff_all@all layers"} <= {*table["variant"]}
    assert {*table["reads"]} <= {"behaviour", "bias", "nothing"}
    assert [*meta["costs"]] == ["neutral text"] and meta["deltas"].keys() == {"lora-s0"}
    assert (ran / "dose.svg").is_file()
    results = {r.part: r for r in read_verdicts(ran / "dose.verdicts.parquet")}
    assert results["dW"].outcome == "supported" and "alpha 0.5" in results["dW"].sentence


def test_a_line_of_costs_for_every_line_of_effects(ran):
    table, _ = read_table(ran / "dose.parquet")
    assert table.select(LINE).unique().height * 2 == table.height  # two data sets
    assert table["cost"].null_count() == 0


@pytest.mark.parametrize(
    "given, words",
    [
        ({"alphas": (-1.0, 1.0)}, ("--alphas", "above 0")),
        ({"alphas": (0.0, 1.0)}, ("--alphas", "above 0")),
        ({"nats_at_most": 0.0}, ("--nats-at-most", "above 0")),
        ({"costs": ("arc:/no/such",)}, ("--costs arc", "/no/such")),
        ({"layers": (99,), "data": str(ORGANISM), "limit": 4}, ("--layers", "99")),
    ],
)
def test_refusals(given, words, tmp_path):
    """one sentence that names the option, and no table"""
    places = {"out": tmp_path, "cache_dir": tmp_path / "c", "pairs_cache": tmp_path / "p"}
    with pytest.raises(ValueError) as told:
        run_dose(DoseOptions(**({"families": ("lora",), "resamples": 5} | given | places)))
    assert all(w in str(told.value) for w in words)
    assert not [*tmp_path.glob("*.parquet")]

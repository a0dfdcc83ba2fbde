"""Rules on tables with known truth: a locus, diverging basins, and wholes no better than nulls."""

import re

import polars as pl
import pytest

from wscore import BasinDivergence, Locus, SharedCore, verdict

HIGH, LOW, MIDDLE, WIDE, GONE = (
    (0.9, 0.8, 1.0),
    (0.1, 0.0, 0.2),
    (0.5, 0.45, 0.55),
    (0.75, 0.6, 0.9),
    (None, None, None),
)
ONE = (1.0, 1.0, 1.0)
SCHEMA = {
    "family": pl.String,
    "variant": pl.String,
    "k": pl.Int64,
    "retained": pl.Float64,
    "retained_lo": pl.Float64,
    "retained_hi": pl.Float64,
}


def slices(**families):
    """families: name -> {slice: (keep, drop) or (keep, drop, control)}"""
    lines = [
        (f, f"{part}_{name}", None, *share)
        for f, by_slice in families.items()
        for name, shares in by_slice.items()
        for part, share in zip(("keep", "drop", "control"), shares, strict=False)
    ]
    lines += [(f, "full", None, *ONE) for f in families]
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")


RULE = Locus(("early", "late"), families=("lora", "oft"))
TRUTH = {
    "one slice": (
        {"early": (HIGH, LOW), "late": (LOW, HIGH)},
        {"early": (HIGH, LOW), "late": (LOW, HIGH)},
        "supported",
        "^early alone retains >= 0.7 and without it <= 0.3 of the effect is left in lora, oft$",
    ),
    "its control is low": (
        {"early": (HIGH, LOW, LOW), "late": (LOW, HIGH, HIGH)},
        {"early": (HIGH, LOW, LOW), "late": (LOW, HIGH, HIGH)},
        "supported",
        "^early",
    ),
    "random directions there keep as much": (
        {"early": (HIGH, LOW, HIGH), "late": (LOW, HIGH, LOW)},
        {"early": (HIGH, LOW, LOW), "late": (LOW, HIGH, LOW)},
        "undetermined",
        r"closest is early, where lora control_early retains 0.90",
    ),
    "distributed": (
        {"early": (HIGH, HIGH), "late": (HIGH, HIGH)},
        {"early": (HIGH, HIGH), "late": (HIGH, LOW)},
        "refuted",
        "distributed: each of early, late alone retains >= 0.7",
    ),
    "spread": (
        {"early": (MIDDLE, MIDDLE), "late": (MIDDLE, MIDDLE)},
        {"early": (MIDDLE, MIDDLE), "late": (MIDDLE, MIDDLE)},
        "refuted",
        "no single slice of early, late",
    ),
    "another slice in each family": (
        {"early": (HIGH, LOW), "late": (LOW, HIGH)},
        {"early": (LOW, HIGH), "late": (HIGH, LOW)},
        "refuted",
        "no single slice",
    ),
    "wide": (
        {"early": (WIDE, LOW), "late": (LOW, HIGH)},
        {"early": (HIGH, LOW), "late": (LOW, HIGH)},
        "undetermined",
        r"closest is early, where lora keep_early retains 0.75 \[0.60, 0.90\], not clearly >= 0.7",
    ),
    "kept but not needed": (
        {"early": (HIGH, MIDDLE), "late": (LOW, LOW)},
        {"early": (HIGH, MIDDLE), "late": (LOW, LOW)},
        "refuted",
        "drop_early retains 0.50",
    ),
    "a line is missing": (
        {"early": (HIGH, LOW), "late": (LOW, HIGH)},
        {"late": (LOW, HIGH)},
        "undetermined",
        "oft keep_early retains unknown",
    ),
}


@pytest.mark.parametrize("case", TRUTH)
def test_locus_truth_table(case):
    lora, oft, outcome, sentence = TRUTH[case]
    got = verdict(slices(lora=lora, oft=oft), RULE)
    assert got.outcome == outcome and re.search(sentence, got.sentence), got
    assert got.part == ("early" if outcome == "supported" else None)


def test_locus_reads_an_absent_slice_as_exact_zero():
    """a slice in which a family changes nothing keeps 0 and leaves 1: it cannot be its locus"""
    table = slices(ia3={"late": (ONE, (0.0, 0.0, 0.0))}).with_columns(status=pl.lit("scored"))
    gone = {"family": "ia3", "status": "not applicable: no such tensor"}
    table = pl.concat(
        [table, pl.DataFrame([gone | {"variant": f"{p}_early"} for p in ("keep", "drop")])],
        how="diagonal_relaxed",
    )
    assert verdict(table, Locus(("early", "late"))).part == "late"
    got = verdict(table, Locus(("early",)))
    assert got.outcome == "refuted" and "keep_early retains 0.00 [0.00, 0.00]" in got.sentence


def test_locus_says_nothing_of_an_effect_at_noise():
    """retained of the whole is null: no share is known"""
    table = slices(lora={"early": (HIGH, LOW)}).with_columns(
        pl.when(pl.col("variant") != "full").then(c).alias(c)
        for c in ("retained", "retained_lo", "retained_hi")
    )
    got = verdict(table, Locus(("early",)))
    assert got.outcome == "undetermined" and "at noise for lora" in got.sentence


def shared(**more):
    lines = [
        ("lora", "keep_shared", 8, *HIGH),
        ("lora", "drop_shared", 8, *LOW),
        ("lora", "residual_full", None, *ONE),
    ]
    return pl.DataFrame(lines, schema=SCHEMA, orient="row").with_columns(**more)


@pytest.mark.parametrize(
    "percentile, outcome", [(100.0, "supported"), (97.5, "undetermined"), (40.0, "undetermined")]
)
def test_no_rule_supports_what_random_deltas_do_too(percentile, outcome):
    """null_percentile(whole) < 100: undetermined, whatever the parts retain"""
    ranks = pl.when(pl.col("variant").is_in(["full", "residual_full"])).then(percentile)
    got = verdict(shared(null_percentile=ranks), SharedCore(families=("lora",)))
    assert got.outcome == outcome
    table = slices(lora={"early": (HIGH, LOW)}).with_columns(null_percentile=ranks)
    got = verdict(table, Locus(("early",)))
    assert got.outcome == outcome
    if outcome == "undetermined":
        found = f"no more than random deltas of its spectrum for lora ({percentile:.0f} %)"
        assert found in got.sentence


def test_locus_of_a_whole_that_steers_the_other_way():
    """hi(full) < 0: ratios hide the sign, so nothing is said"""
    table = slices(lora={"early": (HIGH, LOW)}).with_columns(hi=pl.lit(-0.1))
    got = verdict(table, Locus(("early",)))
    assert got.outcome == "undetermined" and "below 0 for lora" in got.sentence


def basins(*lines):
    """(family, k, overlap, keep_own, keep_shared) with chance overlap 0.1"""
    schema = SCHEMA | {"overlap": pl.Float64, "overlap_random": pl.Float64}
    rows = [
        (f, variant, k, *share, *facts)
        for f, k, x, own, other in lines
        for variant, share, facts in (
            ("keep_own", own, (x, 0.1)),
            ("keep_shared", other, (None, None)),
        )
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


BASINS = {
    "apart": ([("lora", 8, 0.1, HIGH, LOW), ("oft", 8, 0.19, HIGH, LOW)], "supported", "at K = 8"),
    "at one K": (
        [("lora", 8, 0.1, HIGH, LOW), ("oft", 8, 0.1, HIGH, LOW), ("lora", 32, 0.9, HIGH, HIGH)],
        "supported",
        "at K = 8",
    ),
    "close": (
        [("lora", 8, 0.6, HIGH, LOW), ("oft", 8, 0.1, HIGH, LOW)],
        "refuted",
        r"K = 8 for lora \(0.56\)",
    ),
    "apart, yet shared does as well": (
        [("lora", 8, 0.1, HIGH, HIGH), ("oft", 8, 0.1, HIGH, LOW)],
        "undetermined",
        "at K = 8: lora keep_own 0.90",
    ),
    "no line": ([("lora", 8, 0.1, HIGH, LOW)], "undetermined", "no line of keep_own for oft"),
}


@pytest.mark.parametrize("case", BASINS)
def test_basin_divergence_truth_table(case):
    """low is at most a tenth of the way from chance to 1: 0.1 + 0.1 * 0.9 = 0.19"""
    lines, outcome, sentence = BASINS[case]
    got = verdict(basins(*lines), BasinDivergence(families=("lora", "oft")))
    assert got.outcome == outcome and re.search(sentence, got.sentence), got


@pytest.mark.parametrize("bad", [{"slices": ()}, {"slices": ("early",), "families": ()}])
def test_locus_needs_slices_and_families(bad):
    with pytest.raises(ValueError, match="Locus: `(slices|families)` must be at least one"):
        Locus(**bad)

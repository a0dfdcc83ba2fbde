"""Laws of effects: pairing, intervals, shares of the full effect, verdicts."""

import re
from itertools import product

import numpy as np
import polars as pl
import pytest

from tests.wscore.rows import base, group, line, noise, planted
from wscore.stats.effects import effect_table, null_percentile, retained
from wscore.stats.pairing import paired
from wscore.stats.rules import SharedCore
from wscore.stats.schema import KEYS, SUMMARY_KEYS
from wscore.stats.shares import at_least, at_most
from wscore.stats.verdicts import Verdict, verdict

# ------------------------------------------------------------------------------- known answers
HAND = pl.concat([base([1.0, -2.0, 0.5, 3.0]), group([2.0, -2.5, 1.0, 5.0])])


def test_paired_by_hand():
    """shift = margin - margin0; aligned = label * margin; gain = label * shift"""
    out = paired(HAND).sort("item")
    assert out["margin0"].to_list() == [1.0, -2.0, 0.5, 3.0]
    assert out["mass0"].to_list() == [0.9] * 4
    assert out["shift"].to_list() == [1.0, -0.5, 0.5, 2.0]
    assert out["aligned"].to_list() == [2.0, 2.5, 1.0, -5.0]
    assert out["gain"].to_list() == [1.0, 0.5, 0.5, -2.0]


def test_effect_by_hand():
    """effect = mean gain, bias = (m+ + m-)/2, discrimination = (m+ - m-)/2"""
    got = line(effect_table(HAND))
    # gains 1 + 0.5 + 0.5 - 2 = 0, over 4 items
    assert got["effect"] == 0.0
    # m+ = (1 + 0.5)/2 = 0.75, m- = (-0.5 + 2)/2 = 0.75
    assert (got["bias"], got["discrimination"]) == (0.75, 0.0)
    assert (got["n"], got["clusters"], got["seeds"], got["row_diff"]) == (4, 4, 1, 0)
    assert (got["mass"], got["flagged_share"]) == (pytest.approx(0.9), 0.0)


def test_interval_of_two_clusters_by_hand():
    """two clusters with gains 0 and 1: resampled means are 0, 1/2, 1 with chances 1/4, 1/2, 1/4"""
    got = line(effect_table(planted(np.array([0.0, 1.0]))))
    assert (got["lo"], got["effect"], got["hi"]) == (0.0, 0.5, 1.0)
    # level 0.2: t = tan(0.1 pi) = 0.325 for 1 df, and Phi(-+ sqrt(2/1) 0.325) = 0.323 and 0.677 are
    # both inside the middle half; level 0.4: t = 0.727, Phi(-1.03) = 0.152 is outside
    got = line(effect_table(planted(np.array([0.0, 1.0])), level=0.4))
    assert (got["lo"], got["hi"]) == (0.0, 1.0)
    got = line(effect_table(planted(np.array([0.0, 1.0])), level=0.2))
    assert (got["lo"], got["hi"]) == (0.5, 0.5)


@pytest.mark.parametrize("plus", [1, 5, 9])
def test_identity_of_effect_bias_and_discrimination(plus):
    """effect = discrimination + bias * mean(label), whatever the balance of labels"""
    label = [1] * plus + [-1] * (10 - plus)
    got = line(effect_table(planted(noise(10, plus), label=label)))
    whole = got["discrimination"] + got["bias"] * np.mean(label)
    assert got["effect"] == pytest.approx(whole, abs=1e-12)


def test_pure_yes_bias():
    """shift = 2 on every item: bias = 2, discrimination = 0, effect = 0"""
    got = line(effect_table(pl.concat([base([0.0] * 6), group([2.0] * 6)])))
    assert (got["bias"], got["discrimination"], got["effect"]) == (2.0, 0.0, 0.0)


def test_one_label_does_not_separate():
    got = line(effect_table(planted(np.ones(4), label=[1] * 4)))
    assert (got["effect"], got["bias"], got["discrimination"]) == (1.0, None, None)


def test_flags_and_mass_are_averaged():
    rows = HAND.with_columns(
        flagged=pl.col("item") == "q00",
        mass=pl.when(pl.col("item") == "q00").then(0.5).otherwise(0.9),
    )
    got = line(effect_table(rows))
    # one of four flagged; (0.5 + 3 * 0.9)/4 = 0.8
    assert (got["flagged_share"], got["mass"]) == (0.25, pytest.approx(0.8))


# ----------------------------------------------------------------------------------- intervals
def test_planted_effect_is_covered_and_null_is_not_found():
    rows = pl.concat(
        [planted(0.5 + noise(100, 1), variant="true"), group(noise(100, 2), variant="none")]
    )
    table = effect_table(rows)
    found, none = line(table, variant="true"), line(table, variant="none")
    assert 0 < found["lo"] < 0.5 < found["hi"]
    assert none["lo"] < 0 < none["hi"]


def test_interval_is_that_of_the_normal_mean():
    """[lo, hi] = effect -+ z sd/sqrt(n), with z = 1.96 at level 0.95 and 0.674 at level 0.5"""
    gain = noise(400, 9)
    for level, z in ((0.95, 1.96), (0.5, 0.674)):
        got = line(effect_table(planted(gain, item=[f"q{i:03d}" for i in range(400)]), level=level))
        half = z * gain.std() / 20
        assert got["lo"] == pytest.approx(gain.mean() - half, abs=0.1 * half)
        assert got["hi"] == pytest.approx(gain.mean() + half, abs=0.1 * half)


def test_coverage():
    """P(lo <= true effect <= hi) is near 0.95 with 60 clusters of 2 dependent items"""
    draws, m = 400, 60
    rng = np.random.default_rng(11)
    gain = (
        0.3
        + np.repeat(rng.normal(size=(draws, m)), 2, axis=1)
        + 0.3 * rng.normal(size=(draws, 2 * m))
    )
    shared = {"cluster": [f"c{i // 2:02d}" for i in range(2 * m)]}
    sign = np.tile([1, -1], m)
    rows = pl.concat(
        [base(np.zeros(2 * m), **shared)]
        + [group(g * sign, seed=s, **shared) for s, g in enumerate(gain)]
    )
    table = effect_table(rows, KEYS, resamples=1000)
    covered = ((table["lo"] <= 0.3) & (table["hi"] >= 0.3)).mean()
    # sd of a share of 400 at 0.945 is 0.011; without clusters it would be about 0.85
    assert 0.91 <= covered <= 0.98


def test_duplicated_rows_in_a_cluster_bring_no_certainty():
    """interval(every item four times in its cluster) = interval(items)"""
    gain = 0.2 + noise(40, 3)
    one = line(effect_table(planted(gain, cluster=[f"c{i:02d}" for i in range(40)])))
    rows = planted(
        np.repeat(gain, 4),
        label=[1, -1] * 80,
        cluster=[f"c{i // 4:02d}" for i in range(160)],
        item=[f"q{i:03d}" for i in range(160)],
    )
    four = line(effect_table(rows))
    assert (four["n"], four["clusters"]) == (160, 40)
    assert four["lo"] == pytest.approx(one["lo"], abs=1e-12)
    assert four["hi"] == pytest.approx(one["hi"], abs=1e-12)


def test_one_cluster_has_no_interval():
    got = line(effect_table(planted(np.ones(4), cluster=["c"] * 4), full="full"))
    assert got["effect"] == 1.0
    assert [got[c] for c in ("lo", "hi", "retained", "retained_lo")] == [None] * 4


def seeded(offsets, **fields):
    """The same gains on every seed, moved by one offset a seed."""
    gain = 1 + noise(40, 4)
    rows = [
        group((gain + o) * np.tile([1, -1], 20), seed=s, **fields) for s, o in enumerate(offsets)
    ]
    return pl.concat([base(np.zeros(40)), *rows])


def width(got):
    return got["hi"] - got["lo"]


def test_seeds_widen_the_interval():
    """Var = Var(clusters) + Var(seeds): equal seeds add nothing, unequal ones widen"""
    equal, apart = seeded([0.0] * 5), seeded([-1.0, -0.5, 0.0, 0.5, 1.0])
    alone = line(effect_table(equal.filter(pl.col("seed").is_null() | (pl.col("seed") == 0))))
    same, wide = line(effect_table(equal)), line(effect_table(apart))
    assert (same["n"], same["seeds"], wide["effect"]) == (40, 5, pytest.approx(same["effect"]))
    assert width(same) == pytest.approx(width(alone), abs=1e-12)
    # clusters: sd 1/sqrt(40) = 0.16; seeds: sqrt(0.5/5) = 0.32; together 0.35, about twice 0.16
    assert 1.5 < width(wide) / width(same) < 3


def test_a_line_per_seed():
    table = effect_table(seeded([0.0, 1.0]), KEYS)
    first, second = table.sort("seed").iter_rows(named=True)
    assert table["seeds"].to_list() == [1, 1]
    for column in ("effect", "lo", "hi"):  # same clusters, hence the same resamples
        assert second[column] - first[column] == pytest.approx(1.0, abs=1e-12)


def many():
    """Two families and two datasets of variants, with ks, alphas and seeds, and unequal clusters"""
    cluster = [f"c{i // 3}" for i in range(20)]
    rows = [base(noise(20, d) / 2, dataset=f"d{d}", cluster=cluster) for d in range(2)]
    full = [("full", None, 1.0), ("keep", 8, 0.6), ("keep", 32, 0.9)]
    for d, f, (variant, k, size), a, s in product(range(2), range(2), full, (1.0, 2.0), range(2)):
        margin = a * size * np.tile([1, -1], 10) + noise(20, d, f, s, int(a)) / 4
        rows.append(
            group(
                margin,
                variant=variant,
                k=k,
                alpha=a,
                seed=s,
                family=f"f{f}",
                dataset=f"d{d}",
                cluster=cluster,
            )
        )
    return pl.concat(rows)


def test_row_order_does_not_matter():
    rows = many()
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=5)
    assert effect_table(rows, full="full").equals(effect_table(shuffled, full="full"))


def test_other_groups_do_not_matter():
    rows = many()
    both = effect_table(rows, full="full").filter(family="f1", dataset="d0").drop(SUMMARY_KEYS)
    own = rows.filter(pl.col("family").is_null() | (pl.col("family") == "f1"), dataset="d0")
    np.testing.assert_allclose(
        both.to_numpy(), effect_table(own, full="full").drop(SUMMARY_KEYS).to_numpy(), atol=1e-12
    )


def test_seed_fixes_the_resamples():
    rows = many()
    assert effect_table(rows, seed=1).equals(effect_table(rows, seed=1))
    assert not effect_table(rows, seed=1)["lo"].equals(effect_table(rows, seed=2)["lo"])


def test_keys_left_out_of_by_are_pooled():
    """the effect of a pool is the mean of the effects of its equally large groups"""
    rows = many()
    pooled, each = effect_table(rows, ["variant", "k"]), effect_table(rows)
    mean = each.group_by("variant", "k").agg(pl.col("effect").mean()).sort("variant", "k")
    np.testing.assert_allclose(pooled["effect"], mean["effect"], atol=1e-12)
    assert pooled["n"].to_list() == [40] * 3  # 20 items in each of 2 datasets
    assert pooled["clusters"].to_list() == [14] * 3  # ceil(20/3) = 7 in each


# ------------------------------------------------------------------------------------ retained
def test_retained_of_full_over_itself():
    """effect(full)/effect(full) = 1 [1, 1]"""
    got = retained(many(), "full").filter(variant="full")
    assert len(got) == 8
    np.testing.assert_allclose(got.select("^retained.*$").to_numpy(), 1.0, atol=1e-12)


def test_retained_of_half_the_gain():
    """gain/2 on every item: retained = 1/2 [1/2, 1/2], because both meet the same resamples"""
    gain = 1 + noise(30, 6)
    sign = np.tile([1, -1], 15)
    rows = pl.concat([planted(gain), group(gain * sign / 2, variant="keep", k=8)])
    got = line(retained(rows, "full"), variant="keep")
    for column in ("retained", "retained_lo", "retained_hi"):
        assert got[column] == pytest.approx(0.5, abs=1e-12)


def test_retained_is_matched_within_the_other_keys():
    """retained = effect(variant, k)/effect(full), within family, dataset and alpha"""
    table = effect_table(many(), full="full")
    fulls = table.filter(variant="full").select("family", "dataset", "alpha", whole="effect")
    got = table.join(fulls, on=["family", "dataset", "alpha"])
    np.testing.assert_allclose(got["retained"], got["effect"] / got["whole"], rtol=1e-12)
    assert retained(many(), "full").equals(
        table.select(*SUMMARY_KEYS, "retained", "retained_lo", "retained_hi")
    )


def test_retained_of_a_negative_effect():
    """a full effect below 0 is not noise: (-0.5)/(-1) = 0.5"""
    rows = pl.concat([planted(-np.ones(10)), group(-0.5 * np.tile([1, -1], 5), variant="keep")])
    assert line(retained(rows, "full"), variant="keep")["retained"] == 0.5


def test_retained_is_suppressed_at_noise():
    gain = noise(30, 7) - noise(30, 7).mean()
    got = effect_table(pl.concat([planted(gain), group(gain, variant="keep", k=8)]), full="full")
    assert line(got, variant="full")["lo"] < 0 < line(got, variant="full")["hi"]
    for column in ("retained", "retained_lo", "retained_hi"):
        assert got[column].to_list() == [None, None]


# -------------------------------------------------------------------------------------- errors
BOTH = pl.concat([HAND, group([1.0, 1.0, 1.0, 1.0], variant="keep", k=8)])


def changed(rows, where, **new):
    return rows.with_columns(
        pl.when(where).then(pl.lit(v)).otherwise(pl.col(c)).alias(c) for c, v in new.items()
    )


Q1 = (pl.col("item") == "q01") & (pl.col("variant") == "keep")
BASE = pl.col("alpha") == 0
REFUSED = {
    "missing": (BOTH.filter(~Q1), "variant=keep, k=8.*1 item.s. missing: 'q01'.*score every"),
    "extra": (BOTH.filter(~(BASE & (pl.col("item") == "q02"))), "extra: 'q02'.*2 such group"),
    "renamed": (changed(BOTH, Q1, item="q99"), "extra: 'q99'|missing: 'q01'"),
    "duplicate": (pl.concat([BOTH, BOTH.filter(Q1)]), "variant=keep.*duplicate: 'q01'"),
    "no reference": (BOTH.filter(~BASE), "without any alpha = 0 rows: 'q00', 'q01', 'q02', ..."),
    "other dataset": (changed(BOTH, BASE, dataset="dilemmas"), "dataset=claims.*without any alpha"),
    "doubled reference": (pl.concat([BOTH, HAND.filter(BASE)]), "doubled at alpha = 0.*score"),
    "label differs": (changed(BOTH, Q1, label=1), "another label.*'q01'.*one item set"),
    "label zero": (changed(BOTH, Q1, label=0), "label other than .1 or -1: 'q01'"),
    "cluster differs": (changed(BOTH, Q1, cluster="c"), "another cluster.*'q01'"),
    "no cluster": (changed(BOTH, Q1, cluster=None), "without dataset, item or cluster: 'q01'"),
    "nan": (changed(BOTH, Q1, margin=float("nan")), "variant=keep.*not finite: 'q01'.*repair"),
    "infinite": (changed(BOTH, BASE, margin=float("inf")), "variant=base.*margin null or not f"),
    "null margin": (changed(BOTH, Q1, margin=None), "margin null or not finite: 'q01'"),
    "null alpha": (changed(BOTH, Q1, alpha=None), "alpha or margin null"),
    "nothing steered": (BOTH.filter(BASE), "found none; score a steered variant"),
    "no column": (BOTH.drop("label"), "lack the columns .'label'.; give item, variant"),
    "no number": (BOTH.with_columns(margin=pl.lit("high")), "column 'margin' is String and cannot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_paired_refuses(case):
    rows, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        paired(rows)


def test_paired_accepts_what_the_refusals_started_from():
    assert len(paired(BOTH)) == 8
    assert len(paired(BOTH.with_columns(k=pl.lit(None), seed=pl.lit(None)))) == 8


def test_five_columns_are_enough():
    """item, variant, alpha, label, margin: an item is its own cluster, the rest is null"""
    full = BOTH.filter(pl.col("variant") != "keep").with_columns(
        experiment=None, model=None, behaviour=None, prompt_style=None, method=None, family=None,
        k=None, seed=None, dataset=pl.lit("items"), mass=None, flagged=None, cluster="item",
    )  # fmt: skip
    few = full.select("item", "variant", "alpha", "label", "margin")
    got, want = effect_table(few, full="full"), effect_table(full, full="full")
    numbers = ["n", "clusters", "seeds", "effect", "lo", "hi", "p", "retained", "discrimination"]
    assert got.select(numbers).equals(want.select(numbers))
    assert line(got)["mass"] is None and line(got)["dataset"] == "items"
    assert line(got)["flagged_share"] is None and line(got)["family"] is None
    for column in few.columns:
        with pytest.raises(ValueError, match=f"lack the columns .'{column}'"):
            effect_table(few.drop(column))
    whole = few.with_columns(alpha=pl.col("alpha").cast(pl.Int64))
    assert effect_table(whole).select(numbers[:7]).equals(got.select(numbers[:7]))


UNEVEN = pl.concat(
    [
        many(),
        group(
            np.zeros(20),
            seed=7,
            family="f0",
            dataset="d0",
            cluster=[f"c{i // 3}" for i in range(20)],
        ),
    ]
)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: effect_table(BOTH, ["item"]), "by takes one or more of .*got .'item'"),
        (lambda: effect_table(BOTH, []), "by takes one or more"),
        (
            lambda: effect_table(UNEVEN, ["variant", "k"]),
            "pooled seeds need the same clusters.*add",
        ),
        (lambda: retained(BOTH, "residual_full"), "needs one 'residual_full' line.*found none"),
        (lambda: retained(many(), "keep"), "needs one 'keep' line.*variant=full.*found several"),
        (lambda: retained(BOTH, "full", by=["alpha"]), "add 'variant' to by"),
        (
            lambda: retained(
                pl.concat([BOTH, group([1.0] * 4, variant="keep", k=8, seed=1)]), "full"
            ),
            "needs one 'full' line on the seeds and clusters of .*variant=keep, k=8.*found none",
        ),
    ],
)
def test_effects_refuse(ask, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask()


# --------------------------------------------------------------------------------------- nulls
def table_of(*lines, **columns):
    names = {"family": pl.String, "variant": pl.String, "k": pl.Int64, **columns}
    return pl.DataFrame(lines, schema=names, orient="row")


def test_null_percentile_counts_ties_by_half():
    """100 * (#below + #tied / 2) / #draws"""
    draws = [("lora", f"spectrum_null#{i:02d}", None, e) for i, e in enumerate([0.0, 1, 1, 3])]
    got = null_percentile(
        table_of(
            *draws,
            ("lora", "full", None, 2.0),
            ("lora", "keep", 8, 1.0),
            ("lora", "zero", None, -1.0),
            ("dora", "full", None, 2.0),
            ("lora", "spectrum_nullish", None, 9.0),
            effect=pl.Float64,
        )
    )
    ranks = {(f, v): p for f, v, p in got.select("family", "variant", "null_percentile").rows()}
    assert ranks["lora", "full"] == 75.0  # 3 of 4 below
    assert ranks["lora", "keep"] == 50.0  # 1 below, 2 tied: (1 + 1)/4
    assert ranks["lora", "zero"] == 0.0
    assert ranks["lora", "spectrum_nullish"] == 100.0  # no draw of its own
    assert ranks["dora", "full"] is None and ranks["lora", "spectrum_null#00"] is None
    again = null_percentile(got, "gaussian_null")
    assert again.columns == got.columns and again["null_percentile"].is_null().all()


def test_null_draws_with_a_k_serve_that_k():
    got = null_percentile(
        table_of(
            ("lora", "random#00", 8, 0.0),
            ("lora", "random#00", 32, 5.0),
            ("lora", "full", None, 1.0),
            ("lora", "keep", 8, 1.0),
            ("lora", "keep", 32, 1.0),
            effect=pl.Float64,
        ),
        "random",
    )
    assert got["null_percentile"].to_list() == [None, None, None, 100.0, 0.0]


def test_null_percentile_of_an_effect_table():
    rows = pl.concat(
        [planted(np.ones(10))]
        + [group(noise(10, i) / 10, variant=f"spectrum_null#{i:02d}") for i in range(20)]
    )
    got = null_percentile(effect_table(rows))
    assert line(got, variant="full")["null_percentile"] == 100.0
    assert got.columns == [*effect_table(rows).columns, "null_percentile"]


# ------------------------------------------------------------------------------------ verdicts
def test_three_valued_comparison():
    """x >= t: true if lo >= t, false if hi < t, else unknown; x <= t: its mirror"""
    assert [at_least(*x, 0.7) for x in ((0.7, 0.9), (0.5, 0.69), (0.5, 0.7))] == [True, False, None]
    assert [at_most(*x, 0.3) for x in ((0.1, 0.3), (0.31, 0.5), (0.3, 0.5))] == [True, False, None]
    assert at_least(None, None, 0.7) is None and at_most(None, None, 0.3) is None


HIGH, LOW, MIDDLE, WIDE, GONE = (
    (0.9, 0.8, 1.0),
    (0.1, 0.0, 0.2),
    (0.5, 0.45, 0.55),
    (0.75, 0.6, 0.9),
    (None, None, None),
)
SHARE = {"retained": pl.Float64, "retained_lo": pl.Float64, "retained_hi": pl.Float64}
RULE = SharedCore(families=("lora", "dora"))


def halves(**families):
    """families: name -> {k: (keep, drop)}"""
    return table_of(
        *[
            (f, variant, k, *share)
            for f, by_k in families.items()
            for k, pair in by_k.items()
            for variant, share in zip(("keep_shared", "drop_shared"), pair, strict=True)
        ],
        **SHARE,
    )


TRUTH = {
    "supported": (
        {8: (HIGH, LOW)},
        {8: (HIGH, LOW)},
        "supported",
        "at K = 8, keep_shared retains >= 0.7 and drop_shared <= 0.3.*lora, dora",
    ),
    "supported at a smaller K": (
        {8: (HIGH, LOW), 64: (HIGH, HIGH)},
        {8: (HIGH, LOW), 64: (LOW, HIGH)},
        "supported",
        "at K = 8,",
    ),
    "no one K for all": (
        {8: (HIGH, LOW), 32: (MIDDLE, LOW)},
        {8: (MIDDLE, LOW), 32: (HIGH, LOW)},
        "undetermined",
        "closest at K = 32, where lora keep_shared retains 0.50",
    ),
    "refuted": (
        {8: (LOW, HIGH), 64: (HIGH, LOW)},
        {8: (LOW, HIGH), 64: (LOW, HIGH)},
        "refuted",
        r"at K = 64.*keep_shared retains < 0.3.*>= 0.7.*for dora \(0.10 \[0.00, 0.20\]",
    ),
    "refuted though one is missing": ({64: (LOW, HIGH)}, {}, "refuted", "for lora"),
    "low at a small K only": (
        {8: (LOW, HIGH), 64: (MIDDLE, HIGH)},
        {8: (LOW, HIGH), 64: (LOW, LOW)},
        "undetermined",
        "closest at K = 64",
    ),
    "not identifiable": (
        {64: (HIGH, LOW)},
        {64: (HIGH, HIGH)},
        "undetermined",
        "not identifiable under this basis.*K = 64.*for dora",
    ),
    "interval too wide": (
        {64: (HIGH, LOW)},
        {64: (WIDE, LOW)},
        "undetermined",
        r"dora keep_shared retains 0.75 \[0.60, 0.90\], not clearly >= 0.7",
    ),
    "neither half": ({64: (HIGH, LOW)}, {64: (LOW, LOW)}, "undetermined", "dora keep_shared"),
    "missing family": ({64: (HIGH, LOW)}, {}, "undetermined", "no line of .*K = 64.* for dora$"),
    "suppressed": ({64: (HIGH, LOW)}, {64: (GONE, GONE)}, "undetermined", "at noise.*for dora$"),
    "keep not clearly low": (
        {64: (HIGH, LOW)},
        {64: ((0.25, 0.1, 0.4), HIGH)},
        "undetermined",
        "closest at K = 64.*dora keep_shared.*dora drop_shared",
    ),
    "empty": ({}, {}, "undetermined", "no line of .* at any K for lora, dora$"),
}


@pytest.mark.parametrize("case", TRUTH)
def test_shared_core_truth_table(case):
    lora, dora, outcome, sentence = TRUTH[case]
    got = verdict(halves(lora=lora, dora=dora), RULE)
    assert isinstance(got, Verdict) and got.outcome == outcome
    assert re.search(sentence, got.sentence), got.sentence


def test_other_lines_do_not_matter_and_thresholds_are_fields():
    table = pl.concat(
        [
            halves(lora={8: (HIGH, LOW)}, dora={8: (MIDDLE, LOW)}),
            table_of(
                ("lora", "full", None, 1.0, 1.0, 1.0), ("ia3", "keep_shared", 8, *LOW), **SHARE
            ),
        ]
    )
    assert verdict(table, RULE).outcome == "undetermined"
    assert verdict(table, SharedCore(0.4, 0.3, RULE.families)).outcome == "supported"


def test_a_k_at_which_a_random_subspace_keeps_as_much_supports_nothing():
    """keep(K = d) = d and drop = 0 for every basis, so K = d says nothing about a shared one"""
    both = halves(lora={8: (HIGH, LOW)}, dora={8: (HIGH, LOW)})
    for random, outcome in ((HIGH, "undetermined"), (LOW, "supported")):
        lines = table_of(
            ("lora", "keep_random", 8, *LOW), ("dora", "keep_random", 8, *random), **SHARE
        )
        got = verdict(pl.concat([both, lines]), RULE)
        assert got.outcome == outcome
        assert ("dora keep_random retains" in got.sentence) == (outcome == "undetermined")


def test_steering_the_other_way_supports_nothing():
    """retained ratios have no sign: a whole whose effect is below 0 leaves nothing to share"""
    parts = halves(lora={8: (HIGH, LOW)}, dora={8: (HIGH, LOW)}).with_columns(hi=pl.lit(1.0))
    wholes = table_of(("lora", "residual_full", None, 1.0, 1.0, 1.0), **SHARE)
    for hi, outcome in ((-0.1, "undetermined"), (0.1, "supported")):
        got = verdict(pl.concat([parts, wholes.with_columns(hi=pl.lit(hi))]), RULE)
        assert got.outcome == outcome
        assert ("below 0 for lora" in got.sentence) == (outcome == "undetermined")


def test_verdict_from_rows_to_sentence():
    """planted: the shared part holds 90 % of every gain, the rest 10 %, in both families"""
    rows = [base(np.zeros(40))]
    for i, family in enumerate(RULE.families):
        margin = (1 + noise(40, 8, i) / 2) * np.tile([1, -1], 20)
        for variant, k, size in (
            ("residual_full", None, 1),
            ("keep_shared", 8, 0.9),
            ("drop_shared", 8, 0.1),
        ):
            rows.append(group(size * margin, variant=variant, k=k, family=family))
    got = verdict(effect_table(pl.concat(rows), full="residual_full"), RULE)
    assert got.outcome == "supported"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (pl.concat([halves(lora={8: (HIGH, LOW)})] * 2), "several of the same; filter"),
        (
            halves(lora={8: (HIGH, LOW)}).with_columns(alpha=pl.Series([1.0, 2])),
            "of .'alpha'.; filter",
        ),
    ],
)
def test_verdict_refuses(table, sentence):
    with pytest.raises(ValueError, match=sentence):
        verdict(table, RULE)


def test_rule_needs_families():
    with pytest.raises(ValueError, match="`families` must be at least one"):
        SharedCore(families=())

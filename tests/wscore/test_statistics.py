"""Laws of intervals, p values, corrections for many tests, and spreads over seeds and families."""

from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.wscore.rows import base, group, line, noise, planted
from wscore.stats.effects import effect_table
from wscore.stats.schema import KEYS, SUMMARY_KEYS
from wscore.stats.spread import benjamini_hochberg, seed_spread, wilson


def scores(n):
    """n gains of a normal shape, mean 1, sd 1: nothing in them is left to chance"""
    z = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return 1 + z / z.std(ddof=1)


def crossed(by_seed, by_item, **fields):
    """gain of item i on seed s = by_seed[s] + by_item[i], each item a cluster"""
    sign = np.tile([1, -1], len(by_item))[: len(by_item)]
    shared = {"label": list(sign)}
    rows = [
        group((a + np.asarray(by_item)) * sign, seed=s, **shared, **fields)
        for s, a in enumerate(by_seed)
    ]
    return pl.concat([base(np.zeros(len(by_item)), **shared), *rows])


# ----------------------------------------------------------------------------------- intervals
@pytest.mark.parametrize("n", [6, 10, 20, 60])
def test_interval_is_that_of_student(n):
    """[lo, hi] = mean -+ t sd/sqrt(n), t of n - 1 degrees of freedom: normal gains, any n"""
    got = line(effect_table(planted(scores(n)), resamples=20_000))
    lo, hi = stats.t.interval(0.95, n - 1, loc=1, scale=n**-0.5)
    # at n = 6 the tail of the resamples is shorter than the normal one
    assert got["lo"] == pytest.approx(lo, abs=(0.15 if n == 6 else 0.06) * (1 - lo))
    assert got["hi"] == pytest.approx(hi, abs=(0.15 if n == 6 else 0.06) * (hi - 1))
    narrow = stats.norm.interval(0.95, loc=1, scale=np.sqrt((n - 1) / n / n))[0]
    assert got["lo"] < narrow - 0.5 * (narrow - lo)  # the plain percentiles end at `narrow`


def test_each_line_takes_the_quantiles_of_its_own_number_of_clusters():
    """lo, hi of a line are those it has alone, whatever the clusters of the lines beside it"""
    few = planted(scores(6), dataset="few")
    many = planted(scores(60), dataset="many")
    both = effect_table(pl.concat([few, many]), full="full")
    alone = pl.concat([effect_table(rows, full="full") for rows in (few, many)])
    numbers = ["effect", "lo", "hi", "p", "retained_lo", "retained_hi"]
    np.testing.assert_allclose(both[numbers].to_numpy(), alone[numbers].to_numpy(), rtol=1e-9)


def test_coverage_with_few_clusters():
    """P(lo <= true effect <= hi) = 0.95 with 12 clusters; the plain percentiles reach 0.90"""
    draws, n = 1000, 12
    gain = 0.3 + np.random.default_rng(3).normal(size=(draws, n))
    sign = np.tile([1, -1], n // 2)
    rows = pl.concat([base(np.zeros(n))] + [group(g * sign, seed=s) for s, g in enumerate(gain)])
    table = effect_table(rows, KEYS)
    covered = ((table["lo"] <= 0.3) & (table["hi"] >= 0.3)).mean()
    assert covered == pytest.approx(0.95, abs=0.025)  # sd of a share of 1,000 is 0.007


def test_two_seeds_by_hand():
    """effects 0 and 1 on two seeds, equal on all items: the same as two clusters of gains 0, 1"""
    rows = crossed([0.0, 1.0], np.zeros(30))
    got = line(effect_table(rows, level=0.4))
    assert (got["lo"], got["effect"], got["hi"], got["seeds"]) == (0, 0.5, 1, 2)
    # level 0.2: t = tan(0.1 pi) = 0.325, Phi(sqrt(2) 0.325) = 0.677 < 3/4
    got = line(effect_table(rows, level=0.2))
    assert (got["lo"], got["hi"]) == (0.5, 0.5)
    # t = 0.5 / (sd/sqrt(2)) = 0.5/(0.707/1.414) = 1, and P(|T_1| > 1) = 1/2
    assert line(effect_table(rows, resamples=20_000))["p"] == pytest.approx(0.5, abs=0.01)


def test_seeds_that_agree_change_nothing():
    """v = 0: interval and p of five equal seeds = those of one"""
    gain = 0.2 + noise(40, 3)
    five = line(effect_table(crossed([0.0] * 5, gain)))
    one = line(effect_table(crossed([0.0], gain)))
    for column in ("lo", "hi", "p"):
        assert five[column] == pytest.approx(one[column], rel=1e-9)


# -------------------------------------------------------------------------------------- p values
@pytest.mark.parametrize("n", [2, 5, 20, 60])
def test_p_is_that_of_the_t_test_over_clusters(n):
    """p = 2 P(T <= -|mean|/(sd/sqrt(n))), n - 1 degrees of freedom, over means of clusters"""
    for i, size in product(range(4), (0.0, 0.3)):
        gain = size + noise(n, i, 1)
        rows = planted(
            np.repeat(gain, 2) + np.tile([0.5, -0.5], n),
            cluster=[f"c{j // 2:02d}" for j in range(2 * n)],
            label=[1, -1] * n,
            item=[f"q{j:03d}" for j in range(2 * n)],
        )
        got = line(effect_table(rows, resamples=20_000))
        want = stats.ttest_1samp(gain, 0)
        found = stats.t.isf(got["p"] / 2, n - 1)
        assert found == pytest.approx(abs(want.statistic), rel=0.03)


def test_p_with_seeds_is_that_of_welch():
    """gain = a_s + b_i: mean(a) + mean(b) over its standard error is Welch's test of a against -b,
    degrees of freedom (Satterthwaite) included"""
    for i, (seeds, n) in enumerate(product((2, 3, 5), (8, 40))):
        a, b = 0.4 * noise(seeds, i, 7), 0.3 + noise(n, i, 8)
        got = line(effect_table(crossed(a, b), resamples=20_000))
        want = stats.ttest_ind(a, -b, equal_var=False)
        assert stats.norm.isf(got["p"] / 2) == pytest.approx(
            stats.norm.isf(want.pvalue / 2), rel=0.04
        )


def test_p_and_interval_say_the_same():
    """p < 0.05 where, and only where, [lo, hi] leaves 0 out (p within 0.04 .. 0.06 left aside)"""
    sign = np.tile([1, -1], 10)
    gains = [0.4 + noise(20, i, 5) for i in range(300)]
    rows = pl.concat([base(np.zeros(20)), *(group(g * sign, seed=s) for s, g in enumerate(gains))])
    table = effect_table(rows, KEYS).filter(~pl.col("p").is_between(0.04, 0.06))
    out = (table["lo"] > 0) | (table["hi"] < 0)
    assert 50 < out.sum() < 250
    assert (out == (table["p"] < 0.05)).mean() > 0.97  # the interval knows of skewness, p does not


def test_p_without_spread_and_without_interval():
    """sd = 0: p = 1 at effect 0, else 0; one cluster: null"""
    assert line(effect_table(planted(np.zeros(10))))["p"] == 1
    assert line(effect_table(planted(np.ones(10))))["p"] == 0
    one = line(effect_table(planted(np.zeros(4), cluster=["c"] * 4)))
    assert (one["lo"], one["p"]) == (None, None)
    columns = effect_table(planted(np.ones(4))).columns
    assert columns[columns.index("hi") + 1] == "p"


# ------------------------------------------------------------------------------ many tests at once
def with_p(ps, variants=None):
    names = [f"v{i}" for i in range(len(ps))] if variants is None else variants
    return pl.DataFrame({"variant": names, "p": ps}, {"variant": pl.String, "p": pl.Float64})


@given(st.lists(st.floats(0, 1), max_size=30))
def test_q_is_that_of_scipy(ps):
    """q = scipy.stats.false_discovery_control(p, method="bh"), in the order of the table"""
    want = stats.false_discovery_control(ps) if ps else []
    np.testing.assert_allclose(benjamini_hochberg(with_p(ps))["q"], want, rtol=1e-12)


def test_q_by_hand():
    """p = 0.01, 0.02, 0.04 of m = 3: 0.01 3/1 = 0.03, 0.02 3/2 = 0.03, 0.04 3/3 = 0.04"""
    got = benjamini_hochberg(with_p([0.04, 0.01, 0.02]))
    assert got["q"].to_list() == pytest.approx([0.04, 0.03, 0.03])
    assert benjamini_hochberg(got).equals(got)


def test_q_leaves_null_draws_and_lines_without_p_out():
    """m counts lines with a p that are no draws: 0.01 and 0.04 of m = 2, so 0.02 and 0.04"""
    names = ["a", "spectrum_null#00", "b", "gaussian#17", "c", "#hash", None]
    table = with_p([0.04, 0.0, 0.01, 0.5, None, 1.0, 1.0], names).head(5)
    got = benjamini_hochberg(table)
    assert got["q"].to_list() == [0.04, None, 0.02, None, None]
    assert got.drop("q").equals(table)
    rest = benjamini_hochberg(with_p([1.0, 1.0], ["#hash", None]))
    assert rest["q"].to_list() == [1.0, 1.0]


def test_q_of_an_effect_table():
    """1 of 40 true: it keeps q < 0.05, and no null effect reaches it"""
    null = [group(noise(30, i, 3), variant=f"v{i:02d}") for i in range(39)]
    rows = pl.concat([planted(2 + noise(30, 1)), *null])
    got = benjamini_hochberg(effect_table(rows))
    assert (got["p"] < 0.05).sum() > 1  # what the correction is for
    assert got.filter(pl.col("q") < 0.05)["variant"].to_list() == ["full"]


def test_q_needs_p():
    with pytest.raises(ValueError, match="lacks the columns .'p'.; pass an effect_table"):
        benjamini_hochberg(pl.DataFrame({"variant": ["a"]}))


def test_wilson_by_hand():
    """(p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n)"""
    z = stats.norm.ppf(0.975)
    for k, n in ((0, 20), (7, 300), (20, 20), (1, 3)):
        p, middle = k / n, k / n + z**2 / (2 * n)
        half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        want = [np.clip((middle + x) / (1 + z**2 / n), 0, 1) for x in (-half, half)]
        assert wilson(p, n) == pytest.approx(want, abs=1e-12)


# ---------------------------------------------------------------------------------------- spread
def constant(family, variant, *effects, k=None, n=10):
    """One seed per effect, with that gain on every item, and +-0.1 between items"""
    gain = np.tile([0.1, -0.1], n // 2)
    return crossed(effects, gain, family=family, variant=variant, k=k).filter(pl.col("alpha") != 0)


HAND = pl.concat(
    [
        base(np.zeros(10)),
        constant("lora", "full", 1.0, 2.0),
        constant("dora", "full", 4.0, 4.0),
        constant("lora", "keep", 0.5, 1.5, k=8),
        constant("dora", "keep", 1.0, 3.0, k=8),
        constant("oft", "keep", 1.0, k=8),
        constant("oft", "full", 2.0),
    ]
)
SPREADS = ["seed_sd", "family_sd", "family_gap"]
RATIOS = [f"retained_{c}" for c in SPREADS]


def test_spread_by_hand():
    """sd over seeds of effects and of ratios; sd and max - min over families of their means"""
    got = seed_spread(HAND, full="full")
    assert got.columns == [*SUMMARY_KEYS, "seeds", *SPREADS, *RATIOS]
    lora, dora, oft = (line(got, family=f, variant="keep") for f in ("lora", "dora", "oft"))
    assert [x["seeds"] for x in (lora, dora, oft)] == [2, 2, 1]
    # effects 0.5, 1.5: sd 1/sqrt(2); 1, 3: 2/sqrt(2); one seed has none
    assert [x["seed_sd"] for x in (lora, dora, oft)] == [
        pytest.approx(0.5**0.5), pytest.approx(2**0.5), None
    ]  # fmt: skip
    # means of families 1, 2, 1: sd sqrt((1/9 + 4/9 + 1/9)/2) = sqrt(1/3), gap 1
    for x in (lora, dora, oft):
        assert (x["family_sd"], x["family_gap"]) == (pytest.approx(3**-0.5), pytest.approx(1))
    # ratios lora 0.5/1, 1.5/2; dora 1/4, 3/4; oft 1/2: means 0.625, 0.5, 0.5
    sd = [x["retained_seed_sd"] for x in (lora, dora, oft)]
    assert sd == [pytest.approx(0.25 / 2**0.5), pytest.approx(0.5 / 2**0.5), None]
    assert lora["retained_family_gap"] == pytest.approx(0.125)
    assert lora["retained_family_sd"] == pytest.approx(np.std([0.625, 0.5, 0.5], ddof=1))


def test_spread_of_one_seed_and_one_family_is_unknown():
    got = line(seed_spread(planted(scores(10)), full="full"))
    assert got["seeds"] == 1 and [got[c] for c in SPREADS + RATIOS] == [None] * 6


def test_spread_is_matched_within_the_other_keys():
    """each k, alpha and dataset has its own spread: that of its rows alone"""
    rows = pl.concat(
        [HAND, HAND.with_columns(dataset=pl.lit("other"), margin=2 * pl.col("margin"))]
    )
    rows = pl.concat([rows, constant("lora", "keep", 9.0, 5.0, k=32)])
    got = seed_spread(rows, full="full")
    first = got.filter(pl.col("dataset") != "other", pl.col("k").is_null() | (pl.col("k") == 8))
    second = got.filter(dataset="other")
    alone = seed_spread(HAND, full="full")
    keys = ["variant", "family", *SPREADS, *RATIOS]
    assert first.select(keys).equals(alone.select(keys))
    np.testing.assert_allclose(
        second.select(SPREADS).to_numpy().astype(float),
        2 * alone.select(SPREADS).to_numpy().astype(float),
    )
    single = line(got, k=32)
    assert single["seed_sd"] == pytest.approx(8**0.5) and single["family_gap"] is None


def test_spread_of_retained_is_suppressed_at_noise():
    """the effect of oft's full, pooled over seeds, is noise: no ratio, and none among families"""
    rows = pl.concat([HAND, constant("ia3", "full", -1.0, 1.0), constant("ia3", "keep", 1, 2, k=8)])
    got = seed_spread(rows, full="full")
    found = line(got, family="ia3", variant="keep")
    assert found["seed_sd"] is not None and found["retained_seed_sd"] is None
    # the families' ratios that are known stay 0.625, 0.5, 0.5
    assert found["retained_family_gap"] == pytest.approx(0.125)


def test_spread_of_the_opposite():
    """spread(-gain) = spread(gain): a full effect below 0 is not noise"""
    opposite = seed_spread(HAND.with_columns(-pl.col("margin")), full="full")
    assert opposite.equals(seed_spread(HAND, full="full"))


def test_spread_agrees_with_a_line_per_seed():
    """seed_sd = sd of effect_table(by all keys) within SUMMARY_KEYS, whatever the order of rows"""
    rows = pl.concat(
        [base(noise(20, 0))]
        + [
            group(np.tile([1, -1], 10) + noise(20, s, k), variant="keep", seed=s, k=k)
            for s, k in product(range(3), (8, 32))
        ]
    )
    want = effect_table(rows, KEYS).group_by("k").agg(pl.col("effect").std()).sort("k")["effect"]
    got = seed_spread(rows.sample(fraction=1.0, shuffle=True, seed=1)).sort("k")
    assert got.columns == [*SUMMARY_KEYS, "seeds", *SPREADS]
    np.testing.assert_allclose(got["seed_sd"], want)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (HAND.filter(pl.col("variant") != "full"), "seed=0, found none; score it there"),
        (pl.concat([HAND, constant("lora", "full", 1.0, k=8)]), "variant=full.*found several"),
        (pl.concat([HAND, constant("oft", "keep", 1.0, 1.0, k=4)]), "k=4.*seed=1, found none"),
    ],
)
def test_spread_needs_the_whole_on_every_seed(rows, found):
    with pytest.raises(ValueError, match=f"seed_spread: needs one 'full' line .*{found}"):
        seed_spread(rows, full="full")

"""Seeds: ranks, agreement and contrasts of two families by hand, and planted families."""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
from scipy.stats import kendalltau

from wscore import effect_table, kendall, pairwise_contrasts, ranking, sign_agreement

CONSTANT = dict(experiment="e", model="m", behaviour="b", dataset="d", prompt_style="p")


def rows(shifts: Mapping[tuple[str, int], np.ndarray], variant: str = "dW") -> pl.DataFrame:
    """Base rows with margin 0, and rows of each (family, seed) with these margins; label +1."""
    n, frames = len(next(iter(shifts.values()))), []
    for (family, seed), margin in {("", -1): np.zeros(n), **shifts}.items():
        base = not family
        frames.append(
            pl.DataFrame({"item": [f"i{j}" for j in range(n)], "margin": margin}).with_columns(
                *(pl.lit(v).alias(c) for c, v in CONSTANT.items()),
                cluster=pl.col("item"),
                label=pl.lit(1),
                mass=pl.lit(1.0),
                flagged=pl.lit(False),
                method=pl.lit("base" if base else "weights"),
                family=pl.lit(family or None, pl.String),
                variant=pl.lit("base" if base else variant),
                k=pl.lit(None, pl.Int64),
                alpha=pl.lit(0.0 if base else 1.0),
                seed=pl.lit(None if base else seed, pl.Int64),
            )
        )
    return pl.concat(frames)


def planted(
    means: Mapping[str, float], of_seed: float, seeds: int = 3, n: int = 40, draw: int = 0
) -> pl.DataFrame:
    """margin = mean of the family + of_seed * N(0, 1) per (family, seed) + N(0, 1) per item."""
    random = np.random.default_rng(draw)
    items = random.normal(size=n)
    return rows(
        {
            (f, s): m + of_seed * random.normal() + items + 0.1 * random.normal(size=n)
            for f, m in means.items()
            for s in range(seeds)
        }
    )


def test_kendall_by_hand():
    """tau = (pairs in one order - pairs in the other) / pairs; a tie is neither"""
    assert kendall([3, 2, 1], [30, 20, 10]) == 1
    assert kendall([3, 2, 1], [1, 2, 3]) == -1
    # of the pairs (1,2) (1,3) (2,3) only the last one is turned: (2 - 1)/3
    assert kendall([3, 2, 1], [3, 1, 2]) == pytest.approx(1 / 3)
    assert kendall([1, 1], [1, 2]) == 0
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    assert kendall(a, b) == pytest.approx(kendalltau(a, b).statistic)
    with pytest.raises(ValueError, match="two values"):
        kendall([1], [1])


def test_agreement_by_hand():
    """mean(2, 1, -0.5) > 0, and two of three are; a mean of 0 has no sign"""
    assert sign_agreement([2, 1, -0.5]) == pytest.approx(2 / 3)
    assert sign_agreement([-3, 1, 1]) == pytest.approx(1 / 3)  # the mean is negative, one seed is
    assert sign_agreement([-1, -2]) == 1 and sign_agreement([0.0, 0.0]) is None


def test_ranks_by_hand():
    """effects of seeds 0 1 2: a 3 3 1.5, b 2 2 2, c 1 1 3: taus 1, -1, -1"""
    effects = {"a": (3, 3, 1.5), "b": (2, 2, 2), "c": (1, 1, 3)}
    shifts = {(f, s): np.full(6, float(x)) for f, e in effects.items() for s, x in enumerate(e)}
    table = ranking(rows(shifts), resamples=500)
    # means 2.5, 2, 5/3; orders abc, abc, cba: tau = (1 - 1 - 1)/3
    assert table.sort("family")["rank"].to_list() == [1, 2, 3]
    assert table["tau"].to_list() == pytest.approx([-1 / 3] * 3)
    assert table["sign_agreement"].to_list() == [1, 1, 1]
    # items are all alike, so a resample is three draws of the seeds; with j of them seed 2, a has
    # 3 - j/2 and c has 1 + 2j/3: c is first for j = 2, 3, which has probability 7/27
    p_best = dict(table.select("family", "p_best").rows())
    assert p_best["c"] == pytest.approx(7 / 27, abs=0.06) and p_best["a"] + p_best["c"] == 1


def test_ranks_need_two_families_and_one_dose():
    """one family has no rank; two doses of one variant are refused"""
    alone = rows({("a", 0): np.ones(4), ("a", 1): np.ones(4)})
    assert ranking(alone).select("rank", "p_best", "tau").row(0) == (None, None, None)
    other = alone.filter(alpha=1.0).with_columns(alpha=pl.lit(2.0))
    with pytest.raises(ValueError, match=r"doses \[1.0, 2.0\]"):
        ranking(pl.concat([alone, other]))


def test_equal_families_are_not_shown_to_differ():
    """three equal families, seeds that differ: 2 to 9 % of 300 pairs are called different, though
    in more than 15 % of them the interval excludes 0 and all three seeds agree"""
    sets = (
        planted({"a": 1, "b": 1, "c": 1}, 0.3, n=12, draw=d).with_columns(dataset=pl.lit(f"{d}"))
        for d in range(100)
    )
    pairs = pairwise_contrasts(pl.concat(sets), "dW", resamples=200)
    assert 0.02 * 300 <= pairs["beats"].sum() <= 0.09 * 300
    naive = pairs.filter((pl.col("diff_lo") > 0) & (pl.col("sign_agreement") == 1))
    assert len(naive) > 0.15 * 300 and naive["beats"].sum() == pairs["beats"].sum()


def test_a_planted_difference_is_found():
    """means 2, 1, 1 and seeds with sd 0.05: a beats b and c, by 1; every pair stands once"""
    pairs = pairwise_contrasts(planted({"a": 2, "b": 1, "c": 1}, 0.05), "dW")
    found = pairs.filter("beats", family="a")
    assert sorted(found["other"]) == ["b", "c"]
    assert ((found["diff"] - 1).abs() < 0.2).all() and (found["sign_agreement"] == 1).all()
    assert len(pairs) == 3 and (pairs["diff"] >= 0).all()


def test_one_seed_that_disagrees_is_enough():
    """differences 3, 3 and -0.1 with seeds of no spread inside: one seed disagrees, so no verdict;
    with one seed there is none at all"""
    shifts = {("a", s): np.full(8, x) for s, x in enumerate((3.0, 3.0, -0.1))}
    shifts |= {("b", s): np.zeros(8) for s in range(3)}
    pair = pairwise_contrasts(rows(shifts), "dW")
    assert pair["sign_agreement"].item() == pytest.approx(2 / 3) and not pair["beats"].item()
    single = {
        k: np.random.default_rng(0).normal(5 * (k[0] == "a"), 1, 40) for k in (("a", 0), ("b", 0))
    }
    pair = pairwise_contrasts(rows(single), "dW")
    assert pair["diff_lo"].item() > 0 and not pair["beats"].item()
    with pytest.raises(ValueError, match="the same seeds"):
        pairwise_contrasts(rows({("a", 0): np.ones(4), ("b", 1): np.ones(4)}), "dW")


def test_seeds_that_differ_widen_the_interval():
    """sd 1 between seeds and 0.1 within: the pooled interval is wider than each seed's own"""
    found = planted({"a": 1}, of_seed=1.0)
    pooled = effect_table(found)
    width = (pooled["hi"] - pooled["lo"]).item()
    for s in range(3):
        own = effect_table(found.filter((pl.col("alpha") == 0) | (pl.col("seed") == s)))
        assert width > 1.5 * (own["hi"] - own["lo"]).item()

"""Paired differences: by hand, of a method with itself, and where there is no difference."""

import numpy as np
import polars as pl
import pytest

from wscore import base_lines, benchmark_table, benjamini_hochberg, contrast, effect_table

CONSTANT = dict(experiment="e", model="m", behaviour="b", dataset="d", prompt_style="p")


def rows(shifts: dict[str, np.ndarray], seed: int | None = 0) -> pl.DataFrame:
    """Base rows with margin 0, and per variant rows with these margins; label +1, one item each."""
    frames = []
    for name, margin in {"base": np.zeros(len(next(iter(shifts.values())))), **shifts}.items():
        n = len(margin)
        frames.append(
            pl.DataFrame(
                {
                    "item": [f"i{j}" for j in range(n)],
                    "cluster": [f"c{j // 2}" for j in range(n)],
                    "margin": margin,
                }
            ).with_columns(
                *(pl.lit(v).alias(c) for c, v in CONSTANT.items()),
                label=pl.lit(1),
                mass=pl.lit(1.0),
                flagged=pl.lit(False),
                method=pl.lit("weights"),
                family=pl.lit(None, pl.String),
                variant=pl.lit(name),
                k=pl.lit(None, pl.Int64),
                alpha=pl.lit(0.0 if name == "base" else 1.0),
                seed=pl.lit(None if name == "base" else seed, pl.Int64),
            )
        )
    return pl.concat(frames)


def test_by_hand():
    """diff = mean(b) - mean(a): (3 + 1 + 2 + 2)/4 - (1 + 1 + 1 + 1)/4 = 2 - 1 = 1"""
    table = contrast(rows({"a": np.ones(4), "b": np.array([3.0, 1, 2, 2])}), {"variant": "a"})
    assert table.filter(variant="b")["diff"].item() == pytest.approx(1.0)
    own = table.filter(variant="a")
    assert own.select("diff", "diff_lo", "diff_hi").row(0) == (0, 0, 0)
    assert own["diff_p"].item() == 1


def test_a_common_difference_is_certain():
    """b = a + 1 on every item: diff = [1, 1] however much a itself varies"""
    a = np.random.default_rng(0).normal(size=40) * 10
    table = contrast(rows({"a": a, "b": a + 1}), {"variant": "a"}).filter(variant="b")
    assert table.select("diff", "diff_lo", "diff_hi").row(0) == pytest.approx((1, 1, 1))
    assert table["hi"].item() - table["lo"].item() > 3


def test_the_difference_to_nothing_is_the_effect():
    """diff against a variant that moves nothing has the effect's own interval and p"""
    shifts = {"zero": np.zeros(40), "b": np.random.default_rng(1).normal(0.5, 1, 40)}
    line = contrast(rows(shifts), {"variant": "zero"}).filter(variant="b")
    for one, other in (("diff", "effect"), ("diff_lo", "lo"), ("diff_hi", "hi"), ("diff_p", "p")):
        assert line[one].item() == pytest.approx(line[other].item())
    table = effect_table(rows(shifts)).filter(variant="b")
    assert line.select(table.columns).equals(table)


def test_equal_methods_differ_in_one_of_twenty():
    """two independent null methods: the 95 % interval of diff excludes 0 in 2 to 9 % of 200 sets"""
    draw, outside = np.random.default_rng(2), 0
    for _ in range(200):
        shifts = {name: np.repeat(draw.normal(size=30), 2) for name in "ab"}
        line = contrast(rows(shifts), {"variant": "a"}, resamples=300).filter(variant="b")
        outside += line["diff_lo"].item() > 0 or line["diff_hi"].item() < 0
    assert 0.02 * 200 <= outside <= 0.09 * 200


def test_seeds_on_one_side_only():
    """a prompt without seeds against dW of three seeds: the seeds of dW widen the interval"""
    base = rows({"prompt": np.ones(40)}, seed=None)
    per_seed = [rows({"full": np.full(40, m)}, s) for s, m in enumerate((0.5, 1.0, 1.5))]
    rows_of_both = pl.concat([base, *(r.filter(variant="full") for r in per_seed)])
    line = contrast(rows_of_both, {"variant": "full"}).filter(variant="prompt")
    assert line["diff"].item() == pytest.approx(0)
    assert line["diff_lo"].item() < -0.3 and line["diff_hi"].item() > 0.3


@pytest.mark.parametrize(
    "reference, sentence",
    [
        ({"variant": "c"}, "found none"),
        ({"alpha": 1.0}, "found several"),
        ({"banana": 1}, "no keys of the table"),
    ],
)
def test_refusals(reference, sentence):
    """a reference must name one line of each data set"""
    with pytest.raises(ValueError, match=sentence):
        contrast(rows({"a": np.ones(4), "b": np.ones(4)}), reference)


def test_benchmark_table_is_the_contrast_with_q_and_the_base():
    """effects and differences with q each, and the base last: exactly 0 on every item"""
    shifts = {name: np.random.default_rng(i).normal(i, 1, 40) for i, name in enumerate("ab")}
    made, reference = rows(shifts), {"variant": "a"}
    table = benchmark_table(made, reference, resamples=200)
    plain = contrast(made, reference, resamples=200)
    assert table["variant"].to_list() == ["a", "b", "base"]
    assert table.head(2).select(plain.columns).equals(plain)
    assert table.head(2)["q"].equals(benjamini_hochberg(plain)["q"])
    apart = benjamini_hochberg(plain.with_columns(p="diff_p"))
    assert table.head(2)["diff_q"].equals(apart["q"].alias("diff_q"))
    (base,) = base_lines(made).iter_rows(named=True)
    assert base["n"] == 40 and base["clusters"] == 20 and base["effect"] == 0

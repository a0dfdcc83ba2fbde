"""The coverage bench: its rates, its rows and its tables."""

import numpy as np
import polars as pl
import pytest
from scipy import stats
from wsrun.tables import read_table

from tests.conftest import experiment
from wscore import effect_table


def test_bench_rate_is_that_of_wilson():
    """[lo, hi] of k hits in n = scipy.stats.binomtest(k, n), method wilson"""
    bench = experiment("bench_coverage")
    for k, n in ((0, 20), (7, 300), (20, 20)):
        want = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        got = bench.rate(k / n, n)
        assert (got["lo"], got["hi"]) == pytest.approx((want.low, want.high), abs=1e-12)


def test_bench_tables_hold_what_was_planted():
    """effect(line) = mean gain of that line of that data set, one cluster per two rows"""
    bench = experiment("bench_coverage")
    gain = np.random.default_rng(0).normal(size=(3, 2, 2, 5, 2))
    lines = pl.DataFrame({"family": "lora", "variant": ["full", "keep"], "k": [None, 8]})
    table = effect_table(bench.rows(lines, gain), resamples=10)
    assert (table["clusters"] == 5).all() and (table["seeds"] == 2).all()
    got = table.sort("experiment", "variant")["effect"].to_numpy().reshape(3, 2)
    np.testing.assert_allclose(got, gain.mean(axis=(2, 3, 4)), atol=1e-12)


def test_bench_noise_has_mean_0_and_variance_1():
    bench = experiment("bench_coverage")
    for name, draw in bench.SHAPES.items():
        x = draw(np.random.default_rng(1), (1_000_000,))
        assert x.mean() == pytest.approx(0, abs=0.005), name
        assert x.var() == pytest.approx(1, abs=0.1), name


def test_bench_writes_every_rate(tmp_path, capsys):
    """one line per cell and measure, and per truth of a rule; a rate lies in its interval"""
    bench = experiment("bench_coverage")
    options = dict(sets=4, clusters=(6, 12), noise=("normal",), seeds=(2,), seed_sds=(0.3,))
    cfg = bench.Config(**options, verdicts=2, resamples=100, per_table=200, out=tmp_path)
    bench.main(cfg)
    table, meta = read_table(tmp_path / "bench_coverage.parquet")
    found = table.group_by("measure").len().sort("measure").rows()
    n = len(bench.TRUTHS) * len(bench.CLAIMS)
    assert found == [("effect", 3), ("p", 3), ("retained", 3), ("supported", n)]
    assert table.filter(
        (pl.col("lo") > pl.col("rate")) | (pl.col("rate") > pl.col("hi"))
    ).is_empty()
    assert meta["config"]["sets"] == 4 and "rule " in capsys.readouterr().out
    with pytest.raises(ValueError, match="--noise 'cauchy' asked; known are normal"):
        bench.main(bench.Config(noise=("cauchy",), out=tmp_path))

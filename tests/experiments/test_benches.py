"""The benches: what they plant is there, what they compare agrees, and their tables are written."""

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from tests.conftest import experiment
from wscore import effect_table
from wsrun.report.tables import read_table
from wsrun.study.profile import line_fit


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
    bench.main(bench.Config(**options, verdicts=2, resamples=100, out=tmp_path))
    table, meta = read_table(tmp_path / "bench_coverage.parquet")
    found = table.group_by("measure").len().sort("measure").rows()
    n = len(bench.TRUTHS) * len(bench.CLAIMS)
    assert found == [("effect", 3), ("p", 3), ("retained", 3), ("supported", n)]
    beyond = (pl.col("lo") > pl.col("rate")) | (pl.col("rate") > pl.col("hi"))
    assert table.filter(beyond).is_empty()
    assert meta["config"]["sets"] == 4 and "rule " in capsys.readouterr().out
    with pytest.raises(ValueError, match="--noise 'cauchy'.*normal"):
        bench.main(bench.Config(noise=("cauchy",), out=tmp_path))


def test_bench_sweep_compares_the_same_rows():
    """|margin - that of the plain loop| <= 1e-4, with each lever and without"""
    bench = experiment("bench_sweep")
    (work,) = bench.trained(bench.Config(lists=("T7",), rows=3, nulls=2))
    few = work._replace(variants=list(work.variants)[:4])
    lines = list(bench.compare(bench.Config(), few))
    assert lines[0] | {"seconds": 0} == {"list": "T7", "method": "plain loop", "seconds": 0,
                                         "ratio": 1, "difference": 0, "of_peak": None}  # fmt: skip
    assert max(line["difference"] for line in lines) <= 1e-4
    assert [line["method"] for line in lines if line["of_peak"]] == ["sweep"]


def test_bench_sweep_times_the_plain_loop_on_every_other_variant():
    """the margins of variants 0 and 2 are compared with the sweep's own of these"""
    bench = experiment("bench_sweep")
    (work,) = bench.trained(bench.Config(lists=("T6",), rows=3, nulls=2))
    few = work._replace(variants=list(work.variants)[:4])
    lines = list(bench.compare(bench.Config(plain_every=2, levers=False), few))
    assert [line["method"] for line in lines] == ["plain loop", "sweep"]
    assert lines[1]["difference"] <= 1e-4


def test_bench_sweep_compares_dtypes_with_the_first():
    """|effect - effect| = 0 of the first dtype; bfloat16 leaves more open than float32"""
    bench = experiment("bench_sweep")
    cfg = bench.Config(lists=("T6",), rows=6, nulls=2, dtypes=("float32", "bfloat16"))
    (work,) = bench.trained(cfg)
    few = work._replace(variants=[v for v in work.variants if v.name in ("full", "zero")])
    full, half = bench.compare_dtypes(cfg, few)
    assert full["largest_change"] == 0 and full["ratio"] == 1 and full["least_cosine"] is None
    assert half["largest_change"] > 0 and half["dtype_noise"] > 100 * full["dtype_noise"]
    assert 0 < half["least_cosine"] <= 1 and half["of_variant"] in ("lora, full", "oft, full")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"plain_every": 0}, "--plain-every"),
        ({"dtypes": ("float32", "float7")}, "--dtypes.*float7"),
        ({"dtypes": ("float32",)}, "--dtypes"),
        ({"families": ("lora",)}, "--families"),
        ({"memory": True}, "--shape 0.6b"),
    ],
)
def test_bench_sweep_refuses_options_before_it_loads(options, named):
    bench = experiment("bench_sweep")
    with pytest.raises(ValueError, match=named):
        bench.main(bench.Config(**options))


def test_bench_algebra_draws_what_it_says():
    """rank(B A) = r: what svd is timed on has the rank that the table names"""
    bench = experiment("bench_algebra")
    W = bench.product(torch.Generator().manual_seed(0), 5)
    assert W.shape == (1024, 3072) and torch.linalg.matrix_rank(W[:32, :32]) == 5


def test_bench_memory_reads_what_it_wrote(tmp_path):
    """difference on disk = pos - neg on disk, for factors and for whole matrices"""
    bench = experiment("bench_memory")
    bench.SHAPES = {"self_attn.o_proj": (6, 5), "mlp.down_proj": (6, 7)}
    for dense in (False, True):
        case = bench.Case(2, dense, tmp_path)
        bench.write_pair(case)
        bench.difference(case)
        pos, neg, found = (case.read(name) for name in ("pos", "neg", "result"))
        assert len(found) == 4
        for name in found:
            torch.testing.assert_close(found[name], pos[name] - neg[name], atol=1e-5, rtol=0)


def test_a_line_through_points_on_it():
    """s = 2 n + 1 at n = 1, 2, 3, and 9 in place of 7 at n = 3: slope 3, start -1/3"""
    n = pl.Series([1.0, 2.0, 3.0])
    assert line_fit(n, 2 * n + 1) == pytest.approx((2, 1, 0), abs=1e-12)
    # means 2 and 17/3; slope = (9 - 3) / 2 = 3, start = 17/3 - 6 = -1/3; largest miss at n = 2:
    # |17/3 - 5| / 5 = 2/15
    assert line_fit(n, pl.Series([3.0, 5.0, 9.0])) == pytest.approx((3, -1 / 3, 2 / 15))

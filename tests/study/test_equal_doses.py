"""The benchmark at equal doses: what is chosen has the dose, what cannot have it is said."""

import polars as pl
import pytest

from tests.conftest import ORGANISM
from wscore import norm, scale
from wsrun.adapters.extract import pair_deltas
from wsrun.data.source import load_items
from wsrun.models.load import load_model
from wsrun.score.variants import Variant
from wsrun.steer.interventions import SystemPrompt, WeightDelta
from wsrun.study.comparison import compare_on_test
from wsrun.study.controls import zero_control
from wsrun.study.options import BenchmarkOptions
from wsrun.study.selection import check_benchmark, choose, match_doses
from wsrun.study.session import Session


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


@pytest.fixture(scope="module")
def dW(organism):
    return pair_deltas(organism[0], ORGANISM / "adapters" / "oft-s0").dW


def options(tmp_path, match: str) -> BenchmarkOptions:
    return BenchmarkOptions(
        families=("oft",), match_dose=match, n_random=2, resamples=50, data=str(ORGANISM),
        out=tmp_path, cache_dir=tmp_path / "cache",
    )  # fmt: skip


def test_benchmark_at_equal_doses(organism, dW, tmp_path):
    """what is chosen has the dose, what cannot have it is listed and not chosen, zero stays"""
    cfg = options(tmp_path, "norm:8")
    check_benchmark(cfg, "test")
    validation, test = (
        Session(*organism, load_items(ORGANISM, split, 4)[-8:]) for split in ("validation", "test")
    )
    candidates = [
        Variant("dW", WeightDelta(dW), family="oft", seed=0),
        Variant("-dW", WeightDelta(dW), (-1.0,), family="oft", seed=0),
        Variant("dead@all", WeightDelta(scale(0.0, dW)), (1.0,), family="oft"),
        Variant("say@0", SystemPrompt("You always lie."), (1.0,)),
    ]
    chosen = choose(cfg, "test", validation, candidates)
    assert set(chosen) == {"dW", "-dW", "say"}
    assert [v.name for v in chosen.unmatched] == ["dead@all"]
    assert chosen["dW"].alpha == pytest.approx(8 / norm(dW))
    draws = [Variant("random", WeightDelta(scale(c, dW)), seed=i) for i, c in enumerate((0.5, 1.5))]
    controls = match_doses(cfg, test, [zero_control(chosen["dW"].variant), *draws])
    _, table = compare_on_test(cfg, "test", test, chosen, controls)
    assert set(table["match"].drop_nulls()) == {"norm:8"}
    assert set(table.filter(pl.col("match").is_null())["method_name"]) == {"base"}
    found = {r["variant"]: r for r in table.iter_rows(named=True)}
    assert found["dW"]["converged"] and found["dW"]["dose_norm"] == pytest.approx(8)
    assert found["random"]["dose_norm"] == pytest.approx(8) and found["random"]["seeds"] == 2
    assert found["zero"]["effect"] == 0 and found["zero"]["converged"] is False
    assert found["say@0"]["converged"] is None and found["say@0"]["kl"] > 0
    lost = found["dead@all"]
    assert (lost["role"], lost["converged"], lost["effect"]) == ("unmatched", False, None)


def test_no_dW_at_the_dose(organism, dW, tmp_path):
    """without any dW there is nothing to measure the others against"""
    session = Session(*organism, load_items(ORGANISM, "validation", 2)[-4:])
    zero = Variant("dW", WeightDelta(scale(0.0, dW)), family="oft")
    with pytest.raises(ValueError, match="brings dW to kl:0.1"):
        choose(options(tmp_path, "kl:0.1"), "test", session, [zero])

"""T14: cosines by hand, controls that control, and what was planted is found."""

from wsrun.script import guarded

import sys
from math import sqrt

import pytest
import torch

from tests.conftest import ROOT, experiment
from wscore import Factored, cosine, norm
from wsrun.report.tables import read_table
from wsrun.study.monitor import EXPECTED, UPDATES, cosines, direction, moved_layers, plant

T14 = experiment("t14_monitor")
NAMES = [f"model.layers.{n}.mlp.{m}_proj.weight" for n in (2, 3, 4) for m in ("up", "down")]


def delta(seed: int, names=NAMES):
    """Gaussian changes of 24 x 16 weights in three layers."""
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(24, 16, generator=random, dtype=torch.float64) for n in names}


def whole(tau, w, draws: int = 20) -> dict:
    """T14's line over all layers of an update along a direction."""
    found = direction([w], draws)
    return next(line for line in cosines(tau, found) if line["layer"] is None)


def test_planted_share_is_its_cosine():
    """cos(r + s w, w) = s / sqrt(1 + s^2) for |r| = |w|, r orthogonal to w; here r is random"""
    tau = plant(delta(0), delta(1), 0.3)
    line = whole(tau, delta(1))
    # cos(r, w) has sd 1/sqrt(2304) = 0.02
    assert line["cosine"] == pytest.approx(0.3 / sqrt(1.09), abs=0.06)
    assert line["detected"] and line["found"] == "towards" and line["p"] == 1 / (1 + line["nulls"])
    assert line["cosine"] == pytest.approx(cosine(tau, delta(1)))
    found = direction([delta(1)], 20)
    by_layer = [x for x in cosines(tau, found) if x["layer"] is not None]
    assert [x["layer"] for x in by_layer] == [2, 3, 4] and all(x["detected"] for x in by_layer)


def test_along_is_the_dose():
    """the update c w is found at dose c, away for c < 0, with cosine +-1"""
    w = delta(1)
    for c in (0.5, -2.0):
        line = whole({n: c * t for n, t in w.items()}, w)
        assert line["along"] == pytest.approx(c) and line["cosine"] == pytest.approx(c / abs(c))
        assert line["found"] == ("towards" if c > 0 else "away")


def test_random_updates_are_found_as_often_as_chance():
    """an update exchangeable with n controls is outside their range once in n + 1 times"""
    found = direction([delta(1)], 20)
    hits = sum(next(cosines(delta(s), found))["detected"] for s in range(100, 130))
    assert hits <= 6  # 22 controls: 1.3 of 30 expected; P(more than 6 of 30 at 1/23) < 0.001


def test_only_common_tensors_count():
    """a cosine is that of the tensors both change; common is their share of |tau|^2"""
    tau, few = delta(0), delta(1, NAMES[:2])
    line = whole(tau, few)
    part = {n: tau[n] for n in NAMES[:2]}
    assert line["cosine"] == pytest.approx(cosine(part, few))
    assert line["common"] == pytest.approx((norm(part) / norm(tau)) ** 2)
    with pytest.raises(ValueError, match="share no tensors"):
        whole(delta(0, NAMES[:2]), delta(1, NAMES[2:]))


def test_moved_layers():
    """both rotations of three layers: w's tensors in their own modules, no one where it was"""
    w = delta(1)
    found = list(moved_layers(w))
    assert len(found) == 2
    for d in found:
        assert set(d) == set(w) and norm(d) == pytest.approx(norm(w))
        assert all(d[n].data_ptr() != w[n].data_ptr() for n in NAMES)
        for module in ("up", "down"):
            own = [n for n in NAMES if module in n]
            assert {d[n].data_ptr() for n in own} == {w[n].data_ptr() for n in own}
    thin = Factored({n: (torch.randn(6, 2), torch.randn(2, 5)) for n in NAMES})
    assert all(isinstance(d, Factored) for d in moved_layers(thin))


def test_t14_on_the_organism(monkeypatch, tmp_path):
    """poles lie on their sides of another seed's direction; the planted update is found"""
    monkeypatch.chdir(ROOT)
    flags = "--families pissa --direction-seeds 1 --out".split()
    monkeypatch.setattr(sys, "argv", ["t14", *flags, str(tmp_path)])
    guarded(T14.main, T14.Config)
    table, meta = read_table(tmp_path / "t14_monitor.parquet")
    of = {
        (r["family"], r["direction"], r["update"]): r
        for r in table.iter_rows(named=True)
        if r["layer"] is None
    }
    assert len(of) == len(UPDATES)
    found = {name: of["pissa", "pissa", name]["found"] for name in EXPECTED}
    assert found == EXPECTED
    assert of["pissa", "pissa", "tau_pos"]["common"] == pytest.approx(1)
    assert set(meta["deltas"]) == {"pissa-s0", "pissa-s1"}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"direction_seeds": (0, 1)}, "must not be made of the fine-tune"),
        ({"direction_seeds": ()}, "needs one value or more"),
        ({"draws": 5}, "at least 20"),
        ({"planted": 0.0}, "must be above 0"),
        ({"families": ("banana",)}, "got 'banana'"),
    ],
)
def test_t14_refuses(change, sentence, tmp_path):
    """options that cannot work end in one sentence"""
    with pytest.raises(ValueError, match=sentence):
        T14.check(T14.Config(out=tmp_path, **change))

"""Factored deltas: the same numbers as whole ones, and the same laws."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as reference_save

import wscore as ws
from wscore import BOTTOM, TOP, Band, Factored
from wscore.families.delora import delora_delta, delora_factors
from wscore.families.lora import lora_delta, lora_factors
from wscore.families.pissa import pissa_change, pissa_delta, pissa_factors

SHAPES = {  # name -> d_out, d_in, rank
    "model.layers.0.self_attn.q_proj.weight": (12, 9, 3),
    "model.layers.0.self_attn.o_proj.weight": (9, 12, 9),
    "model.layers.1.mlp.up_proj.weight": (160, 9, 4),
    "model.layers.1.mlp.down_proj.weight": (150, 160, 5),
    "model.layers.2.mlp.down_proj.weight": (6, 7, 9),  # more columns than the rank can be
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def factored(seed: int, dtype: torch.dtype = torch.float64) -> Factored:
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    return Factored({n: (random(o, r), random(r, i)) for n, (o, i, r) in SHAPES.items()})


def whole(d: Factored) -> ws.Delta:
    """Every product, in float64."""
    return {n: d.factors(n).L.double() @ d.factors(n).R.double() for n in d}


def assert_close(a, b, tolerance: float) -> None:
    """|a - b| <= tolerance max(1, |b|), entry by entry, with the same keys and shapes."""
    assert a.keys() == b.keys()
    for name in b:
        assert a[name].shape == b[name].shape
        gap = float((a[name].double() - b[name].double()).norm())
        assert gap <= tolerance * max(1.0, float(b[name].double().norm())), (name, gap)


OTHER, THIRD = factored(2), factored(3)
WHOLE_BASE = whole(factored(4))
BASIS = ws.shared_basis([whole(OTHER), whole(THIRD)], 2)
HAAR = ws.random_basis({n: torch.ones(o, 2).double() for n, (o, _, _) in SHAPES.items()}, 0)


@dataclass(frozen=True)
class Row:
    """A transform; the laws it obeys beyond those of all, as in test_laws."""

    f: Callable
    stays: bool = True  # a factored delta gives a factored one
    additive: bool = False
    idempotent: bool = False
    odd: bool = True


def other(d) -> ws.Delta | Factored:
    """OTHER in d's dtype, factored or not as d is."""
    dtype = next(iter(d.values())).dtype
    found = factored(2, dtype)
    return found if isinstance(d, Factored) else {n: found[n].to(dtype) for n in found}


TRANSFORMS = {
    "scale": Row(lambda d: ws.scale(-0.3, d), additive=True),
    "add": Row(lambda d: ws.add(d, ws.scale(2, d)), additive=True),
    "add other": Row(lambda d: ws.difference(ws.add(d, other(d)), other(d)), True, True, True),
    "difference": Row(lambda d: ws.difference(d, ws.scale(0.5, d)), additive=True),
    "keep": Row(lambda d: ws.keep(d, BASIS), additive=True, idempotent=True),
    "drop": Row(lambda d: ws.drop(d, BASIS), additive=True, idempotent=True),
    "keep haar": Row(lambda d: ws.keep(d, HAAR), additive=True, idempotent=True),
    "keep its own top": Row(lambda d: ws.keep(d, ws.own_basis(d, 2)), idempotent=True),
    "keep its shared top": Row(lambda d: ws.keep(d, ws.shared_basis([d, other(d)], 2))),
    "subset": Row(lambda d: ws.subset(d, d), True, True, True),
    "crop own": Row(lambda d: ws.crop(d, TOP), stays=False),
    "crop own energy": Row(lambda d: ws.crop(d, Band(0, 0.5, "energy")), stays=False),
    "crop own svds": Row(lambda d: ws.crop(d, TOP, svds=ws.spectra(d)), stays=False),
    "crop_rest own": Row(lambda d: ws.crop_rest(d, TOP), stays=False),
    "crop base": Row(lambda d: ws.crop(d, TOP, "base", WHOLE_BASE), False, True, True),
    "match_norm": Row(lambda d: ws.match_norm(whole(OTHER), d), stays=False, odd=False),
    "gaussian_null": Row(lambda d: ws.gaussian_null(d, seed=3), stays=False, odd=False),
    "spectrum_null": Row(lambda d: ws.spectrum_null(d, seed=3), stays=False, odd=False),
}


def rows(**flags: bool):
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(row, id=name)
            for name, row in TRANSFORMS.items()
            if all(getattr(row, flag) == value for flag, value in flags.items())
        ],
    )


@dtypes
@rows()
def test_factors_give_what_products_give(row: Row, dtype: torch.dtype):
    """f(L R) from the factors = f of the product, within 1e-6 in float32 and 1e-12 in float64."""
    d = factored(1, dtype)
    found = row.f(d)
    assert isinstance(found, Factored) or not row.stays
    assert_close(found, row.f({n: w.to(dtype) for n, w in whole(d).items()}), 3 * TOLERANCE[dtype])
    if row.stays:
        assert all(found[n].dtype == dtype for n in found)


@rows()
def test_laws_of_all_transforms(row: Row):
    """Inputs keep their bits; the same bits again; key order is irrelevant; f(c d) = c f(d)."""
    d = factored(1)
    found = row.f(d)
    torch.manual_seed(99)
    again, turned = row.f(d), row.f(Factored({n: d.factors(n) for n in reversed([*d])}))
    untouched = factored(1)
    for name in d:
        assert torch.equal(again[name], found[name])
        assert all(map(torch.equal, d.factors(name), untouched.factors(name)))
    assert_close(turned, found, 1e-10)
    assert_close(row.f(ws.scale(2.5, d)), ws.scale(2.5, found), 1e-10)


@rows(odd=True)
def test_odd(row: Row):
    """f(-d) = -f(d)."""
    d = factored(1)
    assert_close(row.f(ws.scale(-1, d)), ws.scale(-1, row.f(d)), 1e-10)


@rows(additive=True)
def test_additive(row: Row):
    """f(a + b) = f(a) + f(b)."""
    a, b = factored(1), THIRD
    assert_close(row.f(ws.add(a, b)), ws.add(row.f(a), row.f(b)), 1e-10)


@rows(idempotent=True)
def test_idempotent(row: Row):
    """f(f(d)) = f(d)."""
    once = row.f(factored(1))
    assert_close(row.f(once), once, 1e-10)


@dtypes
def test_numbers_of_factors(dtype: torch.dtype):
    """|d|, <a, b>, cos, energy and geometry are those of the products."""
    a, b = factored(1, dtype), factored(2, dtype)
    A, B = whole(a), whole(b)
    near = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert ws.norm(a) == pytest.approx(ws.norm(A), rel=near)
    scale = ws.norm(A) * ws.norm(B)
    assert ws.inner(a, b) == pytest.approx(ws.inner(A, B), abs=near * scale)
    assert ws.inner(a, B) == pytest.approx(ws.inner(A, B), abs=near * scale)
    assert ws.cosine(a, b) == pytest.approx(ws.cosine(A, B), abs=near)
    assert ws.energy(a, BASIS) == pytest.approx(ws.energy(A, BASIS), rel=10 * near)
    assert ws.geometry(a, b)[:4] == pytest.approx(ws.geometry(A, B)[:4], abs=10 * near)


@dtypes
def test_spectra_of_factors(dtype: torch.dtype):
    """The same rank and singular values, and U S Vt = L R."""
    d = factored(1, dtype)
    for name, (U, S, Vt) in ws.spectra(d).items():
        expected = ws.svd(whole(d)[name])
        assert len(S) == len(expected.S) and S.dtype == dtype
        torch.testing.assert_close(S.double(), expected.S, rtol=TOLERANCE[dtype], atol=0)
        assert_close({name: U * S @ Vt}, {name: expected.U * expected.S @ expected.Vt}, 1e-6)


def test_partitions_stay_exact():
    """keep + drop = d;  <keep, drop> = 0;  |keep|^2 = energy |d|^2;  k = 0 keeps nothing."""
    d = factored(1)
    kept, dropped = ws.keep(d, BASIS), ws.drop(d, BASIS)
    assert_close(ws.add(kept, dropped), d, 1e-12)
    assert abs(ws.inner(kept, dropped)) <= 1e-12 * ws.norm(d) ** 2
    assert ws.norm(kept) ** 2 == pytest.approx(ws.energy(d, BASIS) * ws.norm(d) ** 2)
    none = ws.own_basis(d, 0)
    assert ws.norm(ws.keep(d, none)) == 0 == ws.energy(d, none)
    assert ws.tensors_sha256(ws.drop(d, none)) == ws.tensors_sha256(d)


def test_a_difference_that_cancels():
    """|a - a| = 0, and |(a + t e) - a| = t |e| for t = 1e-9, where squares would lose it all."""
    a, e = factored(1), factored(2)
    assert ws.norm(ws.difference(a, a)) == 0
    assert all(len(x.S) == 0 for x in ws.spectra(ws.difference(a, a)).values())
    tiny = ws.difference(ws.add(a, ws.scale(1e-9, e)), a)
    assert ws.norm(tiny) == pytest.approx(1e-9 * ws.norm(e), rel=1e-5)


def test_union_of_names():
    """A missing side is zero: refused by difference unless told, taken by add and inner."""
    names = list(SHAPES)[:2]
    a, b, ab = (ws.subset(factored(1), some) for some in (names[:1], names[1:], names))
    assert isinstance(a, Factored) and isinstance(ab, Factored)
    with pytest.raises(ValueError, match="1 key only in neg"):
        ws.difference(a, ab)
    both = ws.difference(a, ab, missing="zero")
    assert isinstance(both, Factored)
    assert_close(both, dict(ws.scale(0, a)) | ws.scale(-1, dict(b)), 1e-12)
    assert_close(ws.add(a, ab), dict(ws.scale(2, a)) | dict(b), 1e-12)
    assert_close(ws.add(a, b, disjoint=True), ab, 0)
    assert ws.inner(a, ab) == pytest.approx(ws.inner(a, a))


@pytest.mark.parametrize("f", [ws.inner, ws.cosine, ws.add])
def test_deltas_without_a_common_key_are_refused(f):
    """<a, b> and a + b of deltas that share no key name keys of both, factored or not."""
    a, b = (ws.subset(factored(1), [name]) for name in list(SHAPES)[:2])
    for x, y in ((a, b), (whole(a), whole(b))):
        with pytest.raises(ValueError, match=f"{f.__name__}: 1 key: .* on one side and 1 key: "):
            f(x, y)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(bad: float):
    """NaN in a factor has no norm, no spectrum and no directions: none is 0 or empty."""
    d = Factored({"a": (torch.full((4, 2), bad), torch.ones(2, 3))})
    for f in (ws.norm, ws.spectra, lambda d: ws.own_basis(d, 1), lambda d: ws.inner(d, d),
              lambda d: ws.shared_basis([d, d], 1), lambda d: ws.spectrum_null(d, 0)):  # fmt: skip
        with pytest.raises(ValueError, match="Factored: a factor has|inner: it is"):
            f(d)


def test_shared_basis_reads_factors():
    """The span of the factors' stack is that of the Gram matrix of the products: overlap = 1."""
    a, b = factored(1), factored(2)
    found, expected = ws.shared_basis([a, b], 3), ws.shared_basis([whole(a), whole(b)], 3)
    assert all(v == pytest.approx(1, abs=1e-10) for v in ws.overlap(found, expected).values())
    mixed = ws.shared_basis([a, whole(b)], 3)
    assert all(v == pytest.approx(1, abs=1e-10) for v in ws.overlap(mixed, expected).values())


def test_refusals_of_factored():
    """Factors that do not fit, half precision, deltas of two models, names that are not there."""
    L, R = torch.ones(3, 2), torch.ones(2, 4)
    for bad in ((L, R.T), (L, R.double()), (L.bfloat16(), R.bfloat16()), (L[0], R)):
        with pytest.raises(ValueError, match="Factored: 'a' has factors .*; use"):
            Factored({"a": bad})["a"]
    with pytest.raises(ValueError, match=r"'a' is \[3, 4\] on one side and \[4, 4\]"):
        ws.add(Factored({"a": (L, R)}), Factored({"a": (torch.ones(4, 1), torch.ones(1, 4))}))
    with pytest.raises(ValueError, match="{} is never a delta"):
        ws.norm(Factored({}))
    with pytest.raises(ValueError, match="subset: `names` has 1, 1 of them not in the delta"):
        ws.subset(factored(1), ["x"])
    with pytest.raises(KeyError):
        factored(1)["x"]


# merging ---------------------------------------------------------------------------------------

MODULE = "model.layers.0.mlp.down_proj"
D_OUT, D_IN, RANK = 24, 40, 4


def checkpoint(kind: str, change: float = 1.0):
    """(adapter, config, base) of one module; `change` is how far pissa moved from its start."""
    g = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    W = random(D_OUT, D_IN)
    A, B = random(RANK, D_IN), random(D_OUT, RANK)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6}
    tensors = {"lora_A.weight": A, "lora_B.weight": B}
    if kind == "rslora":
        config["use_rslora"] = True
    elif kind.startswith("pissa"):
        config["init_lora_weights"] = "pissa"
        A0, B0 = pissa_factors(W, RANK, 6 / RANK)
        tensors = {"lora_A.weight": A0 + change * A / 9, "lora_B.weight": B0 + change * B / 9}
        if kind == "pissa stored":
            tensors |= {"lora_A_init.weight": A0, "lora_B_init.weight": B0}
    elif kind == "delora":
        config = {"peft_type": "DELORA", "r": RANK}
        lam, w = torch.tensor([3.0]), W.norm(dim=0)
        tensors = dict(delora_A=A, delora_B=B, delora_lambda=lam, delora_w_norm=w)
    elif kind == "dora":
        config["use_dora"] = True
        tensors["lora_magnitude_vector"] = W.norm(dim=1)
    adapter = {f"base_model.model.{MODULE}.{k}": t for k, t in tensors.items()}
    return adapter, config, {f"{MODULE}.weight": W}


@pytest.mark.parametrize("kind", ["lora", "rslora", "pissa", "pissa stored", "delora"])
def test_merging_to_factors(kind: str):
    """merge_adapter_factored = merge_adapter within 1e-6 of the change's norm, at rank r or 2 r."""
    found = ws.merge_adapter_factored(*checkpoint(kind))
    expected = ws.merge_adapter(*checkpoint(kind))
    assert_close(found, expected, 1e-6)
    name = f"{MODULE}.weight"
    assert float((found[name] - expected[name]).norm() / expected[name].norm()) <= 1e-6
    L, R = found.factors(name)
    assert L.dtype == R.dtype == found[name].dtype == torch.float32
    assert L.shape[1] == RANK * (2 if "pissa" in kind else 1)


def test_a_small_pissa_change_keeps_its_digits():
    """A change a thousandth of the factors' product is still met within 1e-6 of its own norm."""
    merges = ws.merge_adapter_factored, ws.merge_adapter
    found, expected = (f(*checkpoint("pissa stored", 1e-3))[f"{MODULE}.weight"] for f in merges)
    assert float((found - expected).norm() / expected.norm()) <= 1e-6


def test_families_without_factors_are_refused():
    """A change of full rank has no factors."""
    with pytest.raises(ValueError, match="a dora change has no factors; use one of lora, pissa"):
        ws.merge_adapter_factored(*checkpoint("dora"))


def test_the_formulas_in_factors():
    """L R = lora_delta, pissa_delta, delora_delta in float64."""
    g = torch.Generator().manual_seed(6)
    A, A0, B, B0 = (
        torch.randn(s, generator=g, dtype=torch.float64) for s in [(3, 7), (3, 7), (5, 3), (5, 3)]
    )
    lam, w = torch.tensor([0.7]).double(), A0.norm(dim=0)
    for (L, R), expected in [
        (lora_factors(A, B, 1.5), lora_delta(A, B, 1.5)),
        (pissa_change(A, B, 1.5, A0, B0), pissa_delta(A, B, 1.5, A0, B0)),
        (delora_factors(A, B, lam, w), delora_delta(A, B, lam, w)),
    ]:
        torch.testing.assert_close(L @ R, expected, rtol=1e-13, atol=1e-13)


# files -----------------------------------------------------------------------------------------


@dtypes
def test_factors_on_disk(dtype: torch.dtype, tmp_path: Path):
    """load_delta(save_delta(d)) has d's factors bit by bit and its meta; on disk name|L, name|R."""
    d = factored(1, dtype)
    path = ws.save_delta(d, tmp_path / "d.safetensors", {"seed": "0"})
    loaded = ws.load_delta(path)
    assert isinstance(loaded, Factored) and loaded.meta == {"seed": "0"}
    assert set(loaded) == set(d) and len(loaded) == len(d)
    for name in d:
        assert all(map(torch.equal, loaded.factors(name), d.factors(name)))
        assert torch.equal(loaded[name], d[name])
    assert set(load_file(path)) == {f"{n}|{side}" for n in d for side in "LR"}
    assert ws.tensors_sha256(loaded) == ws.tensors_sha256(d) == ws.tensors_sha256(dict(d))
    again = ws.load_delta(ws.save_delta(loaded, tmp_path / "again.safetensors", loaded.meta))
    assert again.meta == loaded.meta
    assert ws.entries_sha256(again) == ws.entries_sha256(loaded)


def test_reading_factors_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An access reads the two factors of that name alone."""
    from wscore.store import LazyDelta

    loaded = ws.load_delta(ws.save_delta(factored(1), tmp_path / "d.safetensors", {}))
    read, get = [], LazyDelta.__getitem__
    monkeypatch.setattr(LazyDelta, "__getitem__", lambda self, n: read.append(n) or get(self, n))
    name = list(SHAPES)[1]
    loaded[name]
    assert set(read) == {f"{name}|L", f"{name}|R"}
    with pytest.raises(KeyError):
        loaded["absent"]


def test_refusals_of_factored_files(tmp_path: Path):
    """Meta that is the format's own; a file that says factored and lacks halves; NaN."""
    d = factored(1)
    with pytest.raises(ValueError, match="is the format's own"):
        ws.save_delta(dict(d), tmp_path / "d.safetensors", {"wscore.factored": "x"})
    path = tmp_path / "odd.safetensors"
    reference_save({"a|L": torch.ones(2, 1)}, path, {"wscore.factored": "x"})
    with pytest.raises(ValueError, match="says it is factored"):
        ws.load_delta(path)
    bad = Factored({"a": (torch.tensor([[torch.nan]]), torch.ones(1, 1))})
    with pytest.raises(ValueError, match=r"'a\|L' has 1 non-finite"):
        ws.save_delta(bad, tmp_path / "nan.safetensors", {})
    assert [p.name for p in tmp_path.iterdir()] == ["odd.safetensors"]


def test_crop_of_an_empty_band():
    """empty="zero": crop = 0 and crop_rest = d, where without it the band is refused."""
    d = {"a": torch.ones(3, 4).double()}  # rank 1
    with pytest.raises(ValueError, match="widen the band"):
        ws.crop(d, BOTTOM)
    assert not ws.crop(d, BOTTOM, empty="zero")["a"].any()
    assert torch.equal(ws.crop_rest(d, BOTTOM, empty="zero")["a"], d["a"])

"""One table of transforms, and every law run over it. A new transform joins by adding one row.

Everything is float64 and compared at 1e-10 of the delta's norm; "the same bits" means torch.equal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wscore as ws
from wscore import BOTTOM, MIDDLE, TOP, Band, Delta

TOLERANCE = 1e-10


def planted(seed: int, dtype: torch.dtype = torch.float64) -> Delta:
    """Weights below, at and far below full rank, wide enough for the range finder, and a bias."""
    g = torch.Generator().manual_seed(seed)

    def low_rank(d_out: int, d_in: int, r: int) -> torch.Tensor:
        B, A = (torch.randn(s, generator=g, dtype=dtype) for s in ((d_out, r), (r, d_in)))
        return B @ A / r**0.5

    return {
        "model.layers.0.self_attn.q_proj.weight": low_rank(12, 9, 3),
        "model.layers.0.self_attn.q_proj.bias": torch.randn(12, generator=g, dtype=dtype),
        "model.layers.0.self_attn.o_proj.weight": low_rank(9, 12, 9),
        "model.layers.1.mlp.up_proj.weight": low_rank(160, 9, 4),
        "model.layers.1.mlp.down_proj.weight": low_rank(150, 160, 5),
    }


D, OTHER, BASE = planted(1), planted(2), planted(3)
RANK = 160  # above every rank in D
OWN, SHARED = ws.own_basis(OTHER, 2), ws.shared_basis([OTHER, BASE], 3)
HAAR = ws.random_basis({n: torch.ones(len(w), 2, dtype=w.dtype) for n, w in D.items()}, seed=0)
BASES = {"own": OWN, "shared": SHARED, "haar": HAAR, "weight": ws.weight_basis(BASE, 2)}
BANDS = [TOP, MIDDLE, BOTTOM, Band(0, 1), Band(0, 0.5, "energy"), Band(0.5, 1, "energy")]
BANDS.append(Band(0, 2, "count"))
CROPS = [
    *(pytest.param(band, {}, id=f"own {band}") for band in BANDS),
    *(pytest.param(band, {"lens": "base", "base": BASE}, id=f"base {band}") for band in BANDS),
]


def reloaded(d: Delta) -> Delta:
    """d after save_delta and load_delta."""
    with TemporaryDirectory() as folder:
        return dict(ws.load_delta(ws.save_delta(d, Path(folder) / "d.safetensors", {})))


@dataclass(frozen=True)
class Row:
    """A transform f: Delta -> Delta, and which laws beyond those of all transforms it obeys."""

    f: Callable[[Delta], Delta]
    additive: bool = False  # f(a + b) = f(a) + f(b)
    idempotent: bool = False  # f(f(d)) = f(d)
    odd: bool = True  # f(-d) = -f(d); the nulls only know |d|
    subset: bool = False  # keeps some of the keys
    entrywise: bool = True  # an entry's image depends on that entry alone


def cropped(b: Band, f=ws.crop, lens="own", **more) -> Callable[[Delta], Delta]:
    return lambda d: f(d, b, lens, BASE if lens == "base" else None, **more)


TRANSFORMS = {
    "scale": Row(lambda d: ws.scale(-0.3, d), additive=True),
    "add": Row(lambda d: ws.add(d, ws.scale(2, d)), additive=True),
    "difference": Row(lambda d: ws.difference(d, ws.scale(0.5, d)), additive=True),
    "check_delta": Row(lambda d: dict(ws.check_delta(d)), additive=True, idempotent=True),
    "select": Row(lambda d: ws.select(d, ws.writes_residual), True, True, subset=True),
    "omit": Row(lambda d: ws.omit(d, ws.layers(0, 1)), True, True, subset=True),
    **{f"keep {k}": Row(lambda d, B=B: ws.keep(d, B), True, True) for k, B in BASES.items()},
    **{f"drop {k}": Row(lambda d, B=B: ws.drop(d, B), True, True) for k, B in BASES.items()},
    "keep its own top": Row(lambda d: ws.keep(d, ws.own_basis(d, 2)), idempotent=True),
    "keep its shared top": Row(
        lambda d: ws.keep(d, ws.shared_basis([d, OTHER], 2, missing="skip")), entrywise=False
    ),
    "crop own": Row(cropped(TOP)),
    "crop own energy": Row(cropped(Band(0, 0.5, "energy"))),
    "crop own top 2": Row(cropped(Band(0, 2, "count"))),
    "crop_rest own": Row(cropped(TOP, ws.crop_rest)),
    "crop base": Row(cropped(TOP, lens="base"), True, True),
    "crop base, given svds": Row(cropped(TOP, lens="base", svds=ws.spectra(BASE)), True, True),
    "crop_rest base": Row(cropped(TOP, ws.crop_rest, "base"), True, True),
    "match_norm": Row(lambda d: ws.match_norm(_like(OTHER, d), d), odd=False),
    "match_norm all": Row(
        lambda d: ws.match_norm(_like(OTHER, d), d, per="all"), odd=False, entrywise=False
    ),
    "gaussian_null": Row(lambda d: ws.gaussian_null(d, seed=3), odd=False),
    "spectrum_null": Row(lambda d: ws.spectrum_null(d, seed=3), odd=False),
    "reloaded": Row(reloaded, True, True),
}


def _like(other: Delta, d: Delta) -> Delta:
    return {name: other[name].to(d[name].dtype) for name in d}


def where(**flags: bool) -> list:
    """The rows of the table with the given flags."""
    return [
        pytest.param(row, id=name)
        for name, row in TRANSFORMS.items()
        if all(getattr(row, flag) == value for flag, value in flags.items())
    ]


def assert_close(a: Delta, b: Delta) -> None:
    """|a - b| <= 1e-10 max(1, |b|), with the same keys."""
    assert a.keys() == b.keys()
    gap = sum(float((a[n] - b[n]).square().sum()) for n in a) ** 0.5
    assert gap <= TOLERANCE * max(1.0, ws.norm(b)), gap


def assert_same_bits(a: Delta, b: Delta) -> None:
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", where())
def test_keys_shapes_and_dtype_are_kept(row: Row, dtype: torch.dtype):
    """f(d) has d's names (a selection: some of them), each with its shape and dtype."""
    d = planted(1, dtype)
    out = row.f(d)
    assert out.keys() < d.keys() if row.subset else out.keys() == d.keys()
    assert all(out[n].shape == d[n].shape and out[n].dtype == dtype for n in out)


@pytest.mark.parametrize("row", where())
def test_inputs_are_untouched(row: Row):
    """d has the same bits after f(d)."""
    d = planted(1)
    row.f(d)
    assert_same_bits(d, D)


@pytest.mark.parametrize("row", where())
def test_same_input_same_bits(row: Row):
    """f(d) twice gives the same bits, whatever the global random state."""
    first = row.f(D)
    torch.manual_seed(99)
    assert_same_bits(row.f(D), first)


@pytest.mark.parametrize("row", where())
def test_key_order_is_irrelevant(row: Row):
    """f(d with its keys reversed) has the same bits."""
    out = row.f(dict(reversed(D.items())))
    assert_same_bits(out, row.f(D)) if row.entrywise else assert_close(out, row.f(D))


@pytest.mark.parametrize("row", where(entrywise=True, subset=False))
def test_other_entries_are_irrelevant(row: Row):
    """f({n: d[n]})[n] = f(d)[n], bit by bit: no entry's image or draw depends on another entry."""
    full = row.f(D)
    for name in D:
        try:
            assert torch.equal(row.f({name: D[name]})[name], full[name])
        except ValueError as error:  # a band may hold no direction of a single rank-1 entry
            assert "widen the band" in str(error)


@pytest.mark.parametrize("c", [2.5, 1e-3])
@pytest.mark.parametrize("row", where())
def test_homogeneous(row: Row, c: float):
    """f(c d) = c f(d) for c > 0."""
    assert_close(row.f(ws.scale(c, D)), ws.scale(c, row.f(D)))


@pytest.mark.parametrize("row", where(odd=True))
def test_odd(row: Row):
    """f(-d) = -f(d)."""
    assert_close(row.f(ws.scale(-1, D)), ws.scale(-1, row.f(D)))


@pytest.mark.parametrize("row", where(additive=True))
def test_additive(row: Row):
    """f(a + b) = f(a) + f(b)."""
    assert_close(row.f(ws.add(D, OTHER)), ws.add(row.f(D), row.f(OTHER)))


@pytest.mark.parametrize("row", where(idempotent=True))
def test_idempotent(row: Row):
    """f(f(d)) = f(d)."""
    assert_close(row.f(row.f(D)), row.f(D))


@pytest.mark.parametrize("basis", BASES)
def test_keep_and_drop_partition(basis: str):
    """keep + drop = d;  <keep, drop> = 0;  |keep|^2 = energy |d|^2."""
    kept, dropped = ws.keep(D, BASES[basis]), ws.drop(D, BASES[basis])
    assert_close(ws.add(kept, dropped), D)
    assert abs(ws.inner(kept, dropped)) <= TOLERANCE * ws.norm(D) ** 2
    assert ws.norm(kept) ** 2 == pytest.approx(ws.energy(D, BASES[basis]) * ws.norm(D) ** 2)


@pytest.mark.parametrize("b, more", CROPS)
def test_crop_and_rest_partition(b: Band, more: dict):
    """crop + crop_rest = d."""
    assert_close(ws.add(ws.crop(D, b, **more), ws.crop_rest(D, b, **more)), D)


@pytest.mark.parametrize("by", ["index", "energy"])
@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_adjacent_bands_partition(n: int, by: Literal["index", "energy"]):
    """sum_j crop(d, [j/n, (j+1)/n)) = d in lens own, by index and by energy; parts orthogonal."""
    bands = [Band(j / n, (j + 1) / n, by) for j in range(n)]
    parts = [ws.add(ws.scale(0, D), _crop_or_zero(D, b)) for b in bands]
    total = parts[0]
    for part in parts[1:]:
        assert abs(ws.inner(total, part)) <= TOLERANCE * ws.norm(D) ** 2
        total = ws.add(total, part)
    assert_close(total, D)


def _crop_or_zero(d: Delta, b: Band) -> Delta:
    """A band so narrow that it holds no direction at all is refused, and counts as zero here."""
    try:
        return ws.crop(d, b)
    except ValueError:
        return ws.scale(0, d)


def test_selection_partitions():
    """select(d, w) and omit(d, w) are disjoint, and together d."""
    for w in (ws.writes_residual, ws.reads_residual, ws.layers(1, 2), ws.projections("q_proj")):
        inside, outside = ws.select(D, w), ws.omit(D, w)
        assert not inside.keys() & outside.keys()
        assert_same_bits(inside | outside, D)


def test_no_columns():
    """k = 0: keep = 0, drop = d, energy = 0."""
    none = ws.own_basis(D, 0)
    assert [tuple(U.shape) for U in none.values()] == [(len(w), 0) for w in D.values()]
    assert_close(ws.keep(D, none), ws.scale(0, D))
    assert_same_bits(ws.drop(D, none), D)
    assert ws.energy(D, none) == 0
    assert all(U.shape[1] == 0 for U in ws.shared_basis([D, OTHER], 0).values())


@pytest.mark.parametrize(
    "basis", [ws.own_basis(D, RANK), ws.weight_basis(D, RANK), ws.shared_basis([D, OTHER], RANK)]
)
def test_full_rank(basis: ws.Basis):
    """k >= rank: keep = d, drop = 0, energy = 1."""
    assert_close(ws.keep(D, basis), D)
    assert_close(ws.drop(D, basis), ws.scale(0, D))
    assert ws.energy(D, basis) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("basis", BASES)
def test_orthonormal(basis: str):
    """U^T U = 1."""
    for U in BASES[basis].values():
        eye = torch.eye(U.shape[1], dtype=U.dtype)
        torch.testing.assert_close(U.T @ U, eye, rtol=0, atol=TOLERANCE)


def test_overlap_of_spans():
    """overlap(a, a) = 1 = overlap(a, part of a); overlap(a, b) = overlap(b, a) in [0, 1]."""
    part = {name: U[:, :1] for name, U in OWN.items()}
    assert all(v == pytest.approx(1) for v in ws.overlap(OWN, OWN).values())
    assert all(v == pytest.approx(1) for v in ws.overlap(OWN, part).values())
    ab, ba = ws.overlap(OWN, HAAR), ws.overlap(HAAR, OWN)
    assert ab == pytest.approx(ba)
    assert all(0 <= v <= 1 for v in ab.values())


def test_nulls_depend_on_seed_and_kind():
    """Another seed, or another kind of null, is another draw."""
    draws = [f(D, s) for f in (ws.gaussian_null, ws.spectrum_null) for s in (0, 1)]
    name = "model.layers.1.mlp.down_proj.weight"
    ones = [{name: d[name]} for d in draws]
    cosines = [ws.cosine(a, b) for a in ones for b in ones if a is not b]
    # two independent random tensors of 24,000 entries: sd of the cosine is at most 1/sqrt(150)
    assert max(map(abs, cosines)) < 0.4


seeds = st.integers(0, 2**32)
scalars = st.floats(-100, 100, allow_nan=False)
quick = settings(max_examples=15, deadline=None)


def small(seed: int) -> Delta:
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 2), "b": (4,)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}


@quick
@given(seeds, seeds, seeds, scalars)
def test_inner_is_an_inner_product(i: int, j: int, k: int, c: float):
    """<a, b> = <b, a>;  <a, b + c e> = <a, b> + c <a, e>;  <a, b>^2 <= <a, a> <b, b>"""
    a, b, e = map(small, (i, j, k))
    assert ws.inner(a, b) == ws.inner(b, a)
    mixed = ws.inner(a, ws.add(b, ws.scale(c, e)))
    assert mixed == pytest.approx(ws.inner(a, b) + c * ws.inner(a, e), abs=1e-9)
    assert ws.inner(a, b) ** 2 <= ws.inner(a, a) * ws.inner(b, b) * (1 + 1e-12)
    assert ws.norm(a) ** 2 == pytest.approx(ws.inner(a, a))
    assert -1 - 1e-12 <= ws.cosine(a, b) <= 1 + 1e-12


@quick
@given(seeds, seeds, scalars, scalars)
def test_dicts_form_a_vector_space(i: int, j: int, c: float, e: float):
    """a + b = b + a;  (a - b) + b = a;  (c + e) a = c a + e a;  c (a + b) = c a + c b"""
    a, b = small(i), small(j)
    assert_same_bits(ws.add(a, b), ws.add(b, a))
    assert_close(ws.add(ws.difference(a, b), b), a)
    assert ws.norm(ws.difference(a, a)) == 0
    assert_close(ws.scale(c + e, a), ws.add(ws.scale(c, a), ws.scale(e, a)))
    assert_close(ws.scale(c, ws.add(a, b)), ws.add(ws.scale(c, a), ws.scale(c, b)))


@quick
@given(seeds, seeds)
def test_union_of_keys(i: int, j: int):
    """A missing side is zero: {a} + {a, b} = {2 a, b}, {a} - {a, b} = {0, -b}, and side by side."""
    a, ab = {"a": small(i)["a"]}, {"a": small(i)["a"], "b": small(j)["b"]}
    b = {"b": ab["b"]}
    assert_same_bits(ws.add(a, ab), ws.scale(2, a) | b)
    assert_same_bits(ws.difference(a, ab, missing="zero"), ws.scale(0, a) | ws.scale(-1, b))
    assert ws.inner(a, ab) == ws.inner(a, a)
    assert_same_bits(ws.add(a, b, disjoint=True), ab)


@quick
@given(seeds, seeds, st.floats(0.1, 10))
def test_geometry_of_a_pair(i: int, j: int, c: float):
    """Every ratio is free of scale; swapping the pair turns the sign of asymmetry and cos_dW_M."""
    a, b = small(i), ws.add(small(i), small(j))
    g, scaled, swapped = (
        ws.geometry(a, b),
        ws.geometry(ws.scale(c, a), ws.scale(c, b)),
        ws.geometry(b, a),
    )
    assert scaled[:4] == pytest.approx(g[:4], abs=1e-9)
    assert swapped[:4] == pytest.approx((g[0], -g[1], g[2], -g[3]), abs=1e-9)
    dW, M = ws.difference(a, b), ws.scale(0.5, ws.add(a, b))
    assert g.norms["dW"] == pytest.approx(ws.norm(dW))
    assert g.cos_dW_M == pytest.approx(ws.cosine(dW, M), abs=1e-9)

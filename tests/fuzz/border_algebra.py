"""The public functions of wscore on odd deltas: the numbers of plain float64 torch, or refused.

Entries are NaN, infinite, tiny, huge, whole, complex, half, of no, three or no-length dimensions;
keys are foreign or no text; k, alpha, bands, seeds and options are odd.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import wscore as ws
from tests.fuzz.cases import ODD_NUMBERS, Border, Case, odd_value
from wscore.files import quoted

SHAPES = {
    "model.layers.0.self_attn.o_proj.weight": (6, 4),
    "model.layers.1.mlp.down_proj.weight": (5, 7),
    "model.layers.1.mlp.down_proj.bias": (5,),
}
KEYS = (*SHAPES, "x", 3, None, "a" * 3000, "\n", "\ud800")
DTYPES = (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float16, torch.bfloat16)
Dense = dict[Any, Tensor]


class Call(NamedTuple):
    """A call, what plain torch says of its result, and the names that a refusal may go by."""

    name: str
    read: Callable[[], Any]
    right: Callable[[Any], bool]


def prepare(folder: Path) -> None:
    """Nothing is shared between cases."""


def entry(rng: random.Random, shape: tuple[int, ...]) -> Any:
    """An entry as it should be, or an odd one."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    w = torch.randn(shape, generator=g, dtype=rng.choice([torch.float32, torch.float64]))
    kind = rng.choice(["", "nan", "inf", "dtype", "shape", "zero", "size", "value"])
    if rng.random() < 0.8 or not kind:
        return w
    if kind in ("nan", "inf"):
        w.view(-1)[rng.randrange(w.numel())] = float(kind)
    if kind == "dtype":
        return w.to(rng.choice(DTYPES))
    if kind == "shape":
        return torch.ones(rng.choice([(), (0,), (0, 4), (2, 3, 4), (4, 6), (5, 1), (1,)]))
    if kind == "value":
        return odd_value(rng)
    return w * {"zero": 0.0, "size": rng.choice([1e-30, 1e30])}.get(kind, 1.0)


def delta(rng: random.Random) -> Any:
    """A delta as it should be, or an odd one; factored now and then."""
    names = rng.sample(list(SHAPES), rng.choice([3, 3, 3, 2, 1]))
    if rng.random() < 0.03:
        return rng.choice([{}, ws.Factored({})])
    if rng.random() < 0.3:
        matrices = [n for n in names if len(SHAPES[n]) == 2] or names
        return ws.Factored({
            n: (entry(rng, (SHAPES[n][0], 2)), entry(rng, (2, SHAPES[n][-1]))) for n in matrices
        })  # fmt: skip
    d = {name: entry(rng, SHAPES[name]) for name in names}
    if rng.random() < 0.1:
        d[rng.choice(KEYS)] = entry(rng, (3, 3))
    return d


def dense(d: Any) -> Dense:
    """The entries in float64."""
    if isinstance(d, ws.Factored):
        return {n: d.factors(n).L.double() @ d.factors(n).R.double() for n in d}
    return {n: w.double() for n, w in d.items()}


def total(a: Any, b: Any, sign: float) -> Dense:
    a, b = dense(a), dense(b)
    zero = {n: torch.zeros_like(w) for n, w in (a | b).items()}
    return {n: a.get(n, zero[n]) + sign * b.get(n, zero[n]) for n in zero}


def near(found: Any, expected: Dense, scale: float = 1.0) -> bool:
    """The same keys, and entries within 1e-4 of the size of what went in.

    NaN and infinities come out where some are due: which of them and where, an order of sums says.
    """
    if set(found) != set(expected):
        return False
    for n, want in expected.items():
        got = found[n]
        due = bool((want.abs() <= torch.finfo(got.dtype).max).all())
        if due != bool(got.isfinite().all()):
            return False
        size = max(float(want.abs().max()), scale) if due and want.numel() else 0.0
        if due and not torch.allclose(got.double(), want, rtol=0, atol=1e-4 * size):
            return False
    return True


def product(a: Any, b: Any) -> float:
    a, b = dense(a), dense(b)
    return sum(float((a[n] * b[n]).sum()) for n in a if n in b)


def length(a: Any) -> float:
    return product(a, a) ** 0.5


def close(found: float, expected: float, size: float) -> bool:
    return abs(found - expected) <= 1e-4 * size


def orthonormal(U: Tensor) -> bool:
    eye = torch.eye(U.shape[1], dtype=torch.float64)
    return bool(((U.double().T @ U.double() - eye).abs() < 1e-4).all())


def bases(rng: random.Random) -> dict[str, Tensor]:
    """Orthonormal columns for every name, or something odd in their place."""
    out = {}
    for name, shape in SHAPES.items():
        k = rng.randrange(shape[0] + 1)
        g = torch.Generator().manual_seed(rng.randrange(99))
        U = torch.randn(shape[0], shape[0], generator=g, dtype=torch.float64)
        out[name] = torch.linalg.qr(U).Q[:, :k].float()
    if rng.random() < 0.2:
        odd = rng.choice(list(SHAPES))
        out[odd] = rng.choice([torch.eye(3), torch.ones(2, 2, 2), torch.eye(6).bool(), 1, None])
    if rng.random() < 0.1:
        del out[rng.choice(list(SHAPES))]
    return out


def projected(d: Any, B: Any) -> Dense:
    return {n: B[n].double() @ (B[n].double().T @ w) for n, w in dense(d).items()}


def not_finite(d: Any) -> bool:
    """Whether NaN or infinities go in: what projects them away makes NaN of them, or not."""
    return not all(bool(w.isfinite().all()) for w in dense(d).values())


def kept_size(d: Any) -> float:
    sizes = [float(w.abs().max()) for w in dense(d).values() if w.numel()]
    return max([x for x in sizes if x < float("inf")], default=1.0)


def integer(rng: random.Random, usual: tuple[int, ...]) -> Any:
    return rng.choice(usual) if rng.random() < 0.7 else rng.choice([*ODD_NUMBERS, 1j, "2", True])


def call(rng: random.Random) -> Call:
    """A random call."""
    a, b, B = delta(rng), delta(rng), bases(rng)
    which = rng.randrange(15)
    if which == 0:
        disjoint = rng.random() < 0.3
        f = partial(ws.add, a, b, disjoint=disjoint)
        shared = disjoint or set(a) & set(b)
        return Call("add", f, lambda r: bool(shared) and near(r, total(a, b, 1)))
    if which == 1:
        missing = rng.choice(["raise", "zero", "zero", "x"])
        f = partial(ws.difference, a, b, missing=missing)
        return Call("difference", f, lambda r: bool(set(a) & set(b)) and near(r, total(a, b, -1)))
    if which == 2:
        alpha = integer(rng, (0, 1, -2, 3))
        want = lambda: {n: float(alpha) * w for n, w in dense(a).items()}  # noqa: E731
        return Call("scale", partial(ws.scale, alpha, a), lambda r: near(r, want()))
    if which == 3:
        f = partial(ws.inner, a, b)
        return Call("inner", f, lambda r: bool(set(a) & set(b))
                    and close(r, product(a, b), length(a) * length(b)))  # fmt: skip
    if which == 4:
        return Call("norm", partial(ws.norm, a), lambda r: close(r, length(a), length(a)))
    if which == 5:
        f = partial(ws.cosine, a, b)
        return Call("cosine", f, lambda r: bool(set(a) & set(b))
                    and close(r, product(a, b) / (length(a) * length(b)), 1))  # fmt: skip
    if which == 6:
        f = partial(ws.match_norm, a, b, rng.choice(["tensor", "all", "x"]))
        return Call("match_norm", f, lambda r: close(length(r), length(b), length(b)))
    if which == 7:
        return Call("keep", partial(ws.keep, a, B),
                    lambda r: not_finite(a) or near(r, projected(a, B), kept_size(a)))  # fmt: skip
    if which == 8:
        return Call("drop", partial(ws.drop, a, B),
                    lambda r: near(r, total(a, projected(a, B), -1), kept_size(a)))  # fmt: skip
    if which == 9:
        return Call("energy", partial(ws.energy, a, B), lambda r: close(
            r, product(projected(a, B), projected(a, B)) / product(a, a), 1))  # fmt: skip
    if which == 10:
        k = integer(rng, (0, 1, 2, 9))
        f = partial(rng.choice([ws.own_basis, ws.weight_basis]), a, k)
        return Call("basis", f, lambda r: set(r) == set(a)
                    and all(orthonormal(U) and U.shape[1] <= k for U in r.values()))  # fmt: skip
    if which == 11:
        k = integer(rng, (1, 2, 9))
        f = partial(ws.shared_basis, [a, b], k, missing=rng.choice(["raise", "skip", "x"]))
        finite = lambda d, n: not not_finite(ws.subset(d, [n]))  # noqa: E731
        return Call("shared_basis", f, lambda r: set(r) == set(a) & set(b) and all(
            orthonormal(U) and U.shape[1] <= k and finite(a, n) and finite(b, n)
            for n, U in r.items()))  # fmt: skip
    if which == 12:
        lo, hi = (integer(rng, x) for x in ((0, 0, 1), (1, 1, 2)))
        band = ws.Band(lo, hi, rng.choice(["index", "count", "energy", "x"]))
        lens = rng.choice(["own", "base"])
        how = dict(band=band, lens=lens, base=b if lens == "base" else None,
                   empty=rng.choice(["raise", "zero", "x"]))  # fmt: skip
        f = lambda: (ws.crop(a, **how), ws.crop_rest(a, **how))  # noqa: E731
        return Call("crop", f, lambda r: near(total(*r, 1), dense(a), kept_size(a)))
    if which == 13:
        f = partial(rng.choice([ws.gaussian_null, ws.spectrum_null]), a, integer(rng, (0, 1)))
        return Call("seed", f, lambda r: close(length(r), length(a), 1e-2 + length(a)))
    return Call("geometry", partial(ws.geometry, a, b, missing=rng.choice(["raise", "zero"])),
                lambda r: close(r.norms["dW"], length(total(a, b, -1)), length(a) + length(b))
                and close(r.cos_anti, -product(a, b) / (length(a) * length(b)), 1))  # fmt: skip


def case(rng: random.Random, folder: Path, prepared: None) -> Case:
    made = call(rng)
    names = (made.name, *SHAPES, *map(quoted, KEYS), "delta:", "Factored:", "base:")
    return Case(made.name, made.read, names, made.right)


BORDER = Border("algebra", prepare, case)

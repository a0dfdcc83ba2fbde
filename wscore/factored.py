"""Deltas too large to hold: kept as factors, or computed one entry at a time.

    Factored({name: (L, R)})[name] = L R
    lazily(f, a, b)[name] = f({name: a[name]}, {name: b[name]})[name]

Both are mappings from name to tensor, made at each access and not kept, so every function of deltas
takes them. Those of low rank (`norm`, `inner`, `svd`, `keep`, ...) work on the factors alone.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor


class Factors(NamedTuple):
    """One weight change of low rank, L R."""

    L: Float[Tensor, "d_out r"]
    R: Float[Tensor, "r d_in"]


class OnDemand(Mapping[str, Tensor]):
    """A delta whose entries are made at each access and not kept."""

    _names: Collection[str]

    def outline(self, name: str) -> Tensor:
        """A tensor without data, of the dtype and shape of self[name]."""
        raise NotImplementedError

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tensors)"


def outline(d: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of the dtype and shape of d[name], without its data where that would cost work."""
    return d.outline(name) if isinstance(d, OnDemand) else d[name]


class Factored(OnDemand):
    """name -> L R. Summed in float64 and rounded once to the factors' dtype, float32 or float64.

    The factors themselves are held, or read from disk at each access where `load_delta` made it.
    """

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]]):
        self._names = self._factors = factors

    def _read(self, name: str) -> tuple[Tensor, Tensor]:
        return self._factors[name]

    def factors(self, name: str) -> Factors:
        """L [d_out, r] and R [r, d_in] of one weight; ValueError where they do not fit."""
        L, R = self._read(name)
        matrices = L.ndim == R.ndim == 2 and L.shape[1] == R.shape[0]
        if not matrices or L.dtype != R.dtype or L.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"Factored: {name!r} has factors {list(L.shape)} {L.dtype} and {list(R.shape)}"
                f" {R.dtype}; use [d_out, r] and [r, d_in], both float32 or both float64"
            )
        return Factors(L, R)

    def __getitem__(self, name: str) -> Tensor:
        L, R = self.factors(name)
        return (L.double() @ R.double()).to(L.dtype)

    def outline(self, name: str) -> Tensor:
        L, R = self.factors(name)
        return torch.empty(L.shape[0], R.shape[1], dtype=L.dtype, device="meta")


def stack(x: Factors, y: Factors, sign: int = 1) -> Factors:
    """x + sign y = [L_x, sign L_y] [R_x; R_y], of rank r_x + r_y."""
    return Factors(torch.cat([x.L, sign * y.L], 1), torch.cat([x.R, y.R]))


def trace(x: Factors, y: Factors) -> float:
    """<x, y> = sum_ij (L_x^T L_y)_ij (R_x R_y^T)_ij, in float64."""
    left = einsum(x.L.double(), y.L.double(), "d_out i, d_out j -> i j")
    right = einsum(x.R.double(), y.R.double(), "i d_in, j d_in -> i j")
    return float((left * right).sum())


class Core(NamedTuple):
    """L R = Q C P^T with orthonormal columns in Q and P; `floor` is what rounding puts in |C|."""

    Q: Float[Tensor, "d_out a"]
    C: Float[Tensor, "a b"]
    P: Float[Tensor, "d_in b"]
    floor: float


def core(x: Factors) -> Core:
    """L = Q T, R^T = P V by thin QR, so C = T V^T is small and |C| = |L R|; all in float64.

    |L R|^2 = tr((L^T L) (R R^T)) too, but squares lose half the digits where columns cancel, as in
    the difference of two adapters that are nearly equal.
    """
    (Q, T), (P, V) = torch.linalg.qr(x.L.double()), torch.linalg.qr(x.R.double().T)
    rounding = torch.finfo(torch.float64).eps * max(1, x.L.shape[1])
    return Core(Q, T @ V.T, P, float(rounding * T.norm() * V.norm()))


def size(x: Factors) -> float:
    """|L R|_F, and 0 where columns cancel to rounding."""
    found = core(x)
    length = float(found.C.norm())
    return length if length > found.floor else 0.0


def lora_factors(A: Tensor, B: Tensor, scale: float) -> Factors:
    """L = s B, R = A: see `lora_delta`."""
    return Factors(scale * B, A)


def pissa_change(A: Tensor, B: Tensor, scale: float, A0: Tensor, B0: Tensor) -> Factors:
    """s (B A - B0 A0) = s (B - B0) A + s B0 (A - A0): see `pissa_delta`.

    Both terms are as small as the change itself. [B, -B0] [A; A0] would be the difference of two
    large products, whose roundings in float32 do not cancel.
    """
    return stack(Factors(scale * (B - B0), A), Factors(scale * B0, A - A0))


def delora_factors(A: Tensor, B: Tensor, lam: Tensor, w_norm: Tensor) -> Factors:
    """L = (lambda/r) b_i/|b_i|, R = a_i/|a_i| diag(w): see `delora_delta`."""
    unit_A = A / A.norm(dim=1, keepdim=True).clamp(min=1e-4)
    unit_B = B / B.norm(dim=0, keepdim=True).clamp(min=1e-4)
    return Factors(lam / len(A) * unit_B, unit_A * w_norm)


def lazily(function: Callable[..., Mapping[str, Tensor]], *deltas: Any, **options: Any) -> "Lazy":
    """The mapping name -> function(*deltas, **options)[name], one entry computed at each access.

    For functions that make each entry from the same entry of their arguments and keep its shape:
    add, difference, scale, keep, drop, crop (with empty="zero"), crop_rest, match_norm per tensor,
    gaussian_null, spectrum_null.

        lazily(difference, pos, neg)    lazily(keep, d, basis=B)    lazily(scale, 0.5, d)

    Deltas go by position and must have the same names, which are those of the result. A basis, base
    weights or svds go by keyword and may have more. Everything else is passed on as it is. The
    result nests, and `save_delta` writes it without holding it.
    """
    return Lazy(function, deltas, options)


class Lazy(OnDemand):
    """What `lazily` returns."""

    def __init__(
        self,
        function: Callable,
        args: tuple[Any, ...],
        options: dict[str, Any],
        names: Iterable[str] | None = None,
    ):
        self._call, self._args, self._options = function, args, options
        self._deltas = [x for x in args if isinstance(x, Mapping)]
        sets = [set(d) for d in self._deltas]
        odd = (
            sorted(map(str, set().union(*sets) - set(sets[0]).intersection(*sets))) if sets else []
        )
        if not any(sets) or odd:
            raise ValueError(
                f"lazily: {len(sets)} deltas by position, {len(odd)} names not in all of them"
                f" {odd[:3]}; pass at least one, all of the same names, and a basis by keyword"
            )
        if "all" in [x for x in (*args, *options.values()) if isinstance(x, str)]:
            raise ValueError(
                'lazily: per="all" is not entry by entry; use scale with norm(like) / norm(d)'
            )
        self._names = dict.fromkeys(self._deltas[0] if names is None else names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        args = (_only(x, name) for x in self._args)
        options = {key: _only(x, name) for key, x in self._options.items()}
        return self._call(*args, **options)[name]

    def outline(self, name: str) -> Tensor:
        first, *others = (outline(d, name) for d in self._deltas)
        dtype = first.dtype
        for other in others:
            dtype = torch.promote_types(dtype, other.dtype)
        return torch.empty(first.shape, dtype=dtype, device="meta")


def only(d: Mapping[str, Tensor], names: Iterable[str]) -> OnDemand:
    """d without its other entries, as factors where d has them and else read at each access."""
    names = dict.fromkeys(names)
    lacking = [name for name in names if name not in d]
    if lacking or not names:
        raise ValueError(
            f"only: {len(names)} names, {len(lacking)} of them not in the delta {lacking[:3]};"
            " pick at least one, of the delta's own"
        )
    if isinstance(d, Factored):
        return Factored({name: d.factors(name) for name in names})
    return Lazy(dict, (d,), {}, names)


def _only(x: Any, name: str) -> Any:
    """A mapping without its other entries; anything else as it is."""
    if isinstance(x, Factored):
        return Factored({name: x.factors(name)} if name in x else {})
    if isinstance(x, Mapping):
        return {name: x[name]} if name in x else {}
    return x

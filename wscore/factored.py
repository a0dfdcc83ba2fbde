"""Deltas whose entries are made when they are read: kept as factors, or left on disk.

    Factored({name: (L, R)})[name] = L R

A mapping from name to tensor, so every function of deltas takes it. Those of low rank (`norm`,
`inner`, `svd`, `keep`, ...) work on the factors alone.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from math import isfinite
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from wscore.files import quoted


class Factors(NamedTuple):
    """One weight change of low rank, L R."""

    L: Float[Tensor, "d_out r"]
    R: Float[Tensor, "r d_in"]


class OnDemand(Mapping[str, Tensor]):
    """A delta whose entries are made at each access and not kept."""

    _names: Collection[str]

    def _meta(self, name: str) -> Tensor:
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


def meta(d: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of the dtype and shape of d[name], without its data where that would cost work."""
    return d._meta(name) if isinstance(d, OnDemand) else d[name]


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
        if not (isinstance(L, Tensor) and isinstance(R, Tensor) and isinstance(name, str)):
            kinds = f"a {type(L).__name__} and a {type(R).__name__}"
            raise ValueError(f"Factored: {quoted(name)} has {kinds}; use a text and two tensors")
        matrices = L.ndim == R.ndim == 2 and L.shape[1] == R.shape[0]
        if not matrices or L.dtype != R.dtype or L.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"Factored: {quoted(name)} has factors {list(L.shape)} {L.dtype} and"
                f" {list(R.shape)} {R.dtype}; use [d_out, r] and [r, d_in], both float32 or both"
                " float64"
            )
        return Factors(L, R)

    def __getitem__(self, name: str) -> Tensor:
        L, R = self.factors(name)
        return (L.double() @ R.double()).to(L.dtype)

    def _meta(self, name: str) -> Tensor:
        L, R = self.factors(name)
        return torch.empty(L.shape[0], R.shape[1], dtype=L.dtype, device="meta")


class Subset(OnDemand):
    """Some entries of a delta, read at each access."""

    def __init__(self, d: Mapping[str, Tensor], names: Collection[str]):
        self._whole, self._names = d, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self._whole[name]

    def _meta(self, name: str) -> Tensor:
        return meta(self._whole, name)


def subset(d: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """d without its other entries, nothing copied: factors where d has them, on disk where d is."""
    names = dict.fromkeys(names)
    lacking = [name for name in names if name not in d]
    if lacking or not names:
        raise ValueError(
            f"subset: `names` has {len(names)}, {len(lacking)} of them not in the delta"
            f" {quoted(lacking[:3], 300)}; pick at least one, of the delta's own"
        )
    if isinstance(d, Factored):
        return Factored({name: d.factors(name) for name in names})
    return {name: d[name] for name in names} if isinstance(d, dict) else Subset(d, names)


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
    the difference of two adapters that are nearly equal. Raises ValueError for NaN and infinities,
    of which LAPACK makes anything.
    """
    (Q, T), (P, V) = torch.linalg.qr(x.L.double()), torch.linalg.qr(x.R.double().T)
    rounding = torch.finfo(torch.float64).eps * max(1, x.L.shape[1])
    floor = float(rounding * T.norm() * V.norm())
    if not isfinite(floor):
        raise ValueError("Factored: a factor has NaN, infinite or too large entries; omit it")
    return Core(Q, T @ V.T, P, floor)


def size(x: Factors) -> float:
    """|L R|_F, and 0 where columns cancel to rounding."""
    small = core(x)
    length = float(small.C.norm())
    return length if length > small.floor else 0.0

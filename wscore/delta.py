"""Deltas and their algebra: plain functions on dicts of tensors, dict in and dict out.

A delta maps a parameter name, as in `model.state_dict()`, to the change of that parameter:
[d_out, d_in] for a weight, [d_out] for a bias, float32 (float64 is kept when given). Every function
reads one entry at a time, so any lazily loaded mapping will do, and none changes its inputs.
"""

from collections.abc import Mapping
from functools import reduce
from math import hypot, isfinite, sqrt
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.entries import (
    check_shared,
    entries,
    entry,
    factor_pairs,
    format_keys,
    nonempty,
    number,
    pairs,
)
from wscore.factored import Factored, size, stack, trace
from wscore.files import quoted

Delta = dict[str, Tensor]
"""parameter name -> change of that weight, [d_out, d_in] or [d_out]"""
DeltaLike = Mapping[str, Tensor]
"""a delta, whether its entries are held, kept as factors (`Factored`), or made at each access"""
Basis = dict[str, Tensor]
"""parameter name -> orthonormal columns, [d_out, k]"""


def scale(alpha: float | int, d: Mapping[str, Tensor]) -> Delta | Factored:
    """alpha * d, entry by entry; (alpha L) R where d is factored.

    Raises ValueError for an alpha that is not a finite number.
    """
    alpha = number(alpha, "scale: alpha")
    if isinstance(d, Factored):
        return Factored({n: (alpha * d.factors(n).L, d.factors(n).R) for n in nonempty(d)})
    return {name: alpha * w for name, w in entries(d)}


def add(*deltas: Mapping[str, Tensor], disjoint: bool = False) -> Delta | Factored:
    """a + b + .. over the union of keys; a missing side is zero. add(a, scale(-1, a)) = 0.

    Factored deltas give [L_a, L_b, ..] [R_a; R_b; ..]. A delta that shares no key with any other
    is refused, as it is seldom of the same model; parts that lie apart add up with disjoint=True:
    add(select(d, w), omit(d, w), disjoint=True) = d.
    """
    if not deltas:
        raise ValueError("add: got no deltas; pass at least one")
    if not disjoint:
        check_shared("add", *deltas, remedy="pass disjoint=True for parts that lie apart")
    factored = [d for d in deltas if isinstance(d, Factored)]
    if len(factored) == len(deltas):
        return reduce(_add_factored, factored)
    first, *others = deltas
    return dict(reduce(_add, others, first) if others else entries(first))


def _add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: x + y for name, x, y in pairs(a, b)}


def _add_factored(a: Factored, b: Factored) -> Factored:
    return Factored({name: stack(x, y) for name, x, y in factor_pairs(a, b)})


Missing = Literal["raise", "zero"]
SAME_MODEL = "both deltas must belong to the same model, under its own names"


def difference(
    pos: Mapping[str, Tensor], neg: Mapping[str, Tensor], *, missing: Missing = "raise"
) -> Delta | Factored:
    """dW = tau_pos - tau_neg over the union of keys; a missing side is zero only when told.

    add(difference(pos, neg), neg) = pos (Fierro & Roger 2025, arXiv 2511.05408). Two factored
    deltas give [L_pos, -L_neg] [R_pos; R_neg], of rank r_pos + r_neg. Raises ValueError where keys
    differ, and with missing="zero" where none is shared.
    """
    _same_targets(pos, neg, missing, "difference")
    if isinstance(pos, Factored) and isinstance(neg, Factored):
        return Factored({name: stack(x, y, -1) for name, x, y in factor_pairs(pos, neg)})
    return {name: x - y for name, x, y in pairs(pos, neg)}


def _same_targets(
    pos: Mapping[str, Tensor], neg: Mapping[str, Tensor], missing: str, what: str
) -> None:
    """Two adapters that touched different targets are seldom meant to be subtracted."""
    if missing not in ("raise", "zero"):
        raise ValueError(f'{what}: missing={quoted(missing)} is unknown; use "raise" or "zero"')
    if missing == "zero":
        check_shared(what, pos, neg, remedy=SAME_MODEL)
    for side, only in (("pos", set(pos) - set(neg)), ("neg", set(neg) - set(pos))):
        if only and missing == "raise":
            count, _, rest = format_keys(only).partition(":")
            raise ValueError(
                f"{what}: {count} only in {side}:{rest}; train both adapters on the same"
                ' target_modules, or pass missing="zero"'
            )


def dot(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> float:
    """sum_ij x_ij y_ij in float64: products of float32 entries are then exact."""
    return torch.dot(x.double().flatten(), y.double().flatten()).item()


def length(w: Float[Tensor, "..."]) -> float:
    """|w|_F in float64, which neither overflows nor underflows on squares of float32 entries."""
    return torch.linalg.vector_norm(w, dtype=torch.float64).item()


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """<a, b> = sum over names and entries of a * b; a missing key contributes 0.

    Raises ValueError for deltas that share no key, and for NaN and infinities.
    """
    check_shared("inner", a, b, remedy=SAME_MODEL)
    if isinstance(a, Factored) and isinstance(b, Factored):
        return finite("inner", sum(trace(x, y) for _, x, y in factor_pairs(a, b)))
    return finite("inner", sum(dot(x, y) for _, x, y in pairs(a, b)))


def norm(d: Mapping[str, Tensor]) -> float:
    """|d| = sqrt(<d, d>), the Frobenius norm over all entries."""
    return hypot(*(entry_norm(d, name) for name in nonempty(d)))


def entry_norm(d: Mapping[str, Tensor], name: str) -> float:
    """|d[name]|_F, of a factored delta without expanding it; ValueError for NaN and infinities."""
    factored = isinstance(d, Factored)
    value = size(d.factors(name)) if factored else length(entry(d, name))
    return finite(f"norm of {quoted(name)}", value)


def finite(what: str, value: float) -> float:
    """value itself; ValueError, opening with `what`, for NaN and infinities."""
    if not isfinite(value):
        raise ValueError(
            f"{what}: it is {value}, so an entry is NaN, infinite or too large; check the training"
        )
    return value


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """cos(a, b) = <a, b> / (|a| |b|); ValueError as `inner`, and for a zero delta."""
    check_shared("cosine", a, b, remedy=SAME_MODEL)
    lengths = norm(a), norm(b)
    if not all(lengths):
        raise ValueError(f"cosine: the norms are {lengths}, and a zero delta has no direction")
    return inner(a, b) / (lengths[0] * lengths[1])


class Geometry(NamedTuple):
    """How the two adapters of a pair lie to each other; see `geometry`."""

    cos_anti: float
    asymmetry: float
    common_over_difference: float
    cos_dW_M: float
    norms: dict[str, float]


def geometry(
    pos: Mapping[str, Tensor],
    neg: Mapping[str, Tensor],
    *,
    missing: Literal["raise", "zero"] = "raise",
) -> Geometry:
    """With M = (tau_pos + tau_neg)/2, the common drift, and dW = tau_pos - tau_neg:

    cos_anti               = cos(tau_pos, -tau_neg)           1 when the two are exact opposites
    asymmetry              = (|tau_pos| - |tau_neg|) / (|tau_pos| + |tau_neg|)
    common_over_difference = |M| / |dW|                       0 when nothing is common to both
    cos_dW_M               = cos(dW, M)                       0 when M = 0
    norms                  = |tau_pos|, |tau_neg|, |dW|, |M|  as pos, neg, dW, M

    Raises ValueError as `difference`, and where one of the first three norms is 0 or not finite.
    """
    _same_targets(pos, neg, missing, "geometry")
    p, n, dW, M, pn, dWM = map(sum, zip(*(_sums(x, y) for _, x, y in pairs(pos, neg)), strict=True))
    norms = dict(pos=sqrt(p), neg=sqrt(n), dW=sqrt(dW), M=sqrt(M))
    finite("geometry", hypot(*norms.values()))
    if not (p and n and dW):
        raise ValueError(f"geometry: norms are {norms}; pos, neg and dW must all be non-zero")
    return Geometry(
        cos_anti=-pn / (norms["pos"] * norms["neg"]),
        asymmetry=(norms["pos"] - norms["neg"]) / (norms["pos"] + norms["neg"]),
        common_over_difference=norms["M"] / norms["dW"],
        cos_dW_M=dWM / (norms["dW"] * norms["M"]) if M else 0.0,
        norms=norms,
    )


def _sums(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> tuple[float, ...]:
    """One entry's share of |pos|^2, |neg|^2, |dW|^2, |M|^2, <pos, neg>, <dW, M>."""
    p, n = x.double(), y.double()
    dW, M = p - n, (p + n) / 2
    return dot(p, p), dot(n, n), dot(dW, dW), dot(M, M), dot(p, n), dot(dW, M)

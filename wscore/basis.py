"""Bases: per parameter name, orthonormal columns [d_out, k] that span output directions.

All of them describe the left side of a weight change, what it writes, and are used by `keep` and
`drop` (project.py).
"""

from collections.abc import Iterable, Mapping
from math import hypot
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Basis, entry_norm, finite
from wscore.entries import allowed, columns, entries, entry, format_keys, metas, nonempty, whole
from wscore.factored import Factored, core, meta
from wscore.files import quoted
from wscore.null import haar, stream
from wscore.spectrum import TOL, find_range, svd_of


def own_basis(d: Mapping[str, Tensor], k: int) -> Basis:
    """U[:, :k] of dW = U S V^T: top-k left singular vectors, fewer where the rank is lower."""
    k = whole(k, "own_basis: k", 0)
    return {name: svd_of(d, name).U[:, :k].contiguous() for name, _ in metas(d)}


def weight_basis(base: Mapping[str, Tensor], k: int) -> Basis:
    """U0[:, :k] of W0 = U0 S0 V0^T: own_basis of base weights, half precision read as float32."""
    k = whole(k, "weight_basis: k", 0)
    return {name: svd_of(base, name).U[:, :k].contiguous() for name in nonempty(base)}


def random_basis(like: Mapping[str, Float[Tensor, "_ _"]], seed: int) -> Basis:
    """Haar-random orthonormal columns, of the shape [d_out, k] of each entry of `like`."""
    return {
        name: haar(*_basis_shape(name, U), U, stream(seed, f"basis/{name}"))
        for name, U in entries(like)
    }


def _basis_shape(name: str, U: Tensor) -> tuple[int, int]:
    if U.ndim != 2 or U.shape[1] > U.shape[0]:
        raise ValueError(
            f"random_basis: {quoted(name)} is {list(U.shape)}; pass a basis, [d_out, k] with"
            " k <= d_out"
        )
    return U.shape[0], U.shape[1]


def shared_basis(
    deltas: Iterable[Mapping[str, Tensor]],
    k: int,
    *,
    missing: Literal["raise", "skip"] = "raise",
) -> Basis:
    """Top-k eigenvectors of G = sum_f dW_f dW_f^T / |delta_f|^2, for each parameter name.

    They are the top-k left singular vectors of the stack [dW_1/|delta_1|, dW_2/|delta_2|, ...],
    which is never built. |delta_f| is the norm of the whole delta over the names in use, so each
    delta enters with unit norm and keeps its own distribution over parameters. The names are those
    common to all deltas; others are refused, or with missing="skip" left out.

    A Gram matrix squares the singular values s and with them the condition number, so G is float64:
    products of float32 entries are exact in it, and squares down to TOL^2 = 1e-12 of the whole stay
    above its rounding. Directions with s <= TOL |stack|_F do not count: fewer columns than k where
    the rank is lower.
    """
    k = whole(k, "shared_basis: k", 0)
    deltas = list(deltas)
    names = _common(deltas, missing)
    for name in names:
        _same_rows(name, [allowed(name, meta(d, name)) for d in deltas])
    lengths = [hypot(*(entry_norm(d, name) for name in names)) for d in deltas]
    if not all(lengths):
        raise ValueError(f"shared_basis: norms are {lengths}; drop the zero deltas")
    return {name: _top(name, deltas, lengths, k) for name in names}


def _common(deltas: list[Any], missing: str) -> list[str]:
    """The names in every delta, in the first one's order."""
    odd = {type(d).__name__ for d in deltas if not isinstance(d, Mapping)}
    if not deltas or odd or missing not in ("raise", "skip"):
        raise ValueError(
            f"shared_basis: {len(deltas)} {'/'.join(odd) or 'deltas'} with"
            f" missing={quoted(missing)};"
            ' pass a list of at least one delta, and missing="raise" or "skip"'
        )
    common = set(deltas[0]).intersection(*deltas[1:])
    odd = set().union(*deltas) - common
    if not common or (odd and missing == "raise"):
        raise ValueError(
            f"shared_basis: {format_keys(odd)} not in every delta, {len(common)} in all; select the"
            ' same targets from each first, or pass missing="skip" to use the common ones'
        )
    return [name for name in deltas[0] if name in common]


def _same_rows(name: str, entries: list[Tensor]) -> None:
    if len({len(w) for w in entries}) > 1:
        raise ValueError(
            f"shared_basis: {quoted(name)} has {', '.join(str(len(w)) for w in entries[:9])} rows;"
            " all deltas must belong to the same model"
        )


def _top(
    name: str, deltas: list[Mapping[str, Tensor]], lengths: list[float], k: int
) -> Float[Tensor, "d_out _"]:
    """Top-k left singular vectors of the stack at one name, none from its numerical null space.

    Factored deltas have a narrow stack, whose SVD is cheaper than the Gram matrix and squares
    nothing.
    """
    like = meta(deltas[0], name)
    factors = (_left_factor(d, name) / size for d, size in zip(deltas, lengths, strict=True))
    if all(isinstance(d, Factored) for d in deltas):
        vectors, S, _ = torch.linalg.svd(torch.cat([*factors], 1), full_matrices=False)
        values = S.square()
    else:
        G = sum(einsum(F, F, "i s, j s -> i j") for F in factors)
        values, vectors = (x.flip(-1) for x in torch.linalg.eigh(G))
    k = min(k, int((values > TOL**2 * values.sum()).sum()))
    return vectors[:, :k].to(like.dtype).contiguous()


def _left_factor(d: Mapping[str, Tensor], name: str) -> Float[Tensor, "d_out s"]:
    """F with F F^T = W W^T in float64: W itself, or narrow factors where W has low rank."""
    if isinstance(d, Factored):
        Q, C, _, _ = core(d.factors(name))  # W = Q C P^T
        return Q @ C
    W = columns(d[name])
    Q = find_range(W)  # W = Q (Q^T W) = Q L^T P^T
    F = W if Q is None else Q @ torch.linalg.qr((Q.T @ W).T, mode="r").R.T
    return F.double()


def overlap(
    a: Mapping[str, Float[Tensor, "_ _"]], b: Mapping[str, Float[Tensor, "_ _"]]
) -> dict[str, float]:
    """|A^T B|_F^2 / min(k_a, k_b), per name: the mean squared cosine of the principal angles.

    1 when one span holds the other, 0 when they are orthogonal, max(k_a, k_b)/d_out on average for
    random spans.
    """
    if odd := set(a) ^ set(b):
        raise ValueError(f"overlap: {format_keys(odd)} in one basis only; select the same targets")
    return {name: _overlap(name, A, entry(b, name)) for name, A in entries(a)}


def _overlap(name: str, A: Tensor, B: Tensor) -> float:
    if A.ndim != 2 or B.ndim != 2 or len(A) != len(B) or A.dtype != B.dtype:
        raise ValueError(
            f"overlap: at {quoted(name)} one basis is {list(A.shape)} {A.dtype} and the other"
            f" {list(B.shape)} {B.dtype}; use two bases [d_out, k] of one dtype"
        )
    if not (k := min(A.shape[1], B.shape[1])):
        raise ValueError(
            f"overlap: a basis of {quoted(name)} has no columns, so no angles; use k >= 1"
        )
    cosines = einsum(A, B, "d_out k_a, d_out k_b -> k_a k_b").double()
    return finite(f"overlap at {quoted(name)}", cosines.square().sum().item()) / k

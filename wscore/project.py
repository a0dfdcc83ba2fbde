"""Projection of a delta onto the output directions of a basis: keep + drop = d."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from wscore.delta import Delta, finite, length, norm
from wscore.entries import entries, format_keys, nonempty, weight
from wscore.factored import Factored
from wscore.files import quoted


def keep(d: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> Delta | Factored:
    """U U^T dW: the part of dW that writes inside span(U); keep + drop = d, keep(keep) = keep.

    A factored dW = L R stays factored: U (U^T L) R.
    """
    if isinstance(d, Factored):
        return Factored({n: (part, d.factors(n).R) for n, _, part in _parts(d, basis, "keep")})
    return {name: part for name, _, part in _parts(d, basis, "keep")}


def drop(d: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> Delta | Factored:
    """dW - U U^T dW: the part of dW that writes outside span(U), the partner of `keep`.

    A factored dW = L R stays factored: (L - U U^T L) R.
    """
    if isinstance(d, Factored):
        return Factored({n: (L - part, d.factors(n).R) for n, L, part in _parts(d, basis, "drop")})
    return {name: w - part for name, w, part in _parts(d, basis, "drop")}


def energy(d: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> float:
    """|keep(d)|_F^2 / |d|_F^2 over all entries together: about k/d_out for a random basis."""
    inside = total = 0.0
    if isinstance(d, Factored):
        inside, total = norm(keep(d, basis)) ** 2, norm(d) ** 2
    else:
        for _, w, part in _parts(d, basis, "energy"):
            inside, total = inside + length(part) ** 2, total + length(w) ** 2
    if not total:
        raise ValueError("energy: the delta is zero, so it has no shares; check how it was made")
    return finite("energy", inside / total)


def _parts(
    d: Mapping[str, Tensor], basis: Mapping[str, Tensor], what: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, dW, U U^T dW), for matrices and biases; of a factored dW = L R, with L for dW."""
    if lacking := [name for name in d if name not in basis]:
        raise ValueError(
            f"{what}: `basis` lacks {format_keys(lacking)}; select the entries the basis was made"
            " for, or make one for them too"
        )
    factored = isinstance(d, Factored)
    for name, w in ((n, d.factors(n).L) for n in nonempty(d)) if factored else entries(d):
        U = weight(basis, name).to(w.dtype)
        if U.ndim != 2 or U.shape[0] != w.shape[0]:
            raise ValueError(
                f"{what}: `basis` is {list(U.shape)} at {quoted(name)} and the entry"
                f" {list(w.shape)}; a basis is [d_out, k] with the entry's own d_out"
            )
        yield name, w, U @ (U.T @ w)

"""Projection of a delta onto the output directions of a basis: keep + drop = d."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from wscore.delta import Delta, entries, length, some


def keep(d: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> Delta:
    """U U^T dW: the part of dW that writes inside span(U); keep + drop = d, keep(keep) = keep."""
    return {name: part for name, _, part in _parts(d, basis)}


def drop(d: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> Delta:
    """dW - U U^T dW: the part of dW that writes outside span(U), the partner of `keep`."""
    return {name: w - part for name, w, part in _parts(d, basis)}


def energy(d: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> float:
    """|keep(d)|_F^2 / |d|_F^2 over all entries together: about k/d_out for a random basis."""
    inside = total = 0.0
    for _, w, part in _parts(d, basis):
        inside, total = inside + length(part) ** 2, total + length(w) ** 2
    if not total:
        raise ValueError("energy: the delta is zero, so it has no shares; check how it was made")
    return inside / total


def _parts(
    d: Mapping[str, Tensor], basis: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, dW, U U^T dW), for matrices and for biases."""
    if lacking := [name for name in d if name not in basis]:
        raise ValueError(
            f"project: {some(lacking)} not in the basis; select the entries the basis was made for,"
            " or make one for them too"
        )
    for name, w in entries(d):
        U = basis[name].to(w.dtype)
        if U.ndim != 2 or U.shape[0] != w.shape[0]:
            raise ValueError(
                f"project: the basis of {name!r} is {list(U.shape)} and the entry {list(w.shape)};"
                " a basis is [d_out, k] with the entry's own d_out"
            )
        yield name, w, U @ (U.T @ w)

"""Subspaces of the output side (T6): keep U U^T dW, drop dW - U U^T dW, with U [d_out, k] a tensor.

shared       top directions of OTHER deltas, each with unit norm: other families of the same seed
             (shared), the family's other seeds (seeds), other families of other seeds (across)
shared_incl  those of the same seed with this one among them
own          the delta's own top directions
random       Haar directions, as many as shared has; raw, and with the norm of the shared part
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from statistics import fmean
from typing import Any

from wscore import (
    Basis,
    DeltaLike,
    difference,
    drop,
    keep,
    match_norm,
    overlap,
    own_basis,
    random_basis,
    shared_basis,
    subset,
)
from wscore.factored import meta
from wsrun.lenses.base import Cut, Deltas, Key, LensInput


def shared(at: LensInput) -> Iterator[Cut]:
    """keep_<kind>, drop_<kind> for each kind of other deltas that the run has."""
    for k in at.K:
        for kind in other_deltas(at):
            yield projection(at, kind, k, partial(directions, at, kind, k))


def shared_incl(at: LensInput) -> Iterator[Cut]:
    """The shared subspace with the delta itself in the stack: what leaving it out costs."""
    for k in at.K:
        yield projection(at, "shared_incl", k, partial(directions, at, "shared_incl", k))


def own(at: LensInput) -> Iterator[Cut]:
    """The delta's own top directions, and their overlap with those of the other deltas."""
    for k in at.K:
        basis = partial(own_directions, at, k)
        yield projection(at, "own", k, basis, measure=partial(overlaps, at, k))


def random(at: LensInput) -> Iterator[Cut]:
    """keep_random and keep_random_matched: a subspace that knows nothing of any delta."""
    for k in at.K:
        yield projection(at, "random", k, partial(_random, at, k), roles=("keep",))
        kept = partial(_matched, at, k)
        rest = partial(_without, at, kept)
        facts = _share_of_width(at, k)
        yield Cut("random_matched", kept, rest, k, roles=("keep",), facts=facts)


def projection(at: LensInput, name: str, k: int, basis: Callable[[], Basis], **more: Any) -> Cut:
    """kept = U U^T dW, rest = dW - U U^T dW, with U of basis()."""
    kept, rest = (lambda: keep(at.dW, basis())), (lambda: drop(at.dW, basis()))
    return Cut(name, kept, rest, k, facts=_share_of_width(at, k), **more)


def _share_of_width(at: LensInput, k: int) -> dict[str, float]:
    width = min(meta(at.dW, name).shape[0] for name in at.dW)
    if k > width:
        raise ValueError(f"lens: K must be at most d_model = {width}, got {k}; lower --K")
    return {"k_over_d": k / width}


def other_deltas(at: LensInput) -> dict[str, list[DeltaLike]]:
    """kind -> the deltas its subspace comes from, on this one's tensors.

    A delta that lacks some of the tensors is left out.
    """
    names = list(at.dW)
    by_kind: dict[str, list[DeltaLike]] = {"shared": [], "seeds": [], "across": []}
    for (family, seed), d in at.deltas.items():
        if (family, seed) != (at.family, at.seed) and all(n in d for n in names):
            kind = "across" if family != at.family else "seeds"
            by_kind["shared" if seed == at.seed else kind].append(subset(d, names))
    if not by_kind["shared"]:
        raise ValueError(
            f"lens: no other family changes all tensors of {at.family}; add --families"
        )
    return {kind: deltas for kind, deltas in by_kind.items() if deltas}


def directions(at: LensInput, kind: str, k: int) -> Basis:
    """The top k directions of a kind of stack, fewer where its rank is lower."""
    return first_columns(_stacked(at, kind), k)


@lru_cache(maxsize=4)
def _stacked(at: LensInput, kind: str) -> Basis:
    """The directions of the largest K, of which smaller ones take the first."""
    included = [at.dW] if kind == "shared_incl" else []
    others = other_deltas(at)["shared" if included else kind]
    return shared_basis([*others, *included], max(at.K))


def own_directions(at: LensInput, k: int, key: Key | None = None) -> Basis:
    """The top k output directions of a delta of the run, this one's where no key is given."""
    return first_columns(_owns(at.deltas, max(at.K))[key or (at.family, at.seed)], k)


@lru_cache(maxsize=1)
def _owns(deltas: Deltas, k: int) -> dict[Key, Basis]:
    return {key: own_basis(d, k) for key, d in deltas.items()}


def first_columns(basis: Basis, k: int) -> Basis:
    return {name: U[:, :k].contiguous() for name, U in basis.items()}


def _random(at: LensInput, k: int) -> Basis:
    return random_basis(directions(at, "shared", k), at.seed)


def _matched(at: LensInput, k: int) -> DeltaLike:
    part = keep(at.dW, directions(at, "shared", k))
    return match_norm(keep(at.dW, _random(at, k)), part)


def _without(at: LensInput, kept) -> DeltaLike:
    return difference(at.dW, kept())


def overlaps(at: LensInput, k: int) -> dict[str, float | None]:
    """Mean overlap of the own top k directions with those of other families of the seed (overlap)
    and with those of the family's other seeds (overlap_seeds), over deltas and tensors.

    overlap_random is what random subspaces of these sizes have on average: E = k / d_out.
    """
    mine = own_directions(at, k)
    by_column: dict[str, list[float]] = {"overlap": [], "overlap_seeds": []}
    for family, seed in at.deltas:
        other = own_directions(at, k, (family, seed))
        if seed == at.seed and family != at.family:
            by_column["overlap"] += _overlaps(mine, other)
        elif family == at.family and seed != at.seed:
            by_column["overlap_seeds"] += _overlaps(mine, other)
    chance = fmean(U.shape[1] / U.shape[0] for U in mine.values())
    return {name: _mean(values) for name, values in by_column.items()} | {"overlap_random": chance}


def _overlaps(a: Basis, b: Basis) -> Iterable[float]:
    """The overlap of each tensor that both bases have directions for."""
    names = [n for n in a if n in b and min(a[n].shape[1], b[n].shape[1])]
    both = ({n: basis[n] for n in names} for basis in (a, b))
    return overlap(*both).values() if names else []


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None

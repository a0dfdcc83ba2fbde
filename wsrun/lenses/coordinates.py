"""Coordinates (T8): singular directions of dW or of the base weight, and the family's own.

own_bands   bands of dW = U S V^T, as shares of its NUMERICAL RANK (the difference of two rank-8
            LoRAs has rank 16, and its top quarter is 4 directions), or of its energy
base_bands  the block of dS = U0^T dW V0 in a band of the base weight's directions; blocks that join
            two bands are in every band's rest
parameters  degrees of freedom of the adapter's own parameterization, as its family splits them
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial, reduce

from wscore import (
    BOTTOM,
    MIDDLE,
    SVD,
    TOP,
    Band,
    DeltaLike,
    add,
    crop,
    crop_rest,
    family_coordinates,
    scale,
    spectra,
)
from wscore.spectrum import inside
from wsrun.lenses.base import Cut, LensInput, Pole

BANDS = {
    "top": TOP,
    "middle": MIDDLE,
    "bottom": BOTTOM,
    "energy50": Band(0, 0.5, "energy"),
    "energy90": Band(0, 0.9, "energy"),
}
DISJOINT = ("top", "middle", "bottom")
ROLES = ("keep", "drop", "control")
Spectra = Mapping[str, SVD]


def own_bands(at: LensInput) -> Iterator[Cut]:
    """Bands of dW's own singular directions."""
    yield from _bands(at, "own", partial(_own, at), "rank")


def base_bands(at: LensInput) -> Iterator[Cut]:
    """Bands of the base weight's singular directions."""
    if lacking := [name for name in at.dW if name not in at.svds]:
        raise ValueError(f"lens: no singular directions of base weight {lacking[0]!r}; pass svds")
    yield from _bands(at, "base", lambda: {n: at.svds[n] for n in at.dW}, "base directions")


def _bands(at: LensInput, lens, svds: Callable[[], Spectra], of: str) -> Iterator[Cut]:
    for name, band in BANDS.items():
        yield Cut(
            f"{lens}_{name}",
            partial(_crop, crop, at, band, lens, svds),
            partial(_crop, crop_rest, at, band, lens, svds),
            roles=ROLES,
            partition=f"{lens} bands" if name in DISJOINT else "",
            facts={"coordinate_system": lens, "component": name},
            measure=partial(_size, band, svds, of),
        )


def _crop(function: Callable, at: LensInput, band: Band, lens, svds) -> DeltaLike:
    return function(at.dW, band, lens, svds=svds())


@lru_cache(maxsize=1)
def _own(at: LensInput) -> Spectra:
    return spectra(at.dW)


def _size(band: Band, svds: Callable[[], Spectra], of: str) -> dict[str, str]:
    """How many directions of how many a band takes: `4 of rank 16`, ranges where tensors differ."""
    decompositions = svds().values()
    taken = _span([int(inside(band, s.S).sum()) for s in decompositions])
    return {"rank_or_group": f"{taken} of {of} {_span([len(s.S) for s in decompositions])}"}


def _span(counts: list[int]) -> str:
    """`4`, or `4-16` where the counts differ."""
    lo, hi = min(counts), max(counts)
    return str(lo) if lo == hi else f"{lo}-{hi}"


def parameters(at: LensInput) -> Iterator[Cut]:
    """<system>_<part> for each part of each coordinate system of the family."""
    for system, names in _named(at).items():
        for name in names:
            yield Cut(
                f"{system}_{name}",
                partial(_part, at, system, name),
                partial(_others, at, system, name),
                roles=ROLES,
                partition=system,
                own=True,
                facts={
                    "coordinate_system": system,
                    "component": name,
                    "rank_or_group": f"1 of {len(names)} components",
                },
            )


def _named(at: LensInput) -> dict[str, list[str]]:
    """coordinate system -> its parts, read off one module of each projection and shape."""
    names = {name.removesuffix(".weight") for name in at.dW}
    poles, first = _poles(at), {}
    for tensors, _ in poles:
        shapes: dict[str, list] = {}
        for key, tensor in tensors.items():
            shapes.setdefault(_module(key, names), []).append(tuple(tensor.shape))
        for module, tensor_shapes in shapes.items():
            first.setdefault((module.rpartition(".")[2], *sorted(tensor_shapes)), module)
    chosen = {*first.values()}
    small = [
        ({key: t for key, t in tensors.items() if _module(key, names) in chosen}, config)
        for tensors, config in poles
    ]
    systems = family_coordinates(*small[0], *small[1], at.base)
    return {system: list(parts) for system, parts in systems.items()}


def _poles(at: LensInput) -> tuple[Pole, Pole]:
    if at.poles is None:
        raise ValueError(f"lens: {at.family} has no checkpoint to read its parameters from")
    return at.poles()


def _module(key: str, names: set[str]) -> str:
    """The module that a tensor of a checkpoint belongs to, as named in the model."""
    name = key.removeprefix("base_model.model.")
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name


@lru_cache(maxsize=1)
def _components(at: LensInput) -> Mapping[str, Mapping[str, DeltaLike]]:
    pos, neg = _poles(at)
    return family_coordinates(*pos, *neg, at.base)


def _part(at: LensInput, system: str, name: str) -> DeltaLike:
    return _components(at)[system][name]


def _others(at: LensInput, system: str, name: str) -> DeltaLike:
    parts = _components(at)[system]
    others = [d for other, d in parts.items() if other != name]
    return reduce(add, others) if others else scale(0.0, parts[name])

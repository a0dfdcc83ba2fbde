"""LENSES: every way to cut dW by name, with the claims that are made about its parts.

A lens is one function, LensInput -> cuts, and one entry here; tests/lenses runs every law over all
of them, and a plant (plants.py) says whether its claim is found where it is true.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from wscore import BasinDivergence, Locus, Rule, SharedCore
from wsrun.lenses import coordinates, sites, stacked, subspaces
from wsrun.lenses.base import Cut, LensInput


class Lens(NamedTuple):
    """A way to cut dW, and claims about its nested parts; a partition has a `Locus` of its own."""

    cuts: Callable[[LensInput], Iterable[Cut]]
    claims: Mapping[str, Rule] = {}


LENSES: dict[str, Lens] = {
    "shared": Lens(subspaces.shared, {"shared core": SharedCore()}),
    "shared_incl": Lens(subspaces.shared_incl),
    "own": Lens(subspaces.own, {"basin divergence": BasinDivergence()}),
    "random": Lens(subspaces.random),
    "stacked": Lens(
        stacked.stacked, {"stacked core": SharedCore(keep="keep_stacked", drop="drop_stacked")}
    ),
    "layers": Lens(sites.each_layer),
    "thirds": Lens(sites.thirds),
    "blocks": Lens(sites.blocks),
    "sides": Lens(sites.sides),
    "modules": Lens(sites.modules),
    "groups": Lens(sites.groups),
    "cells": Lens(sites.cells),
    "own_bands": Lens(coordinates.own_bands),
    "base_bands": Lens(coordinates.base_bands),
    "parameters": Lens(coordinates.parameters),
}


def cuts(lenses: Iterable[str], at: LensInput) -> list[Cut]:
    """The cuts of several lenses, in their order; nothing is computed."""
    return [cut for name in check_lenses(lenses) for cut in LENSES[name].cuts(at)]


def check_lenses(lenses: Iterable[str]) -> list[str]:
    """The names, refused where one is unknown, named twice, or where there are none."""
    names = list(lenses)
    if not names or len(set(names)) < len(names) or not set(names) <= set(LENSES):
        raise ValueError(
            f"lenses: {' '.join(names) or 'nothing'} is not a choice of {', '.join(LENSES)};"
            " name each one once, at least one"
        )
    return names


class Claim(NamedTuple):
    """A statement about parts of dW, of one family or of several (None), and its rule."""

    name: str
    family: str | None
    rule: Rule


def claims(
    lenses: Iterable[str],
    cuts: Mapping[str, Iterable[Cut]],
    families: tuple[str, ...] | None = None,
    keep_at_least: float = 0.7,
    drop_at_most: float = 0.3,
) -> Iterator[Claim]:
    """Every claim about the cuts of some families, {family: its cuts}, under these thresholds.

    Nested parts: one claim about `families`, None for the rule's own list. A partition: one about
    all families together and one about each; of a family's own parameters, about that family only.
    """
    limits = {"keep_at_least": keep_at_least, "drop_at_most": drop_at_most}
    for name in check_lenses(lenses):
        for claim, rule in LENSES[name].claims.items():
            yield Claim(claim, None, _set(rule, families=families, **limits))
    every = {name: list(family_cuts) for name, family_cuts in cuts.items()}
    common = partitions(cut for family_cuts in every.values() for cut in family_cuts if not cut.own)
    for partition, names in common.items():
        for family in (None, *every):
            of = (family,) if family else tuple(every)
            yield Claim(partition, family, Locus(names, keep_at_least, drop_at_most, of))
    for family, family_cuts in every.items():
        for partition, names in partitions(cut for cut in family_cuts if cut.own).items():
            yield Claim(partition, family, Locus(names, keep_at_least, drop_at_most, (family,)))


def partitions(cuts: Iterable[Cut]) -> dict[str, tuple[str, ...]]:
    """partition -> its disjoint parts, in order."""
    by_partition: dict[str, dict[str, None]] = {}
    for cut in cuts:
        if cut.partition:
            by_partition.setdefault(cut.partition, {})[cut.name] = None
    return {name: tuple(parts) for name, parts in by_partition.items()}


def _set(rule: Any, **values: Any) -> Rule:
    """The rule with those of the values that it has a field for; None leaves a field as it is."""
    known = {f.name for f in fields(rule)}
    return replace(rule, **{k: v for k, v in values.items() if k in known and v is not None})

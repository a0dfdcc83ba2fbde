"""Lenses: how T6, T7 and T8 cut a delta into parts, and planted truths that test these very cuts.

Nothing here scores, prints or draws: wsrun.study.ablation runs the cuts, and T13 the plants. Read
base.py first, then registry.py; a new lens is one function, one entry of LENSES, one of PLANTS.
"""

from wsrun.lenses.base import Cut, Deltas, LensInput
from wsrun.lenses.plants import PLANTS, Instance, Plant, Planted, instance
from wsrun.lenses.registry import LENSES, Claim, Lens, claims, cuts, partitions
from wsrun.lenses.weights import base_of

__all__ = [
    "LENSES",
    "PLANTS",
    "Claim",
    "Cut",
    "Deltas",
    "Instance",
    "Lens",
    "LensInput",
    "Plant",
    "Planted",
    "base_of",
    "claims",
    "cuts",
    "instance",
    "partitions",
]

"""Adapter families, one file each: its formula, its factors, its own coordinates. No PEFT here.

A new family is a file that registers itself, and its name in the import below.
"""

# isort: off
from wscore.families import lora, pissa, delora, dora, oft, boft, ia3, loha, lokr  # noqa: F401

# isort: on
from wscore.families.base import FAMILIES, Checkpoint, Family, Target, register
from wscore.families.merge import family, family_coordinates, merge_adapter, merge_adapter_factored

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "Target",
    "family",
    "family_coordinates",
    "merge_adapter",
    "merge_adapter_factored",
    "register",
]

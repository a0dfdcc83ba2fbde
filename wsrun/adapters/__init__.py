"""PEFT adapters: configurations and recipes, training, and extraction with its proof.

The formulas of the families live in wscore.families.
"""

from wsrun.adapters.configs import FAMILIES, RECIPES, Recipe, target_modules
from wsrun.adapters.extract import PairDelta, adapter_delta, pair_deltas
from wsrun.adapters.full_checkpoints import checkpoint_delta
from wsrun.adapters.train import train_adapter

__all__ = [
    "FAMILIES", "PairDelta", "RECIPES", "Recipe", "adapter_delta", "checkpoint_delta",
    "pair_deltas", "target_modules", "train_adapter",
]  # fmt: skip

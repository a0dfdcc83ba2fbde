"""Interventions: what steering does to a model, by weights, activations or prompts.

How directions and constructed changes are measured lives here; scoring and doses do not.
"""

from wsrun.steer.constructed import rank_one, rotated, sized
from wsrun.steer.contrast import Contrast, persona_contrast
from wsrun.steer.directions import mean_difference, pair_differences, principal
from wsrun.steer.edits import AddVector, Edit, Project
from wsrun.steer.interventions import (
    METHODS,
    AddVectors,
    Combined,
    ConstructedDelta,
    DirectionalAblation,
    Intervention,
    SystemPrompt,
    WeightDelta,
    applied,
)
from wsrun.steer.saved import load_intervention
from wsrun.steer.structure import readout_basis, unread_subspace
from wsrun.steer.weights import rounding_error, steered

__all__ = [
    "AddVector", "AddVectors", "Combined", "ConstructedDelta", "Contrast",
    "DirectionalAblation", "Edit", "Intervention", "METHODS", "Project", "SystemPrompt",
    "WeightDelta", "applied", "load_intervention", "mean_difference", "pair_differences",
    "persona_contrast", "principal", "rank_one", "readout_basis", "rotated", "rounding_error",
    "sized", "steered", "unread_subspace",
]  # fmt: skip

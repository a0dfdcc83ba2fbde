"""The base weights that truths are planted in, with what planting needs of them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wscore import SVD, spectra
from wsrun.adapters.configs import Recipe, target_modules
from wsrun.models.load import d_model


class Base(NamedTuple):
    """The base weights of the recipe's band and their singular triplets, and how many members."""

    weights: Mapping[str, Tensor]
    """fp32, on the CPU"""
    svds: Mapping[str, SVD]
    members: int
    recipe: Recipe


def base_of(model: PreTrainedModel, members: int, recipe: Recipe) -> Base:
    """The linear maps to plant in.

    Raises ValueError where the frames of all members do not fit, and where a map is too narrow for
    a dW of rank 2 r with as many random directions beside it.
    """
    d, r = d_model(model), recipe.rank
    if d < r * members:
        raise ValueError(
            f"plants: {members} frames of {r} do not fit d_model {d}; lower --members, or use a "
            "--recipe of lower rank"
        )
    where = target_modules(model.config.get_text_config().num_hidden_layers, recipe.band)
    named = {n: p.detach() for n, p in model.named_parameters()}
    weights = {
        n: p.to("cpu", torch.float32)
        for n, p in named.items()
        if re.fullmatch(where, n.removesuffix(".weight"))
    }
    if narrow := [n for n, w in weights.items() if min(w.shape) < 4 * r]:
        name, width = narrow[0], min(weights[narrow[0]].shape)
        raise ValueError(
            f"plants: a dW of rank {2 * r} with as many random directions beside it does not fit "
            f"{name} of width {width}; use a --recipe of lower rank"
        )
    return Base(weights, spectra(weights), members, recipe)


def subspace_sizes(recipe: Recipe) -> tuple[int, int]:
    """K = r, 2 r: as many directions as a frame has, and as many as a frame beside its decoy."""
    return recipe.rank, 2 * recipe.rank

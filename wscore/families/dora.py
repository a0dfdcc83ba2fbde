"""DoRA: a LoRA of the direction of each row, and a length of its own for it.

Liu et al. 2024 (arXiv 2402.09353).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta
from wscore.families.base import (
    Base,
    Checkpoint,
    Coordinates,
    FactorA,
    FactorB,
    Family,
    Target,
    Weight,
    register,
)
from wscore.families.lora import PLAIN_INITS, TENSORS, lora_delta, lora_sizes, scaled_pair
from wscore.families.merge import merge_modules
from wscore.families.splits import Polar, base_weight, float64, product_rule, put, same_targets


def dora_delta(
    A: FactorA, B: FactorB, scale: float, magnitude: Float[Tensor, " d_out"], W: Weight
) -> Weight:
    """dW = m V / |V| - W, where V = W + s B A and |V| is the norm of each row (of each output).

    A zero row of V has no direction and gives NaN.
    """
    V = W + lora_delta(A, B, scale)
    return (magnitude / V.norm(dim=1))[:, None] * V - W


def _delta(t: Target) -> Weight:
    d_out = t.weight.shape[0]
    return dora_delta(*scaled_pair(t), t.take("lora_magnitude_vector", d_out), t.weight)


def magnitude_direction(
    pos: Mapping[str, Tensor], neg: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> dict[str, Delta]:
    """dW = (m+ - m-)(u+ + u-)/2 + (m+ + m-)/2 (u+ - u-): parts "magnitude" and "direction".

    W0 + tau = m u with m the norms of the rows and u unit rows, for DoRA its own |m| and V/|V|; a
    zero row has u = 0. The parts are orthogonal, row by row, where neither pole has a zero row. A
    bias counts as rows of one entry.
    """
    parts: dict[str, Delta] = {"magnitude": {}, "direction": {}}
    for name, p, n in same_targets(pos, neg):
        W = base_weight(base, name, p)
        put(parts, name, p, *product_rule(_polar(W + float64(p)), _polar(W + float64(n))))
    return parts


def _polar(W: Float[Tensor, "d_out d_in"]) -> Polar:
    """(m, u): the norms of the rows as a column, and the unit rows; 0 and 0 for a zero row."""
    m = W.norm(dim=1, keepdim=True)
    return m, W / torch.where(m == 0, 1, m)


def _coordinates(pos: Checkpoint, neg: Checkpoint, base: Base) -> Coordinates:
    if pos.config.get("fan_in_fan_out") or neg.config.get("fan_in_fan_out"):
        raise ValueError(
            "coordinates: fan_in_fan_out stores an output's weights as a column, and DoRA's lengths"
            " are split by rows; adapt linear layers"
        )
    poles = merge_modules(*pos, base), merge_modules(*neg, base)
    return {"magnitude_direction": magnitude_direction(*poles, base)}


register(
    Family(
        "dora",
        "LORA",
        "magnitude-direction",
        (*TENSORS, "lora_magnitude_vector"),
        delta=_delta,
        coordinates=_coordinates,
        sizes=lora_sizes,
        fields={"init_lora_weights": PLAIN_INITS, "use_dora": (True,)},
    )
)

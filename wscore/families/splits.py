"""What the splits of dW = tau_pos - tau_neg share.

Each split returns {part: delta}, and its parts add up to dW. Sums are taken in float64; a part has
the dtype of the deltas it was made from.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta
from wscore.entries import columns, format_keys, pairs
from wscore.families.base import Family
from wscore.families.checkpoints import family_of
from wscore.families.saved import saves

Polar = tuple[Float[Tensor, "*size"], Float[Tensor, "d_out d_in"]]
"""(size, direction), whose product is a weight"""


def one_family(pos_config: Mapping[str, Any], neg_config: Mapping[str, Any]) -> Family:
    """The family of both poles; ValueError where they are of two, or hold modules."""
    pos, neg = family_of(pos_config), family_of(neg_config)
    if saves(pos_config) or saves(neg_config):
        raise ValueError(
            "coordinates: modules_to_save holds whole modules, which no family's parameters split;"
            " train without it"
        )
    if pos.name != neg.name:
        raise ValueError(
            f"coordinates: pos is {pos.name} and neg is {neg.name}, which share no"
            " parameterization; train both poles with one family"
        )
    return pos


def product_rule(pos: Polar, neg: Polar) -> tuple[Tensor, Tensor]:
    """x+ y+ - x- y- in two parts: what the change of x makes, what the change of y makes."""
    (x_pos, y_pos), (x_neg, y_neg) = pos, neg
    return (x_pos - x_neg) * (y_pos + y_neg) / 2, (x_pos + x_neg) / 2 * (y_pos - y_neg)


def float64(w: Float[Tensor, "..."]) -> Float[Tensor, "d_out d_in"]:
    """An entry as a float64 matrix."""
    return columns(w).double()


def same_targets(
    pos: Mapping[str, Tensor], neg: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, pos[name], neg[name]), refused unless both have the same names."""
    if odd := set(pos) ^ set(neg):
        raise ValueError(
            f"coordinates: {format_keys(odd)} in one pole only; train both on the same"
            " target_modules"
        )
    return pairs(pos, neg)


def base_weight(base: Mapping[str, Tensor], name: str, like: Tensor) -> Float[Tensor, "d_out d_in"]:
    """base[name] as a float64 matrix on like's device."""
    shape = list(base[name].shape) if name in base else "absent"
    if shape != list(like.shape):
        raise ValueError(
            f"coordinates: {name!r} is {list(like.shape)} in the delta and {shape} in the base;"
            " pass the weights of the model that the adapters were trained on"
        )
    return float64(base[name].to(like.device))


def put(parts: dict[str, Delta], name: str, like: Tensor, *split: Tensor) -> None:
    """Store each part of one entry, in the entry's shape and dtype."""
    for part, w in zip(parts.values(), split, strict=True):
        part[name] = w.reshape(like.shape).to(like.dtype)

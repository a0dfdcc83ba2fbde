"""IA3: a gate on each output, or on each input of feedforward modules.

Liu et al. 2022 (arXiv 2205.05638).
"""

import re
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta, difference
from wscore.entries import format_keys
from wscore.families.base import (
    Base,
    Checkpoint,
    Coordinates,
    Family,
    Target,
    Weight,
    check,
    register,
    shown,
)
from wscore.families.merge import merge_modules
from wscore.sites import site

BLOCKS = {"attention": "self_attn", "mlp": "mlp"}


def ia3_delta(gate: Float[Tensor, "#d_out #d_in"], W: Weight) -> Weight:
    """dW = (l - 1) * W, l of shape [d_out, 1] on rows, or [1, d_in] on columns (feedforward).

    A row gate scales the bias too.
    """
    return (gate - 1) * W


def _delta(t: Target) -> Weight:
    """Rows or columns as the tensor's own shape says, and feedforward_modules must agree."""
    d_out, d_in = t.weight.shape
    on_rows, inner = t.shape("ia3_l")[-1] == 1, t.config.get("feedforward_modules")
    if inner is not None and d_in != 1:
        fits = (
            re.fullmatch(inner, t.module) is not None
            if isinstance(inner, str)
            else t.module.endswith(tuple(inner))
        )
        check(
            fits != on_rows,
            f"{t.module}.ia3_l is {t.shape('ia3_l')}, and feedforward_modules {shown(inner)} asks "
            "for the other side; save the adapter again",
        )
    return ia3_delta(t.take("ia3_l", *((d_out, 1) if on_rows else (1, d_in))), t.weight)


def _sizes(stored: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """(d_out, None) or (None, d_in) of a gate."""
    d_out, d_in = [*stored["ia3_l"].shape, 0, 0][:2]
    return (d_out, None) if d_in == 1 else (None, d_in)


def _bias(t: Target, bias: Float[Tensor, " d_out"]) -> Float[Tensor, " d_out"] | None:
    gate = t.tensors["ia3_l"]
    return ia3_delta(gate, bias[:, None])[:, 0] if len(gate) > 1 else None


def gates(d: Mapping[str, Tensor]) -> dict[str, Delta]:
    """dW's entries in self_attn and those in mlp: parts "attention" and "mlp".

    As with `select`, a part holds its own entries only, shared with d and not copied; `add` of the
    two is d. Raises ValueError where one is empty or an entry is in neither.
    """
    at = {name: site(name).block.split(".")[0] for name in d}
    if set(at.values()) != set(BLOCKS.values()):
        raise ValueError(
            f"gates: {format_keys(d)} lie in blocks {sorted(set(at.values()))}, and the split is of"
            " self_attn from mlp; pass a delta with entries in both and in no other"
        )
    return {part: {n: d[n] for n in d if at[n] == block} for part, block in BLOCKS.items()}


def _coordinates(pos: Checkpoint, neg: Checkpoint, base: Base) -> Coordinates:
    dW = difference(merge_modules(*pos, base), merge_modules(*neg, base))
    return {"gates": gates(dW)}


register(
    Family(
        "ia3",
        "IA3",
        "gates",
        ("ia3_l",),
        delta=_delta,
        bias=_bias,
        coordinates=_coordinates,
        sizes=_sizes,
    )
)

"""LoRA and rsLoRA: dW = s B A.

Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (arXiv 2312.03732).
"""

import math
from collections.abc import Mapping

from torch import Tensor

from wscore.factored import Factors
from wscore.families.base import FactorA, FactorB, Family, Target, Weight, register
from wscore.families.ranks import rank_coordinates

TENSORS = ("lora_A.weight", "lora_B.weight")
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""initialisations that leave the base weight alone; any other one trains on a changed base"""


def lora_delta(A: FactorA, B: FactorB, scale: float) -> Weight:
    """dW = s B A, with s = alpha / r, or alpha / sqrt(r) for rsLoRA."""
    return scale * (B @ A)


def lora_factors(A: FactorA, B: FactorB, scale: float) -> Factors:
    """L = s B, R = A."""
    return Factors(scale * B, A)


def scaled_pair(t: Target) -> tuple[FactorA, FactorB, float]:
    """(A, B, s) of a module."""
    r = t.setting("r", "rank_pattern")
    return *factor_pair(t, r), scaling(t)


def factor_pair(t: Target, r: int, suffix: str = ".weight") -> tuple[FactorA, FactorB]:
    d_out, d_in = t.weight.shape
    return t.take(f"lora_A{suffix}", r, d_in), t.take(f"lora_B{suffix}", d_out, r)


def lora_sizes(stored: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """(d_out, d_in), from B and A; None where there is none."""
    A, B = (list(stored[k].shape) if k in stored else [] for k in TENSORS)
    return (B[0] if len(B) == 2 else None), (A[1] if len(A) == 2 else None)


def scaling(t: Target) -> float:
    """s = alpha / r, or alpha / sqrt(r) with use_rslora."""
    r = t.setting("r", "rank_pattern")
    alpha = t.setting("lora_alpha", "alpha_pattern")
    return alpha / (math.sqrt(r) if t.config.get("use_rslora") else r)


register(
    Family(
        "lora",
        "LORA",
        "low-rank",
        TENSORS,
        delta=lambda t: lora_delta(*scaled_pair(t)),
        factors=lambda t: lora_factors(*scaled_pair(t)),
        coordinates=rank_coordinates,
        sizes=lora_sizes,
        fields={"init_lora_weights": PLAIN_INITS, "use_dora": (False, None)},
    )
)

"""DeLoRA: r unit terms whose common length lambda is learned apart from their directions.

Bini, Girrbach & Akata 2025 (arXiv 2503.18225), with PEFT's w per column for the paper's |W|.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta
from wscore.factored import Factors
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
from wscore.families.merge import merge_modules
from wscore.families.ranks import rank_coordinates
from wscore.families.splits import Polar, float64, product_rule, put, same_targets


def delora_delta(
    A: FactorA, B: FactorB, lam: Float[Tensor, "1"], w_norm: Float[Tensor, " d_in"]
) -> Weight:
    """dW = (lambda/r) sum_i b_i a_i / (|b_i| |a_i|) diag(w), w the column norms of W at init.

    a_i are rows of A, b_i columns of B; a norm below 1e-4 counts as 1e-4, so B = 0 gives 0.
    """
    unit_A, unit_B = _units(A, B)
    return lam / len(A) * (unit_B @ unit_A) * w_norm


def delora_factors(
    A: FactorA, B: FactorB, lam: Float[Tensor, "1"], w_norm: Float[Tensor, " d_in"]
) -> Factors:
    """L = (lambda/r) b_i/|b_i|, R = a_i/|a_i| diag(w)."""
    unit_A, unit_B = _units(A, B)
    return Factors(lam / len(A) * unit_B, unit_A * w_norm)


def _units(A: FactorA, B: FactorB) -> tuple[FactorA, FactorB]:
    """Rows of A and columns of B at length 1."""
    unit_A = A / A.norm(dim=1, keepdim=True).clamp(min=1e-4)
    return unit_A, B / B.norm(dim=0, keepdim=True).clamp(min=1e-4)


def _inputs(t: Target) -> tuple[Tensor, ...]:
    d_out, d_in = t.weight.shape
    r = t.setting("r", "rank_pattern")
    lam, w_norm = t.take("delora_lambda", 1), t.take("delora_w_norm", d_in)
    return t.take("delora_A", r, d_in), t.take("delora_B", d_out, r), lam, w_norm


def scale_direction(
    pos: Mapping[str, Tensor],
    neg: Mapping[str, Tensor],
    adapter_pos: Mapping[str, Tensor],
    adapter_neg: Mapping[str, Tensor],
) -> dict[str, Delta]:
    """dW = (l+ - l-)(D+ + D-)/2 + (l+ + l-)/2 (D+ - D-): parts "lambda" and "direction".

    tau = l D with l the lambda of a DeLoRA module, read from `<module>.delora_lambda` of the
    adapter; l = 0 has tau = 0 and here D = 0.
    """
    parts: dict[str, Delta] = {"lambda": {}, "direction": {}}
    for name, p, n in same_targets(pos, neg):
        split = product_rule(_scaled(name, p, adapter_pos), _scaled(name, n, adapter_neg))
        put(parts, name, p, *split)
    return parts


def _scaled(name: str, tau: Tensor, adapter: Mapping[str, Tensor]) -> Polar:
    """(l, D) with tau = l D."""
    key = f"{name.removesuffix('.weight')}.delora_lambda"
    lambdas = [adapter[k] for k in (key, f"base_model.model.{key}") if k in adapter]
    if len(lambdas) != 1 or (not lambdas[0].any() and tau.any()):
        raise ValueError(
            f"scale_direction: {name!r} changes and its lambda in the adapter is"
            f" {[t.tolist() for t in lambdas]}; pass the DeLoRA checkpoint that this delta was"
            " merged from"
        )
    lam = lambdas[0].to(tau.device, torch.float64)
    return lam, float64(tau) / torch.where(lam == 0, 1, lam)


def _coordinates(pos: Checkpoint, neg: Checkpoint, base: Base) -> Coordinates:
    poles = merge_modules(*pos, base), merge_modules(*neg, base)
    split = scale_direction(*poles, pos.tensors, neg.tensors)
    return rank_coordinates(pos, neg, base) | {"lambda_direction": split}


register(
    Family(
        "delora",
        "DELORA",
        "normalised low-rank",
        ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
        delta=lambda t: delora_delta(*_inputs(t)),
        factors=lambda t: delora_factors(*_inputs(t)),
        coordinates=_coordinates,
    )
)

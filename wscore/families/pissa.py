"""PiSSA: a LoRA that starts at the top-r part of W and trains on what is left of W.

Meng, Wang & Zhang 2024 (arXiv 2404.02948).
"""

import torch

from wscore.factored import Factors, stack
from wscore.families.base import FactorA, FactorB, Family, Target, Weight, check, register
from wscore.families.lora import TENSORS, factor_pair, lora_delta, lora_sizes, scaling
from wscore.families.ranks import rank_coordinates

INITIAL = ("lora_A_init.weight", "lora_B_init.weight")


def pissa_factors(W: Weight, r: int, scale: float) -> tuple[FactorA, FactorB]:
    """A0 = sqrt(S/s) Vt, B0 = U sqrt(S/s): s B0 A0 is the top-r part of W = U S Vt."""
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    root = (S[:r] / scale).sqrt()
    return root[:, None] * Vt[:r], U[:, :r] * root


def pissa_delta(A: FactorA, B: FactorB, scale: float, A0: FactorA, B0: FactorB) -> Weight:
    """dW = s (B A - B0 A0): the adapter sits on W - s B0 A0, with A0, B0 from `pissa_factors`."""
    return lora_delta(A, B, scale) - lora_delta(A0, B0, scale)


def pissa_change(A: FactorA, B: FactorB, scale: float, A0: FactorA, B0: FactorB) -> Factors:
    """s (B A - B0 A0) = s (B - B0) A + s B0 (A - A0).

    Both terms are as small as the change itself. [B, -B0] [A; A0] would be the difference of two
    large products, whose roundings in float32 do not cancel.
    """
    return stack(Factors(scale * (B - B0), A), Factors(scale * B0, A - A0))


def check_initial(t: Target, A0: FactorA, B0: FactorB, scale: float) -> None:
    """Raises ValueError unless W a_i = S_i b_i with S_i = s |a_i|^2 = s |b_i|^2: singular pairs."""
    S = scale * A0.square().sum(1)
    apart = (t.weight @ A0.T - B0 * S).norm(dim=0), S - scale * B0.square().sum(0)
    limit = 0.01 * S.abs().max()
    check(
        bool((apart[0] <= limit * A0.norm(dim=1)).all() and (apart[1].abs() <= limit).all()),
        f"the initial factors of {t.module} are not those of the base weight; give the base that "
        "it was trained on, or train it again",
    )


def _inputs(t: Target) -> tuple[FactorA, FactorB, float, FactorA, FactorB]:
    """What the formulas take; the initial factors as stored by training, or from the SVD of W."""
    scale = scaling(t)
    # the SVD gives no more factors than this, but s keeps the configured rank
    r = min(t.setting("r", "rank_pattern"), *t.weight.shape)
    A, B = factor_pair(t, r)
    if t.tensors.keys() & set(INITIAL):
        A0, B0 = factor_pair(t, r, "_init.weight")
        check_initial(t, A0, B0, scale)
        return A, B, scale, A0, B0
    # fp32 as in PEFT: where S_r and S_(r+1) are close the factors depend on the precision
    A0, B0 = (factor.to(t.weight) for factor in pissa_factors(t.weight.float(), r, scale))
    return A, B, scale, A0, B0


register(
    Family(
        "pissa",
        "LORA",
        "low-rank",
        (*TENSORS, *INITIAL),
        delta=lambda t: pissa_delta(*_inputs(t)),
        factors=lambda t: pissa_change(*_inputs(t)),
        columns_per_term=2,
        coordinates=rank_coordinates,
        sizes=lora_sizes,
        fields={"init_lora_weights": ("pissa",), "use_dora": (False, None)},
    )
)

"""LoHa: the elementwise product of two low-rank matrices, of rank up to r^2.

Hyeon-Woo, Ye-Bin & Oh 2022 (FedPara, arXiv 2108.06098); as LoHa in LyCORIS, arXiv 2309.14859.
"""

from wscore.families.base import FactorA, FactorB, Family, Target, Weight, register


def loha_delta(A1: FactorA, B1: FactorB, A2: FactorA, B2: FactorB, scale: float) -> Weight:
    """dW = s (B1 A1) * (B2 A2), entry by entry, with s = alpha / r."""
    return scale * (B1 @ A1) * (B2 @ A2)


def _delta(t: Target) -> Weight:
    d_out, d_in = t.weight.shape
    r, alpha = t.setting("r", "rank_pattern"), t.setting("alpha", "alpha_pattern")
    B1, B2 = (t.take(f"hada_w{i}_a", d_out, r) for i in (1, 2))
    A1, A2 = (t.take(f"hada_w{i}_b", r, d_in) for i in (1, 2))
    return loha_delta(A1, B1, A2, B2, alpha / r)


register(
    Family(
        "loha",
        "LOHA",
        "Hadamard product",
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        delta=_delta,
        fields={"use_effective_conv2d": (False, None)},
    )
)

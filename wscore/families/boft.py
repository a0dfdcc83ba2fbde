"""BOFT: an OFT whose rotation is a product of butterfly factors, and a scale of each row.

Liu et al. 2023 (arXiv 2311.06243).
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from wscore.families.base import Family, Target, Weight, check, register
from wscore.families.rotation import cayley, rotate, rotation_coordinates


def boft_delta(
    theta: Float[Tensor, "n k b b"], magnitude: Float[Tensor, "d_out 1"], W: Weight
) -> Weight:
    """dW = m (W M_1^T .. M_n^T) - W, M_i = P_i diag(R_i1 .. R_ik) P_i^T, m on rows, not on biases.

    R_ij = cayley(skew part of theta_ij), k b = d_in, P_i from `butterfly`, P_1 = I.
    """
    V = W
    for level, blocks in enumerate(theta):
        order = butterfly(W.shape[1], blocks.shape[-1], level).to(W.device)
        V = rotate(V[:, order.argsort()], cayley((blocks - blocks.mT) / 2))[:, order]
    return magnitude * V - W


def butterfly(d_in: int, b: int, level: int) -> Int[Tensor, " d_in"]:
    """Each run of b 2^level inputs as half-blocks 0 2 4 .. then 1 3 5 ..; level 0 moves nothing."""
    order = torch.arange(d_in)
    if level == 0:  # also the only level an odd block size can have
        return order
    halves = "(run pair two half) -> (run two pair half)"
    return rearrange(order, halves, pair=2**level, two=2, half=b // 2)


def _delta(t: Target) -> Weight:
    """n and b are the tensor's own: PEFT trains one factor where its CUDA extension is missing."""
    n, b = t.shape("boft_R")[0], t.shape("boft_R")[-1]
    k, config = t.blocks(b), t.config
    size, number = config.get("boft_block_size"), config.get("boft_block_num")
    stated = (size, number, b, t.weight.shape[1] // max(b, 1))
    check(
        None in (size, number) or stated[:2] in ((b, 0), (0, stated[3])),
        f"{t.module}.boft_R has {stated[3]} blocks of {b}, and the config has boft_block_size "
        f"{size} and boft_block_num {number}; save the adapter again",
    )
    check(
        n in (1, config.get("boft_n_butterfly_factor", n)),
        f"{t.module}.boft_R has {n} factors, and the config has boft_n_butterfly_factor "
        f"{config.get('boft_n_butterfly_factor')}; save the adapter again",
    )
    _check_order(t, n, b)
    n = min(n, (k & -k).bit_length() if b % 2 == 0 else 1)  # factor i spans 2^i blocks
    theta = t.take("boft_R", n, k, b, b)
    return boft_delta(theta, t.take("boft_s", t.weight.shape[0], 1), t.weight)


def _check_order(t: Target, n: int, b: int) -> None:
    """PEFT before 0.13 stores its permutations, which must be those of `butterfly`."""
    if "boft_P" not in t.tensors:
        return
    d_in = t.weight.shape[1]
    eye, stored = torch.eye(d_in), t.take("boft_P", n, d_in, d_in).cpu()
    ours = [eye[:, butterfly(d_in, b, level).argsort()] for level in range(n)]
    check(
        all(torch.equal(P.float(), order) for P, order in zip(stored, ours, strict=True)),
        f"{t.module}.boft_P is another order of inputs than PEFT's; train the adapter again",
    )


def boft_block(stored: Mapping[str, Tensor]) -> int:
    """b 2^(n-1), the run of inputs that n butterfly factors mix."""
    n, _, _, b = stored["boft_R"].shape
    return b * 2 ** (n - 1)


register(
    Family(
        "boft",
        "BOFT",
        "orthogonal",
        ("boft_R", "boft_s", "boft_P"),
        delta=_delta,
        coordinates=rotation_coordinates(boft_block),
    )
)

"""OFT: every row of W turned by one block-diagonal rotation of the input side.

Qiu et al. 2023 (arXiv 2306.07280).
"""

import math
import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.families.base import Family, Target, Weight, check, register
from wscore.families.rotation import cayley, cayley_neumann, rotate, rotation_coordinates


def oft_delta(
    theta: Float[Tensor, "k p"], W: Weight, terms: int | None = None, eps: float | None = None
) -> Weight:
    """dW = W R^T - W, R = diag(R_1 .. R_k), R_i = cayley(Q_i), Q_i skew, its upper part theta_i.

    p = b(b-1)/2 and k b = d_in, or k = 1 for a shared block. `terms` takes R_i by `cayley_neumann`;
    `eps` first shrinks every |Q_i| above eps/sqrt(k) to it (constrained OFT).
    """
    b = block_size(theta.shape[1])
    Q = theta.new_zeros(len(theta), b, b)
    rows, cols = torch.triu_indices(b, b, offset=1, device=theta.device)
    Q[:, rows, cols] = theta
    Q = Q - Q.mT
    if eps is not None:
        norm = Q.flatten(1).norm(dim=1)[:, None, None]
        Q = Q * (eps / math.sqrt(len(Q)) / norm).clamp(max=1.0)
    return rotate(W, cayley(Q) if terms is None else cayley_neumann(Q, terms)) - W


def block_size(p: int) -> int:
    """The largest b with b(b-1)/2 <= p."""
    return (1 + math.isqrt(1 + 8 * p)) // 2


def _delta(t: Target) -> Weight:
    """The block size is the tensor's own: PEFT may have rounded the configured one."""
    check(
        "oft_r" not in t.tensors,
        f"{t.module} has oft_r of PEFT before 0.16, whose OFT had another formula; train it again",
    )
    b = block_size(t.shape("oft_R.weight")[-1])
    _check_block(t, b)
    k = min(t.blocks(b), 1) if t.config.get("block_share") else t.blocks(b)
    theta, terms = t.take("oft_R.weight", k, b * (b - 1) // 2), None
    if t.setting("use_cayley_neumann"):
        terms = t.setting("num_cayley_neumann_terms")
        version = t.config.get("peft_version") or "0.0"
        check(
            [int(x) for x in re.findall(r"\d+", version)[:2]] >= [0, 18],
            f"the config has use_cayley_neumann of PEFT {version}, whose series changed in 0.18; "
            "train the adapter again",
        )
    return oft_delta(theta, t.weight, terms, t.setting("eps") if t.config.get("coft") else None)


def _check_block(t: Target, b: int) -> None:
    """Raises ValueError where the config's r blocks, or block size, are not the tensor's."""
    d_in, r, size = t.weight.shape[1], t.config.get("r"), t.config.get("oft_block_size")
    if r is None or size is None:
        return
    check(
        bool(r) != bool(size),
        f"the config has r {r} and oft_block_size {size}, and one of them must be 0; save the "
        "adapter again",
    )
    stated = near_divisor(d_in, size) if size else d_in // near_divisor(d_in, r)
    check(
        b == stated,
        f"{t.module}.oft_R.weight has blocks of {b}, and r {r} with oft_block_size {size} makes "
        f"them {stated}; save the adapter again",
    )


def near_divisor(d_in: int, asked: int) -> int:
    """What PEFT takes for a number that does not divide d_in: the nearest that does, the lower."""
    if asked >= d_in or d_in % asked == 0:
        return min(asked, d_in)
    divisors = [n for n in range(1, d_in + 1) if d_in % n == 0]
    return min(divisors, key=lambda n: (abs(n - asked), n))


def oft_block(stored: Mapping[str, Tensor]) -> int:
    """b, from its b(b-1)/2 parameters per block."""
    return block_size(stored["oft_R.weight"].shape[-1])


register(
    Family(
        "oft",
        "OFT",
        "orthogonal",
        ("oft_R.weight", "oft_r", "oft_s"),
        delta=_delta,
        coordinates=rotation_coordinates(oft_block),
    )
)

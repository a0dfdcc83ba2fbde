"""LoKr: a Kronecker product of two small matrices, each whole or of rank r.

Edalati et al. 2022 (KronA, arXiv 2212.10650); as LoKr in LyCORIS, arXiv 2309.14859.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.families.base import Family, Target, Weight, check, register

SINCE_0_14 = {"peft_version", "rank_dropout_scale"}
"""fields that no PEFT before 0.14 writes"""


def lokr_delta(C: Float[Tensor, "a c"], D: Float[Tensor, "b d"], scale: float) -> Weight:
    """dW = s C (x) D, blocks s C_ij D, a b = d_out, c d = d_in, with s = alpha / r."""
    return scale * torch.kron(C, D)


def _delta(t: Target) -> Weight:
    """The split of d_out and d_in is the tensors' own, which must be PEFT's for this config."""
    r, alpha = t.setting("r", "rank_pattern"), t.setting("alpha", "alpha_pattern")
    check(
        alpha == r or bool(SINCE_0_14 & t.config.keys()),
        f"the config is of PEFT before 0.14, whose LoKr did not multiply by alpha / r, here {alpha}"
        f" / {r}; set alpha to r, and alpha_pattern to rank_pattern, if such a PEFT trained it",
    )
    C, D = _matrix(t, "lokr_w1", r), _matrix(t, "lokr_w2", r)
    product = [x * y for x, y in zip(C.shape, D.shape, strict=True)]
    check(
        product == list(t.weight.shape),
        f"{t.module}.lokr_w1 {list(C.shape)} and lokr_w2 {list(D.shape)} make {product}, and the "
        f"base weight is {list(t.weight.shape)}; give the base that it was trained with",
    )
    factor = t.config.get("decompose_factor", -1)
    if t.config.get("target_modules") is not None:
        (a, b), (c, d) = (split(side, factor) for side in t.weight.shape)
        whole = not (t.config.get("decompose_both") and r < max(a, c) / 2), r >= max(b, d) / 2
        found = tuple(f"lokr_{w}" in t.tensors for w in ("w1", "w2"))
        check(
            [*C.shape] == [a, c] and found == whole,
            f"{t.module}.lokr_w1 is {list(C.shape)}, and decompose_factor, decompose_both and r of "
            f"the config make it {[a, c]}, whole matrices {whole}; save the adapter again",
        )
    return lokr_delta(C, D, alpha / r)


def split(side: int, factor: int) -> tuple[int, int]:
    """m n = side with m <= n: m = factor where that divides, else near to it, or near the root."""
    if factor > 0 and side % factor == 0:
        return factor, side // factor
    limit = side if factor == -1 else factor
    divisors = [m for m in range(1, math.isqrt(side) + 1) if side % m == 0 and m <= max(limit, 1)]
    return divisors[-1], side // divisors[-1]


def _matrix(t: Target, name: str, r: int) -> Float[Tensor, "x y"]:
    """The matrix of that name, stored whole or as [x, r] times [r, y]."""
    halves = [f"{name}_{side}" for side in "ab"]
    if not t.tensors.keys() & set(halves):
        shape = t.shape(name)
        check(len(shape) == 2, f"{t.module}.{name} is {shape}, not a matrix; train linear layers")
        return t.take(name)
    check(name not in t.tensors, f"{t.module} has {name} whole and in factors; save it again")
    (x, *_), (*_, y) = map(t.shape, halves)
    return t.take(halves[0], x, r) @ t.take(halves[1], r, y)


register(
    Family(
        "lokr",
        "LOKR",
        "Kronecker product",
        tuple(f"lokr_{w}{side}" for w in ("w1", "w2") for side in ("", "_a", "_b")),
        delta=_delta,
        fields={"use_effective_conv2d": (False, None)},
    )
)

"""LoKr: a Kronecker product of two small matrices, each whole or of rank r.

Edalati et al. 2022 (KronA, arXiv 2212.10650); as LoKr in LyCORIS, arXiv 2309.14859.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.families.base import Family, Target, Weight, check, register


def lokr_delta(C: Float[Tensor, "a c"], D: Float[Tensor, "b d"], scale: float) -> Weight:
    """dW = s C (x) D, blocks s C_ij D, a b = d_out, c d = d_in, with s = alpha / r."""
    return scale * torch.kron(C, D)


def _delta(t: Target) -> Weight:
    """How d_out and d_in are split is the tensors' own: their shapes must make the weight's."""
    r, alpha = t.setting("r", "rank_pattern"), t.setting("alpha", "alpha_pattern")
    C, D = _matrix(t, "lokr_w1", r), _matrix(t, "lokr_w2", r)
    product = [x * y for x, y in zip(C.shape, D.shape, strict=True)]
    check(
        product == list(t.weight.shape),
        f"{t.module}.lokr_w1 {list(C.shape)} and lokr_w2 {list(D.shape)} make {product}, and the "
        f"base weight is {list(t.weight.shape)}; give the base that it was trained with",
    )
    return lokr_delta(C, D, alpha / r)


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

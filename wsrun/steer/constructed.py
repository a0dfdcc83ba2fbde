"""Constructed weight changes: made of a persona contrast and base weights, of no trained delta.

    dW' = c x^T / |x|^2,  so  (W + dW') x = W x + c

What a weight adds on its mean input x is the contrast c of its own outputs under two personas.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from wscore import DeltaLike, Factored, match_norm, stream
from wscore.null import haar
from wsrun.steer.contrast import Contrast

Per = Literal["tensor", "all"]


def rank_one(contrast: Contrast) -> Factored:
    """dW' = c x^T / |x|^2 for every weight of the contrast, as factors in float32."""
    factors = {}
    for name, c in contrast.out.items():
        x = contrast.x[name]
        if not (size := float(x @ x)):
            raise ValueError(f"rank_one: the mean input of {name!r} is zero; leave it out")
        factors[name] = (c[:, None].float(), (x / size)[None].float())
    return Factored(factors)


def rotated(contrast: Contrast, seed: int) -> Contrast:
    """Q c for all c, with one Haar-random rotation Q: the same lengths and mutual angles."""
    rotations: dict[int, Tensor] = {}
    for c in contrast.out.values():
        if (d := len(c)) not in rotations:
            rotations[d] = haar(d, d, c, stream(seed, f"contrast/{d}"))
    return contrast._replace(out={n: rotations[len(c)] @ c for n, c in contrast.out.items()})


def sized(d: DeltaLike, base: Mapping[str, Tensor], per: Per) -> DeltaLike:
    """d rescaled to |d| = |W| over the weights it changes, so that a dose is a share of |W|."""
    return match_norm(d, {name: base[name] for name in d}, per)

"""Synthetic weight changes: made of a persona contrast and base weights, of no trained delta.

    dW' = c x^T / |x|^2,  so  (W + dW') x = W x + c

What a weight adds on its mean input x is the contrast c of its own outputs under two personas.
Construction is refused once the process has read a trained delta (`wscore.store.trained_reads`).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from wscore import Factored, norm, scale, store, stream
from wscore.null import haar
from wsrun.persona import Contrast


def check_unseen() -> None:
    """Raises RuntimeError, for a defect of the program, where a trained delta was read before."""
    if seen := store.trained_reads:
        raise RuntimeError(
            f"synthetic: {len(seen)} trained changes were read in this process before, such as "
            f"{seen[0]!r}; construct synthetic changes first"
        )


def rank_one(contrast: Contrast) -> Factored:
    """dW' = c x^T / |x|^2 for every weight of the contrast, as factors in float32."""
    check_unseen()
    factors = {}
    for name, c in contrast.out.items():
        x = contrast.x[name]
        if not (size := float(x @ x)):
            raise ValueError(f"synthetic: the mean input of {name!r} is zero; leave it out")
        factors[name] = (c[:, None].float(), (x / size)[None].float())
    return Factored(factors)


def turned(contrast: Contrast, seed: int) -> Contrast:
    """Q c for all c, with one Haar-random rotation Q: same lengths and mutual angles, no meaning."""
    by_size: dict[int, Tensor] = {}
    for c in contrast.out.values():
        if (d := len(c)) not in by_size:
            by_size[d] = haar(d, d, c, stream(seed, f"contrast/{d}"))
    return contrast._replace(out={n: by_size[len(c)] @ c for n, c in contrast.out.items()})


def of_size(d: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Factored:
    """d rescaled as a whole to |d| = |W|, over the weights that it changes: alpha is then a share."""
    if not (size := norm(d)):
        raise ValueError("synthetic: nothing of the contrast is left; project on other directions")
    whole = norm({name: base[name].float() for name in d})
    return scale(whole / size, d)  # type: ignore[return-value]

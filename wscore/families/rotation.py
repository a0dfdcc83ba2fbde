"""What OFT and BOFT share: Cayley's map, block rotations, and the best rotation in any dW."""

import math
from collections.abc import Callable, Mapping

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta, difference
from wscore.entries import entries
from wscore.families.base import Base, Checkpoint, Coordinates, Weight
from wscore.families.checkpoints import by_module, family_of
from wscore.families.merge import merge_modules
from wscore.families.splits import base_weight, float64, put

Blocks = Float[Tensor, "k b b"]


def cayley(Q: Blocks) -> Blocks:
    """R = (I - Q)(I + Q)^-1, orthogonal for skew Q (the two factors commute)."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(eye + Q, eye - Q)


def cayley_neumann(Q: Blocks, terms: int) -> Blocks:
    """R = I + 2 (Q + .. + Q^(t-2)) + Q^(t-1): nearly (I + Q)(I - Q)^-1, the inverse of `cayley`.

    t = `terms` from 4 up; PEFT reads 3 as 4, 2 as I + 2Q, less as I. Qiu et al. 2025 (2506.19847).
    """
    R = power = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q)
    weights = [2] * (max(terms, 4) - 2) + [1] if terms > 2 else [2] * (terms - 1)
    for weight in weights:
        power = power @ Q
        R = R + weight * power
    return R


def rotate(W: Weight, R: Blocks) -> Weight:
    """W diag(R_1 .. R_k)^T, block by block; one R with b < d_in is shared by all blocks."""
    blocks = rearrange(W, "d_out (k b) -> d_out k b", b=R.shape[-1])
    R = R.expand(blocks.shape[1], -1, -1)
    return einsum(blocks, R, "d_out k b, k c b -> d_out k c").flatten(1)


def rotation_rest(
    d: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    block: int | Mapping[str, int] | None = None,
) -> dict[str, Delta]:
    """dW = (W0 R^T - W0) + rest, R = argmin |W0 R^T - (W0 + dW)|_F: parts "rotation" and "rest".

    R runs over the orthogonal maps of the input side (reflections too), or with `block` over
    diag(R_1 .. R_k) with blocks of that size, one for all or one per name. Per block, with columns
    W of W0 and T of W0 + dW, R^T is the orthogonal polar factor of W^T T (Schoenemann 1966,
    Psychometrika 31). Where d_out is below the block size, W = L Q^T and T = L' Q'^T reduce that to
    a d_out x d_out SVD. R is unique only on the row space of W, which is all that W R^T sees; W R^T
    is unique where W^T T has the rank of W, as for every dW with |dW|_2 below W's smallest non-zero
    singular value and W of full rank. A bias has no input side: it is all rest.

    How much a rotation takes of any dW: for a random one, small beside W0, its expected share of
    |dW|^2 is the orbit's dimension over the entries', m (2b - m - 1) / (2 b d_out) with block size
    b and m = min(b, d_out): about 1/2 for a square weight with b = d_in and nearly all for a wide
    one, but (b - 1) / (2 d_out) for small blocks. Use the adapter's own blocks (`rotation_blocks`)
    to ask what an OFT or BOFT did by rotation, and a norm-matched random dW as the control.
    """
    parts: dict[str, Delta] = {"rotation": {}, "rest": {}}
    for name, w in entries(d):
        W, change = base_weight(base, name, w), float64(w)
        rotation = torch.zeros_like(W) if w.ndim == 1 else _rotation(name, W, W + change, block)
        put(parts, name, w, rotation, change - rotation)
    return parts


def _rotation(name: str, W: Weight, T: Weight, block: int | Mapping[str, int] | None) -> Weight:
    """W R^T - W for the best block-diagonal R."""
    b = block.get(name, 0) if isinstance(block, Mapping) else W.shape[1] if block is None else block
    if b < 1 or W.shape[1] % b:
        raise ValueError(
            f"rotation_rest: {name!r} has {W.shape[1]} inputs, and its block size is {b}; pass a"
            " divisor of the inputs for every name, or None for one block"
        )
    W, T = (rearrange(x, "d_out (k b) -> k d_out b", b=b) for x in (W, T))
    return rearrange(_nearest(W, T) - W, "k d_out b -> d_out (k b)")


def _nearest(W: Float[Tensor, "k d_out b"], T: Float[Tensor, "k d_out b"]) -> Tensor:
    """W R^T, block by block, that is nearest to T."""
    if W.shape[1] >= W.shape[2]:
        X, _, Y = torch.linalg.svd(W.mT @ T)
        return W @ X @ Y
    Q, L = torch.linalg.qr(W.mT)
    P, M = torch.linalg.qr(T.mT)
    X, _, Y = torch.linalg.svd(L @ M.mT)
    return L.mT @ X @ Y @ P.mT


def rotation_coordinates(
    size: Callable[[Mapping[str, Tensor]], int],
) -> Callable[[Checkpoint, Checkpoint, Base], Coordinates]:
    """The coordinate system "rotation", in blocks that hold both poles' own.

    size(tensors of a module) is the size of its blocks; poles of two sizes share their least common
    multiple.
    """

    def coordinates(pos: Checkpoint, neg: Checkpoint, base: Base) -> Coordinates:
        dW = difference(*(merge_modules(*pole, base) for pole in (pos, neg)))
        sizes = [rotation_blocks(pole, size, base) for pole in (pos, neg)]
        block = {name: math.lcm(*(blocks[name] for blocks in sizes)) for name in dW}
        return {"rotation": rotation_rest(dW, base, block)}

    return coordinates


def rotation_blocks(
    pole: Checkpoint, size: Callable[[Mapping[str, Tensor]], int], base: Base
) -> dict[str, int]:
    """name -> size of the diagonal blocks of R in an oft or boft checkpoint."""
    modules = by_module(pole.tensors, family_of(pole.config), set(base))
    return {f"{module}.weight": size(stored) for module, stored in modules.items()}

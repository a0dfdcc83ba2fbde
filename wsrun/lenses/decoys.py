"""Decoys: random deltas beside a planted one, with its norm, where its effect is not.

outside      in the same tensor, outside a frame of output directions
twins        in every other layer (or module): those of its namesake in the planted one
other_bands  in the block of each other band of the base weight of the same tensor, U_b R V_b^T
on_top       in the planted tensors, outside their row and column spaces: as many random directions
             as the plant has, each with ON_TOP times its largest singular value
Each has the singular values of a planted tensor, rescaled to its norm, except for on_top.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from wscore import SVD, Basis, Delta, DeltaLike, drop, match_norm, spectrum_null, stream, svd
from wscore.null import gaussian
from wscore.sites import site
from wscore.spectrum import inside
from wsrun.lenses.coordinates import BANDS

ON_TOP = 1.1


def outside(core: DeltaLike, frame: Basis, seed: int) -> DeltaLike:
    """(1 - F F^T) R with |R_t| = |core_t|."""
    random = {n: alike(w, w.shape, n, seed) for n, w in core.items()}
    return match_norm(drop(random, frame), core)


def twins(core: DeltaLike, weights: Mapping[str, Tensor], by: int, seed: int) -> Delta:
    """R in every weight without a planted change, like the planted one of its layer (by 0) or of
    its module (by 1)."""
    of = {slices_of(n)[by]: w for n, w in core.items()}
    rest = {n: w.shape for n, w in weights.items() if n not in core}
    return {n: alike(of[slices_of(n)[by]], shape, n, seed) for n, shape in rest.items()}


def other_bands(core: DeltaLike, svds: Mapping[str, SVD], bands: Iterable[str], seed: int) -> Delta:
    """sum_b U_b R_b V_b^T of the other bands."""
    out = {}
    for name, w in core.items():
        out[name] = torch.zeros_like(w)
        for band in bands:
            U, Vt = (t.to(w.dtype) for t in block(svds[name], band))
            R = alike(w, (U.shape[1], len(Vt)), f"{name}/{band}", seed)
            out[name] = out[name] + U @ R @ Vt
    return out


def on_top(core: DeltaLike, seed: int) -> Delta:
    """ON_TOP s_1 sum_i u_i v_i^T, u_i and v_i random outside the spaces of the planted tensor."""
    return {name: _on_top(w, name, seed) for name, w in core.items()}


def _on_top(w: Tensor, name: str, seed: int) -> Tensor:
    U, S, Vt = svd(w)
    R = gaussian(w.shape, w, stream(seed, f"under/{name}"))
    R = R - U @ (U.T @ R)
    R = svd(R - (R @ Vt.T) @ Vt)
    return ON_TOP * S[0] * R.U[:, : len(S)] @ R.Vt[: len(S)]


def alike(w: Tensor, shape: Sequence[int], name: str, seed: int) -> Tensor:
    """Random directions in `shape` with w's singular values, as many as fit, and w's norm."""
    S, W = svd(w).S[: min(shape)], w.new_zeros(*shape)
    W.diagonal()[: len(S)] = S
    return match_norm(spectrum_null({name: W}, seed), {name: w})[name]


def block(of: SVD, band: str) -> tuple[Tensor, Tensor]:
    """U_b [d_out, b] and Vt_b [b, d_in]: the singular directions of a band."""
    i = inside(BANDS[band], of.S)
    return of.U[:, i], of.Vt[i]


def slices_of(name: str) -> tuple[str, str]:
    """The layer and the module of a parameter, as the lenses name them."""
    return f"layer_{site(name).layer}", site(name).proj

"""Nulls: deltas that share a norm or a spectrum with a trained one, and nothing else.

Every draw comes from `stream(seed, name)`, so a parameter's draw does not depend on the order of
the keys or on which other parameters are there.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from wscore.delta import Delta, entry_norm, length, norm, scale
from wscore.entries import columns, entries, format_keys, metas, nonempty, whole
from wscore.factored import Factored, Factors, meta
from wscore.files import quoted
from wscore.spectrum import svd_of


def stream(seed: int, name: str) -> torch.Generator:
    """A generator seeded by sha256("<seed>/<name>"): the same whatever the order of keys."""
    digest = sha256(f"{whole(seed, 'seed')}/{name}".encode(errors="backslashreplace")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def gaussian(shape: torch.Size | tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    """N(0, 1) entries of like's dtype on its device, drawn on the CPU: the same bits anywhere."""
    return torch.randn(shape, generator=random, dtype=like.dtype).to(like.device)


def haar(
    d_out: int, k: int, like: Float[Tensor, "..."], random: torch.Generator
) -> Float[Tensor, "{d_out} {k}"]:
    """k orthonormal columns, uniformly distributed: QR of a Gaussian, with diag(R) > 0.

    Without the sign fix QR's own convention biases the directions (Mezzadri 2007,
    arXiv math-ph/0609050).
    """
    Q, R = torch.linalg.qr(gaussian((d_out, k), like, random))
    return Q * torch.where(R.diagonal() < 0, -1, 1).to(Q.dtype)


def match_norm(
    d: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
    per: Literal["tensor", "all"] = "tensor",
) -> Delta | Factored:
    """d rescaled to like's norm: |out_t| = |like_t| per "tensor", or |out| = |like| per "all".

    A factored d stays factored.
    """
    if per not in ("tensor", "all"):
        raise ValueError(f'match_norm: per={quoted(per)} is unknown; use "tensor" or "all"')
    if odd := set(d) ^ set(like):
        raise ValueError(
            f"match_norm: {format_keys(odd)} on one side only; give both the same targets"
        )
    if per == "all":
        return scale(_factor(norm(d), norm(like), "the delta"), d)
    factors = {n: _factor(entry_norm(d, n), entry_norm(like, n), quoted(n)) for n in nonempty(d)}
    if isinstance(d, Factored):
        return Factored({n: (c * d.factors(n).L, d.factors(n).R) for n, c in factors.items()})
    return {name: factors[name] * w for name, w in entries(d)}


def _factor(has: float, wants: float, what: str) -> float:
    if wants == 0:
        return 0.0
    if has == 0:
        raise ValueError(f"match_norm: {what} is zero and cannot have norm {wants:.3g}; omit it")
    return wants / has


def gaussian_null(like: Mapping[str, Tensor], seed: int) -> Delta:
    """Gaussian entries with the norm of `like`, tensor by tensor: |out_t|_F = |like_t|_F."""
    out = {}
    for name, w in entries(like):
        drawn = gaussian(w.shape, w, stream(seed, f"gaussian/{name}"))
        out[name] = _factor(length(drawn), entry_norm(like, name), quoted(name)) * drawn
    return out


def spectrum_null(like: Mapping[str, Tensor], seed: int) -> Delta | Factored:
    """U' diag(S) V'^T: each tensor's own singular values, in Haar-random directions.

    Of a factored delta the null is factored too, (U' diag(S)) V'^T.
    """
    if isinstance(like, Factored):
        return Factored({n: _rotated(like, n, seed) for n in nonempty(like)})
    rotated = ((name, w, _rotated(like, name, seed)) for name, w in metas(like))
    return {name: (x.L @ x.R).reshape(w.shape) for name, w, x in rotated}


def _rotated(like: Mapping[str, Tensor], name: str, seed: int) -> Factors:
    S, random = svd_of(like, name).S, stream(seed, f"spectrum/{name}")
    d_out, d_in = columns(meta(like, name)).shape
    U, V = (haar(side, len(S), S, random) for side in (d_out, d_in))
    return Factors(U * S, V.T)

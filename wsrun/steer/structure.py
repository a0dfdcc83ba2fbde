"""Directions that the base weights themselves single out: of the readout, of reading, of writing.

All of them are orthonormal bases of the residual stream, [d_model, k], under the names of the
weights that write into it, for `keep` and `drop`. A norm is taken at its gain, g of g h/rms(h); one
that stands between a map and the residual stream (Gemma 3) is left out.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from wscore import Basis, reads_residual, site, writes_residual
from wscore.sites import Where
from wsrun.models.hooks import decoder_layers
from wsrun.models.load import d_model

ROWS = 8192  # of the readout, in float64 at a time


def weights(model: PreTrainedModel, where: Where) -> dict[str, Tensor]:
    """The matrices of the decoder's layers at the sites that satisfy `where`, by parameter name."""
    matrix_ids = {id(p) for p in decoder_layers(model).parameters() if p.ndim == 2}
    named = {n: p for n, p in model.named_parameters() if id(p) in matrix_ids}
    selected = {n: p.detach() for n, p in named.items() if where(site(n))}
    if not selected:
        raise ValueError(f"structure: `where` selects none of {len(named)} matrices")
    return selected


def readout_basis(model: PreTrainedModel, names: Iterable[str], k: int) -> Basis:
    """Top-k right singular vectors of (I - 1 1^T / v) W_U diag(g), one basis under all names.

    What all tokens' logits share does not change a probability, so it is taken off.
    """
    _check_k(model, k)
    W: Tensor = model.get_output_embeddings().weight.detach()  # type: ignore[union-attr]
    g = gain(cast(nn.Module, model.get_decoder().norm), W)
    mean = sum(part.double().sum(0) for part in W.split(ROWS)) / len(W)
    G = sum(_gram((part.double() - mean) * g) for part in W.split(ROWS))
    return dict.fromkeys(names, _top(cast(Tensor, G), k))


def unread_subspace(model: PreTrainedModel, names: Iterable[str], k: int) -> Basis:
    """span((I - R R^T) U): what later layers write (U) outside of what they read (R).

    U: top-k left singular vectors of the later o and down maps, [W/|W|, ...] side by side; R: top-k
    right singular vectors of the later q, k, v, gate and up maps, W diag(g)/|W diag(g)|, stacked.
    "Later" is what comes after the weight's own write. Names with nothing after them are left out.
    """
    _check_k(model, k)
    later = dict(_later(model))
    bases = {}
    for name in names:
        if (at := _place(name)) in later:
            read, written = later[at]
            R, U = _top(read, k), _top(written, k)
            outside, S, _ = torch.linalg.svd(U - R @ (R.T @ U), full_matrices=False)
            bases[name] = outside[:, S > 1e-6]
    if not bases:
        raise ValueError("unread_subspace: no layer comes after these weights; use earlier ones")
    return bases


def _later(model: PreTrainedModel) -> Iterator[tuple[tuple[int, bool], tuple[Tensor, Tensor]]]:
    """((layer, is MLP), Gram matrices of all reads and of all writes after it), from the last."""
    maps = weights(model, reads_residual | writes_residual)
    read = written = None
    for number in reversed(range(len(decoder_layers(model)))):
        for mlp in (True, False):
            if read is not None and written is not None:
                yield (number, mlp), (read, written)
            block = [n for n in maps if _place(n) == (number, mlp)]
            for name in block:
                W = maps[name].double()
                if writes_residual(site(name)):
                    written = _plus(written, W.T)
                else:
                    read = _plus(read, W * gain(norm_before(model, number, mlp), W))


def _place(name: str) -> tuple[int, bool]:
    at = site(name)
    return at.layer, at.block == "mlp"


def norm_before(model: PreTrainedModel, layer: int, mlp: bool) -> nn.Module:
    """The norm through which a layer's attention or MLP sees the residual stream."""
    module = decoder_layers(model)[layer]
    names = (
        ["pre_feedforward_layernorm", "post_attention_layernorm"] if mlp else ["input_layernorm"]
    )
    return next(getattr(module, n) for n in names if hasattr(module, n))


def gain(norm: nn.Module, like: Tensor) -> Float[Tensor, " d"]:
    """g of an RMS norm g h/rms(h): what it gives for h = 1, in float64."""
    weight = cast(Tensor, norm.weight)
    with torch.no_grad():
        return norm(torch.ones_like(weight)).double().to(like.device)


def _plus(G: Tensor | None, rows: Tensor) -> Tensor:
    share = _gram(rows) / rows.norm() ** 2
    return share if G is None else G + share


def _gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    return rows.T @ rows


def _top(G: Float[Tensor, "d d"], k: int) -> Float[Tensor, "d k"]:
    """Top-k eigenvectors, the largest first."""
    return torch.linalg.eigh(G).eigenvectors.flip(1)[:, :k].cpu().contiguous()


def _check_k(model: PreTrainedModel, k: int) -> None:
    d = d_model(model)
    if not 0 < k < d:
        raise ValueError(f"structure: k must be at least 1 and below d_model = {d}, got {k}")

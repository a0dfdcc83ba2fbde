"""A weight change as a product of low rank, weight by weight: exact where it can be.

dW = L R          the factors that the delta holds, terms of one R added up
dW ~ U_k S_k V_k  the best of rank k (Eckart and Young 1936)
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wscore import Factored, norm
from wscore.delta import length
from wscore.entries import whole
from wscore.factored import Factors, meta
from wscore.files import quoted
from wscore.spectrum import svd_of
from wsrun.steer.weights import touched_parameters

WEIGHT = ".weight"
MAX_ERROR = 0.1
"""relative error of an export that nobody asked to be inexact"""


class LowRank(NamedTuple):
    """B A per weight, all of one rank, as they are written; error = |dW - B A| / |dW|."""

    factors: dict[str, Factors]
    rank: int
    error: float
    exact: bool


def low_rank(
    who: str, delta: Mapping[str, Tensor], rank: int | None, max_error: float | None,
    dtype: torch.dtype = torch.float32,
) -> LowRank:  # fmt: skip
    """The change at a rank, by default the least that holds all of it.

    Raises ValueError for a rank below 1, a change of full rank without a rank to cut it to, an
    error above `max_error` (None: any), and a zero change.
    """
    if rank is not None:
        rank = whole(rank, f"{who}: rank", 1)
    if not norm(delta):
        raise ValueError(f"{who}: the change is zero; there is nothing to write")
    found = {name: _factors(who, delta, name, rank) for name in delta}
    needed = max(x.L.shape[1] for x, _ in found.values())
    rank, exact = rank or max(needed, 1), all(own for _, own in found.values())
    written = {name: _padded(x, rank, dtype) for name, (x, _) in found.items()}
    lost = sum(length(delta[n] - x.L.float() @ x.R.float()) ** 2 for n, x in written.items())
    error = lost**0.5 / norm(delta)
    if max_error is not None and not error <= max_error:
        raise ValueError(
            f"{who}: the best change of rank {rank} differs from dW by {error:.1%} of its norm, "
            f"above max_error {max_error:.1%}; give a higher rank, or max_error=None to accept it"
        )
    return LowRank(written, rank, error, exact and dtype == torch.float32)


def _factors(
    who: str, delta: Mapping[str, Tensor], name: str, rank: int | None
) -> tuple[Factors, bool]:
    """(B, A) of one weight of at most `rank`, and whether nothing is cut off."""
    U, S, Vt = svd_of(delta, name)  # of factors: of the small matrix between them
    if isinstance(delta, Factored) and (rank is None or len(S) <= rank):
        own = delta.factors(name)
        if own.L.shape[1] <= len(S):
            return own, True
    d_out, d_in = U.shape[0], Vt.shape[1]
    if rank is None and len(S) * (d_out + d_in) > d_out * d_in:
        raise ValueError(
            f"{who}: the change of {quoted(name)} has rank {len(S)} of {min(d_out, d_in)}, which no"
            " smaller factors hold; give a rank to cut it to"
        )
    root = S[:rank].sqrt()
    return Factors(U[:, :rank] * root, root[:, None] * Vt[:rank]), rank is None or len(S) <= rank


def _padded(x: Factors, rank: int, dtype: torch.dtype) -> Factors:
    """The same product with `rank` terms, those beyond its own zero."""
    more = rank - x.L.shape[1]
    L, R = nn.functional.pad(x.L, (0, more)), nn.functional.pad(x.R, (0, 0, 0, more))
    return Factors(L.to(dtype).contiguous(), R.to(dtype).contiguous())


def check_linear(who: str, model: PreTrainedModel, delta: Mapping[str, Tensor]) -> dict[str, bool]:
    """name -> whether the weight is stored as [d_in, d_out], of weights that a LoRA can change.

    Raises ValueError for what is no delta of the model, and for anything but the weight of a
    linear layer of its own: an embedding, a norm, a bias, a weight that two layers share.
    """
    params, turned = touched_parameters(model, delta, who), {}
    users = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, param in params.items():
        module = model.get_submodule(name.rpartition(".")[0])
        linear = isinstance(module, nn.Linear | Conv1D) and name.endswith(WEIGHT)
        if not linear or meta(delta, name).ndim != 2:
            kind = type(module).__name__
            raise ValueError(
                f"{who}: {quoted(name)} is no matrix of a linear layer (it is of a {kind}), which "
                "is all that a LoRA changes; leave it out, or export it merged"
            )
        if users[id(param)] > 1:
            raise ValueError(
                f"{who}: {quoted(name)} is tied to another layer, and a LoRA would change one of "
                "the two; leave it out, or export it merged"
            )
        turned[name] = isinstance(module, Conv1D)
    return turned


def linear_factors(
    x: Factors, turned: bool
) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
    """(B, A) of the layer's own map, whatever way its weight is stored: (L R)^T = R^T L^T."""
    return (x.R.T.contiguous(), x.L.T.contiguous()) if turned else (x.L, x.R)

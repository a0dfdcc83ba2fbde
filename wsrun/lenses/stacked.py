"""Stacked writes (T6): one subspace a layer for all that writes to the residual stream there.

keep U_l U_l^T dW for o_proj and down_proj of layer l alike, U_l [d_model, k] the top k left
singular vectors of [dW_o, dW_down] side by side: of OTHER families' deltas, each with unit norm
(stacked), or of the delta's own (stacked_own). A tensor that does not write there has a subspace of
its own.
"""

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from wscore import Basis, DeltaLike, Factored, shared_basis, site, writes_residual
from wscore.entries import columns
from wsrun.lenses.base import Cut, LensInput
from wsrun.lenses.subspaces import first_columns, other_deltas, projection


def stacked(at: LensInput) -> Iterator[Cut]:
    """keep_stacked, drop_stacked of other families' writes; *_stacked_own of the delta's own."""
    for k in at.K:
        for kind in ("stacked", "stacked_own"):
            yield projection(at, kind, k, partial(_directions, at, kind, k))


def _directions(at: LensInput, kind: str, k: int) -> Basis:
    return first_columns(_by_tensor(at, kind), k)


@lru_cache(maxsize=2)
def _by_tensor(at: LensInput, kind: str) -> Basis:
    """The basis of each tensor's layer, at the largest K."""
    deltas = [at.dW] if kind == "stacked_own" else other_deltas(at)["shared"]
    bases = shared_basis([side_by_side(d) for d in deltas], max(at.K))
    return {name: bases[_place(name)] for name in at.dW}


def side_by_side(d: DeltaLike) -> DeltaLike:
    """[dW_o, dW_down] of each layer under one name; of factors, [L_o, L_down] diag(R_o, R_down)."""
    groups: dict[str, list[str]] = {}
    for name in d:
        groups.setdefault(_place(name), []).append(name)
    if not isinstance(d, Factored):
        return {
            place: torch.cat([columns(d[n]) for n in names], 1) for place, names in groups.items()
        }
    factors = {place: [d.factors(n) for n in names] for place, names in groups.items()}
    return Factored(
        {
            place: (torch.cat([x.L for x in of], 1), torch.block_diag(*(x.R for x in of)))
            for place, of in factors.items()
        }
    )


def _place(name: str) -> str:
    return f"writes of layer {site(name).layer}" if writes_residual(site(name)) else name

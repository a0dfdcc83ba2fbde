"""Rank-one terms: the coordinates of families whose change is L R.

tau = sum_i tau_i,  tau_i = L_i R_i,  component_i = tau_i of pos - tau_i of neg
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wscore.delta import Delta, difference
from wscore.factored import Factors
from wscore.families.base import FAMILIES, Base, Checkpoint, Coordinates
from wscore.families.checkpoints import family_of, targets
from wscore.families.splits import one_family


class Terms(NamedTuple):
    """The r terms of one weight: its factors in float64, term i in columns i, i + r, .. of L."""

    factors: Factors
    r: int

    def term(self, i: int) -> Tensor:
        """L_i R_i in float32, zero where there is no term i."""
        L, R = self.factors
        if not 0 <= i < self.r:
            return torch.zeros(L.shape[0], R.shape[1], device=L.device)
        return (L[:, i :: self.r] @ R[i :: self.r]).float()


@torch.no_grad()
def rank_terms(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Base
) -> dict[str, Terms]:
    """name -> rank-one terms of a checkpoint whose family is a sum of them; else ValueError.

    lora    s b_i a_i, with a_i rows of A and b_i columns of B
    pissa   s (b_i a_i - b0_i a0_i)
    delora  (lambda/r) b_i a_i diag(w) / (|b_i| |a_i|)
    """
    family = family_of(config)
    if family.factors is None:
        able = ", ".join(f.name for f in FAMILIES.values() if f.factors)
        raise ValueError(
            f"rank_components: the adapter is {family.name} ({family.parameterization}), no sum of"
            f" rank-one terms; use one of {able}, or family_coordinates"
        )
    factors = {
        name: target.stored_factors(family.factors(target))
        for name, target in targets(adapter, config, base)
    }
    return {name: Terms(x, x.L.shape[1] // family.columns_per_term) for name, x in factors.items()}


def rank_components(
    pos: Mapping[str, Tensor],
    neg: Mapping[str, Tensor],
    config_pos: Mapping[str, Any],
    config_neg: Mapping[str, Any],
    base: Base,
) -> dict[str, Delta]:
    """component_i = the i-th term of tau_pos - the i-th term of tau_neg, see `rank_terms`.

    i runs from 0 to the largest rank of any module; a module without term i has zeros there. The
    terms are the checkpoint's, not dW's: B A = (B G)(G^-1 A) for any invertible G, and term i of
    pos and of neg belong together only where both started from one init.

    Each component has all entries of dW. Raises ValueError for families that are no such sum, and
    as `merge_adapter` and `difference` do.
    """
    one_family(config_pos, config_neg)
    sides = rank_terms(pos, config_pos, base), rank_terms(neg, config_neg, base)
    count = max(x.r for side in sides for x in side.values())
    terms = ([{n: x.term(i) for n, x in side.items()} for side in sides] for i in range(count))
    return {f"component_{i}": dict(difference(*pair)) for i, pair in enumerate(terms)}


def rank_coordinates(pos: Checkpoint, neg: Checkpoint, base: Base) -> Coordinates:
    """The coordinate system "rank" of two poles."""
    return {"rank": rank_components(pos.tensors, neg.tensors, pos.config, neg.config, base)}

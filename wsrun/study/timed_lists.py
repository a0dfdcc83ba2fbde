"""What bench_sweep times: a list of variants on a model and items, and the plain loop over it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from wscore import DeltaLike, scale, select, spectrum_null, writes_residual
from wsrun.data.items import Item
from wsrun.lenses.base import Cut, Deltas, LensInput
from wsrun.lenses.registry import cuts
from wsrun.models.generate import right_padded
from wsrun.score.plan import plan
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta, applied

LENSES = {
    "T6": ("shared", "shared_incl", "own", "random"),
    "T7": ("layers", "thirds", "blocks", "sides", "modules", "groups", "cells"),
}
Changes = Mapping[tuple[str, int], DeltaLike]  # (family, seed) -> dW


class Work(NamedTuple):
    """One list of variants, and what it is scored on."""

    name: str
    model: Any
    tok: Any
    items: list[Item]
    variants: Iterable[Variant]


def variants_of(
    name: str, whole: Changes, lenses: Iterable[str], nulls: int, thin: int = 1
) -> Iterator[Variant]:
    """What T6 (K = 32) or T7 scores of every dW: all of it, zero, every cut, and null draws."""
    where = writes_residual if name == "T6" else None
    deltas = Deltas({key: select(d, where) if where else d for key, d in whole.items()})
    for (family, seed), d in deltas.items():
        if where:
            yield Variant("full", WeightDelta(whole[family, seed]), family=family)
        yield Variant("whole", WeightDelta(d), family=family)
        yield Variant("zero", WeightDelta(scale(0.0, d)), family=family)
        all_cuts = cuts(lenses, LensInput(family, seed, deltas, K=(32,)))
        for cut in [cut for cut in all_cuts if not cut.absent][::thin]:
            for role, part in parts(cut):
                yield Variant(f"{role}_{cut.name}", part, family=family)
        for i in range(nulls):
            null = WeightDelta(spectrum_null(d, i))
            yield Variant(f"spectrum_null#{i:02d}", null, family=family)


def parts(cut: Cut) -> Iterator[tuple[str, WeightDelta]]:
    """keep, drop and control (random directions of the kept part's rank and norm), as it has."""
    kept = cut.kept()
    for role in cut.roles:
        if role == "keep":
            yield role, WeightDelta(kept)
        else:
            yield role, WeightDelta(cut.rest() if role == "drop" else spectrum_null(kept, 999))


@torch.no_grad()
def plain_loop(work: Work) -> np.ndarray:
    """The margins at alpha = 1, a row a variant: each at alpha 0 and 1, items in batches of 8."""
    margins = []
    for variant in work.variants:
        for alpha in (0.0, 1.0):
            with applied(work.model, variant.intervention, alpha):
                batches = (work.items[i : i + 8] for i in range(0, len(work.items), 8))
                rows = [m for batch in batches for m in plain_batch(work, batch)]
        margins.append(rows)
    return np.array(margins)


def plain_batch(work: Work, items: list[Item]) -> list[float]:
    """Margins of a few items, right-padded, from the logits of every position."""
    model, p = work.model, plan(work.tok, items)
    ids, mask = (x.to(model.device) for x in right_padded(p.sequences))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    row, at = zip(*[(n, at) for n, s in enumerate(p.flat) for at in s.positions], strict=True)
    values = p.readout.values([*range(len(row))], logits[list(row), list(at)].float().cpu())
    return p.results(values)[0].tolist()

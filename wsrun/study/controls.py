"""Controls: what must do nothing, what does nothing on average, and a planted bias to Yes.

The base and zero times dW must not move an answer. Random changes and directions have the size of
what they are drawn for, and are scored at a hundredth of it, too, where they must not either.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Delta, scale, spectrum_null
from wscore.effect import SUMMARY_KEYS
from wsrun.data.items import Item
from wsrun.models.chat import choice_ids, render
from wsrun.score.names import DW, way
from wsrun.score.sweep import Variant
from wsrun.study.selection import Chosen

SMALL = "/100"  # of a dose, in the name of a control


def nothing(chosen: Mapping[str, Chosen]) -> Variant:
    """A control that does nothing: the chosen dW at dose zero times."""
    dW = chosen[DW].variant
    return replace(dW, name="zero", delta=scale(0.0, dW.change()), alphas=(1.0,))


def random_changes(dW: Variant, draws: int) -> list[Variant]:
    """Controls: dW's own singular values in random directions, at its dose; one seed per draw."""
    return [
        replace(dW, name="random", delta=partial(spectrum_null, dW.change(), i), seed=i)
        for i in range(draws)
    ]


def faint(controls: Iterable[Variant]) -> list[Variant]:
    """Every draw of a random control once more at a hundredth of its dose, as "way/100".

    f(a r) = f(0) + a g r + a^2 r^T H r / 2 + ...: over random directions r the second term is 0 in
    the mean, the third is not. At a large dose a random change may well move the answers. A
    hundredth of it hardly does: 1/100 of the spread is left, and 1/10000 of that shift.
    """
    found = []
    for v in controls:
        if v.seed is not None and v.name.startswith("random"):
            name = v.name.replace(way(v.name), f"{way(v.name)}{SMALL}", 1)
            small = {"name": name, "alphas": tuple(a / 100 for a in v.alphas or ())}
            found.append(Variant(**{f.name: getattr(v, f.name) for f in fields(Variant)} | small))
    return found


def base_lines(rows: pl.DataFrame) -> pl.DataFrame:
    """The lines of the base, one per data set: effect, bias and discrimination 0 by definition."""
    keys = [*SUMMARY_KEYS]
    nil = {c: pl.lit(0.0) for c in ("effect", "lo", "hi", "bias", "discrimination")}
    clusters = pl.col("cluster").n_unique().cast(pl.Int64)
    facts = {"mass": pl.col("mass").mean(), "flagged_share": pl.col("flagged").mean()}
    return (
        rows.filter(pl.col("alpha") == 0)
        .group_by(keys)
        .agg(n=pl.len().cast(pl.Int64), clusters=clusters, **facts)
        .with_columns(**nil, row_diff=pl.lit(0, pl.Int64))
        .sort(keys)
    )


def idle(table: pl.DataFrame) -> Iterator[str]:
    """Per data set, how far the lines are from 0 that must be: base, zero, and `faint` controls."""
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        still = part.filter(pl.col("variant").is_in(["base", "zero"]))["effect"].abs().max()
        said = f"{dataset}: what must do nothing: base and zero {still:.4f} nats"
        small = part.filter(pl.col("variant").str.contains(SMALL, literal=True))
        small = small.drop_nulls("lo")  # one cluster has no interval
        if len(small):
            holds = int(((small["lo"] <= 0) & (small["hi"] >= 0)).sum())
            r = small.sort(pl.col("effect").abs()).row(-1, named=True)
            largest = f"{r['effect']:+.4f} [{r['lo']:+.4f}, {r['hi']:+.4f}] ({way(r['variant'])})"
            said += (
                f"; random at a hundredth of its dose: {holds} of {len(small)} intervals hold 0, "
                f"the largest is {largest}"
            )
        yield said


@torch.no_grad()
def final_states(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, items: Sequence[Item]
) -> Float[Tensor, "n d"]:
    """What the readout sees where an item's answer is read: the last norm's output, in fp32."""
    decoder = model.get_decoder()
    prompts = (torch.tensor([render(tok, i.turns, i.prefill)]) for i in items)
    states = (decoder(ids.to(model.device), use_cache=False)[0][0, -1] for ids in prompts)
    return torch.stack([state.float().cpu() for state in states])


def yes_bias(model: PreTrainedModel, tok, states: Tensor, nats: float = 2.0) -> Delta:
    """A change of the readout that only raises Yes: w_i' = w_i + nats h / |h|^2 for i in Yes.

    states: [n, d], what the readout sees where the answers are read; h is their mean. On a state
    near h the margin rises by `nats` whatever the question is: all bias, no discrimination.
    """
    h = states.double().mean(0)
    weight: Tensor = model.get_output_embeddings().weight  # type: ignore[union-attr]
    name = next(n for n, p in model.named_parameters() if p is weight)
    change = torch.zeros(weight.shape)
    change[choice_ids(tok).yes] = (nats * h / (h @ h)).float()
    return {name: change}

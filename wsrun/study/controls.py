"""Controls: what must do nothing, what does nothing on average, and a planted bias to Yes.

The base and zero times dW must not move an answer. Random controls have the size of what they are
drawn for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Delta, scale
from wsrun.data.items import Item
from wsrun.models.chat import choice_ids, render
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta


def zero_control(dW: Variant) -> Variant:
    """A control that does nothing: the chosen dW, zero times."""
    nothing = WeightDelta(scale(0.0, dW.intervention.delta()))
    return replace(dW, name="zero", intervention=nothing, alphas=(1.0,))


def random_controls(v: Variant, draws: int, name: str = "random") -> list[Variant]:
    """Random interventions of the size of v's, at its alpha; one seed per draw.

    Of dW they have its own singular values, in random directions.
    """
    return [
        replace(v, name=name, intervention=v.intervention.random_like(i), seed=i)
        for i in range(draws)
    ]


def sanity_summary(table: pl.DataFrame) -> Iterator[str]:
    """Per data set, how far the lines are from 0 that must be there: base and zero."""
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        still = part.filter(pl.col("variant").is_in(["base", "zero"]))["effect"].abs().max()
        yield f"{dataset}: base and zero, which must do nothing: {still:.4f} nats"


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

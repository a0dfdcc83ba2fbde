"""Directions of the residual stream, from the very pairs of answers that dW is trained on.

    d_il = h_l(prompt_i + response_pos_i) - h_l(prompt_i + response_neg_i)

h_l is the output of decoder layer l, averaged over the tokens of the response: not the prompt, and
not the end of turn after it; or, with at="last", at the last token of the response. The persona is
not in the prompt, as in training, unless it is asked for: then each response is read under the
system turn that it was given under. Each direction is what `AddVectors` takes, {layer: v}, one
vector for every layer.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore.files import quoted
from wsrun.data.pairs import Pair, example
from wsrun.models.generate import right_padded
from wsrun.models.hooks import Hook, decoder_layers, hooked
from wsrun.models.load import d_model

Vectors = dict[int, Tensor]  # layer -> v, [d]
At = Literal["mean", "last"]


class Answered(NamedTuple):
    """A prompt and its response, under a system turn where there is one."""

    prompt: str
    response: str
    system: str | None = None


def n_layers(model: PreTrainedModel) -> int:
    """How many decoder layers the model has."""
    return len(decoder_layers(model))


@torch.no_grad()
def response_states(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    answered: Sequence[Answered],
    *,
    at: At = "mean",
    batch_size: int = 32,
    batch_done: Callable[[str], None] = lambda note: None,
) -> Float[Tensor, "n l d"]:
    """h_l of each answer, the mean over the response's tokens or its last; fp32, on the CPU.

    Tokens are those of training (`pairs.example`). Raises ValueError for none, for a response
    without tokens, and for states that are not finite.
    """
    if at not in ("mean", "last"):
        raise ValueError(f'directions: at={quoted(at)} is unknown; use "mean" or "last"')
    if not answered:
        raise ValueError("directions: no answers to read; give one pair or more")
    examples = [example(tok, *a) for a in answered]
    lengths = [len(ids) - 1 - start for ids, start in examples]
    if 0 in lengths:
        prompt = answered[lengths.index(0)].prompt
        raise ValueError(f"directions: the response to {prompt!r} has no tokens; leave it out")
    states = torch.empty(len(examples), n_layers(model), d_model(model))
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i][0]), i))
    for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        ids, mask = (x.to(model.device) for x in right_padded([examples[i][0] for i in batch]))
        weights = torch.zeros(ids.shape, device=model.device)  # they sum to 1 over what is read
        for row, i in enumerate(batch):
            end = examples[i][1] + lengths[i]
            read = lengths[i] if at == "mean" else 1
            weights[row, end - read : end] = 1 / read
        with hooked(model, {n: _into(states, batch, n, weights) for n in range(states.shape[1])}):
            model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
        batch_done("")
    if not torch.isfinite(states).all():
        raise ValueError("directions: the model gave states that are not finite; use a wider dtype")
    return states


def _into(states: Tensor, batch: list[int], layer: int, weights: Float[Tensor, "b s"]) -> Hook:
    def hook(hidden: Float[Tensor, "b s d"]) -> None:
        states[batch, layer] = torch.einsum("bs,bsd->bd", weights, hidden.float()).cpu()

    return hook


def pair_differences(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    at: At = "mean",
    persona: bool = False,
    batch_size: int = 32,
    batch_done: Callable[[str], None] = lambda note: None,
) -> Float[Tensor, "n l d"]:
    """d_il for every pair i and layer l; with `persona`, each response under its own persona.

    at="mean" reads all tokens of the responses, at="last" the last of each, before the end of turn,
    as the public code after Zou et al. 2023 (arXiv 2310.01405) does (repeng). Raises as
    `response_states`, and where a persona is asked for that the pairs do not know.
    """
    if persona and any(p.persona_pos is None or p.persona_neg is None for p in pairs):
        raise ValueError("directions: some pairs do not name their personas; use make_pairs")
    answered = [
        Answered(p.prompt, response, by if persona else None)
        for p in pairs
        for response, by in ((p.response_pos, p.persona_pos), (p.response_neg, p.persona_neg))
    ]
    states = response_states(
        model, tok, answered, at=at, batch_size=batch_size, batch_done=batch_done
    )
    return states[::2] - states[1::2]


def mean_difference(differences: Float[Tensor, "n l d"]) -> Vectors:
    """v_l = mean_i d_il, not centred (Rimsky et al. 2023, arXiv 2312.06681, at other positions).

    Centring the differences would take away their mean: what all pairs share, the persona.
    """
    return dict(enumerate(differences.double().mean(0).float()))


def principal(differences: Float[Tensor, "n l d"]) -> Vectors:
    """v_l = |m_l| u_l: u_l the first principal direction of the centred d_il, m_l their mean.

    Centred as in the public code after Zou et al. 2023 (arXiv 2310.01405), for comparison: u_l is
    the direction in which pairs differ most from one another. Its sign is that of most u_l . d_il
    (of their sum in a tie), and its length that of the mean difference, so that a coefficient
    means the same. Raises ValueError where the pairs do not differ from one another.
    """
    d = differences.double()
    out: Vectors = {}
    for layer, (mean, part) in enumerate(zip(d.mean(0), d.unbind(1), strict=True)):
        _, S, Vt = torch.linalg.svd(part - mean, full_matrices=False)
        if S[0] <= 1e-6 * part.norm():
            raise ValueError(
                f"directions: the {len(d)} pairs have one and the same difference in layer {layer},"
                " and no principal direction; give more pairs"
            )
        along = part @ Vt[0]
        sign = along.sign().sum().sign() or along.sum().sign()
        out[layer] = (sign * mean.norm() * Vt[0]).float()
    return out

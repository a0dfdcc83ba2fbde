"""Persona contrasts: what a system prompt changes inside a model where an answer begins.

Only the model itself and its own prompts enter: no adapter, no label, no evaluation item.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.models.chat import Turn, render, user

ZERO = 1e-9  # a contrast below this share of the outputs themselves is rounding
Done = Callable[[str], None]


class Means(NamedTuple):
    """Mean input and mean output of one module, in float64."""

    input: Float[Tensor, " d_in"]
    output: Float[Tensor, " d_out"]


class Contrast(NamedTuple):
    """What a persona changes in what each weight writes, and what that weight usually sees.

    out: parameter name -> c = E[output | positive persona] - E[output | negative persona]
    x:   parameter name -> E[input | no persona]
    Both in float64, at the last position of the prompt.
    """

    out: dict[str, Float[Tensor, " d_out"]]
    x: dict[str, Float[Tensor, " d_in"]]


def persona_contrast(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    weights: Iterable[str],
    prefill: str = "",
    done: Done = lambda note: None,
) -> Contrast:
    """The contrast of two personas over every prompt under every wording, for named weights.

    A difference of means (Marks & Tegmark 2023, arXiv 2310.06824), of module outputs in place of
    the residual stream. `prefill` is how the answer begins; `done` is called after each of the
    three passes. Raises ValueError for no prompts or wordings, and for personas without effect.
    """
    if not (prompts and positive and negative):
        raise ValueError(
            f"persona_contrast: {len(prompts)} prompts, {len(positive)} positive and "
            f"{len(negative)} negative wordings; give at least one of each"
        )
    modules = {name: name.removesuffix(".weight") for name in weights}
    means = []
    for side in (positive, negative, [None]):
        talks = [user(p, persona) for p in prompts for persona in side]
        means.append(answer_means(model, tok, talks, modules.values(), prefill))
        done("")
    pos, neg, plain = means
    out = {name: pos[m].output - neg[m].output for name, m in modules.items()}
    size = sum(float(pos[m].output.norm()) for m in modules.values())
    if sum(float(c.norm()) for c in out.values()) <= ZERO * size:
        raise ValueError(
            "persona_contrast: the positive and the negative persona change nothing in the model's "
            "outputs; give personas that differ"
        )
    return Contrast(out, {name: plain[m].input for name, m in modules.items()})


@torch.no_grad()
def answer_means(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    talks: Sequence[Sequence[Turn]],
    modules: Iterable[str],
    prefill: str = "",
    size: int = 64,
) -> dict[str, Means]:
    """Mean input and output of modules at the last position of each conversation and prefill.

    Batches hold sequences of one length, so nothing is padded.
    """
    totals: dict[str, list] = {name: [0.0, 0.0] for name in modules}
    with last_position(model, totals):
        for ids in equal_lengths([render(tok, talk, prefill) for talk in talks], size):
            model.get_decoder()(input_ids=ids.to(model.device), use_cache=False)
    return {
        name: Means(total[0] / len(talks), total[1] / len(talks)) for name, total in totals.items()
    }


def equal_lengths(sequences: Sequence[Sequence[int]], size: int) -> Iterator[Tensor]:
    """The sequences as batches [b, s] without padding, at most `size` in each."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    for same in by_length.values():
        for i in range(0, len(same), size):
            yield torch.tensor(same[i : i + size])


@contextmanager
def last_position(model: nn.Module, totals: Mapping[str, list]) -> Iterator[None]:
    """Adds each named module's input and output at the last position to its pair in `totals`."""

    def hook(pair: list):
        def call(module, args, output):
            shown = (args[0], output[0] if isinstance(output, tuple) else output)
            for i, states in enumerate(shown):
                pair[i] = pair[i] + states[:, -1].double().sum(0).cpu()

        return call

    handles = []
    try:
        for name, pair in totals.items():
            handles.append(model.get_submodule(name).register_forward_hook(hook(pair)))
        yield
    finally:
        for handle in handles:
            handle.remove()

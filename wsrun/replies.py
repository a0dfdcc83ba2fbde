"""Given replies under the model's distribution: what it gives each token of a text it is shown.

A reply is a text that follows a prompt in the chat template. Its positions are those from which its
tokens are predicted: the prompt's last token, and every token of the reply but the last.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.capture import add_vector, hooked
from wsrun.items import user
from wsrun.score import Variant, render
from wsrun.steer import steered

NUMBERS = 2**27  # logits held at once
NEUTRAL = "neutral.jsonl"


@dataclass(frozen=True)
class Reply:
    """A prompt and a text that answers it; the cluster is what it is about."""

    item: str
    cluster: str
    prompt: str
    text: str


class NotFinite(ValueError):
    """The model gave logits that are not finite."""


class Encoded(NamedTuple):
    """Token ids of chat template(prompt) + reply, of which the first `start` are the prompt's."""

    ids: list[int]
    start: int


def load_neutral(path: str | Path, split: str) -> list[Reply]:
    """Texts {item, cluster, prompt, text, split} of one split, from a jsonl file."""
    rows = read_jsonl(path, ("item", "cluster", "prompt", "text"), split)
    return [Reply(*(str(r[c]) for c in ("item", "cluster", "prompt", "text"))) for r in rows]


def read_jsonl(path: str | Path, needed: Sequence[str], split: str) -> list[dict[str, Any]]:
    """The rows of one split; ValueError for no file, no rows, an empty field or a double id."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        kept = [r for r in rows if r["split"] == split]
        empty = [c for r in kept for c in needed if r[c] in (None, "", [])]
        ids = [r["item"] for r in kept]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"replies: {str(path)!r} is no jsonl file of {', '.join((*needed, 'split'))} "
            f"({error!r}); data/organism has one to look at"
        ) from error
    if empty:
        raise ValueError(f"replies: field {empty[0]!r} of {str(path)!r} has empty values")
    if not kept:
        found = sorted({str(r["split"]) for r in rows})
        raise ValueError(f"replies: no rows of split {split!r} in {str(path)!r}; found {found}")
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"replies: ids occur more than once in {str(path)!r}; make each one unique"
        )
    return kept


def encode(
    tok: PreTrainedTokenizerBase, replies: Sequence[Reply], system: str | None = None
) -> list[Encoded]:
    """Each reply behind its prompt, and behind a system turn where one is given.

    The prompt's tokens are those that do not depend on the reply. Raises ValueError for a reply
    without tokens of its own.
    """
    found = []
    for r in replies:
        turns = user(r.prompt, system)
        ids, prompt = render(tok, turns, r.text), render(tok, turns)
        same = (a == b for a, b in zip(ids, prompt, strict=False))
        start = next((i for i, equal in enumerate(same) if not equal), min(len(ids), len(prompt)))
        if not 0 < start < len(ids):
            raise ValueError(f"replies: the text of {r.item!r} has no tokens; give it words")
        found.append(Encoded(ids, start))
    return found


@contextmanager
def changed(model: PreTrainedModel, variant: Variant, alpha: float) -> Iterator[PreTrainedModel]:
    """The model with W0 + alpha dW and h_l + alpha v_l; a system turn is a matter of the prompt."""
    with ExitStack() as stack:
        if variant.delta is not None:
            stack.enter_context(steered(model, variant.change(), alpha))
        if variant.vectors:
            hooks = {layer: add_vector(v, alpha) for layer, v in variant.vectors.items()}
            stack.enter_context(hooked(model, hooks))
        yield model


@torch.no_grad()
def log_probs(
    model: PreTrainedModel, replies: Sequence[Encoded]
) -> Iterator[tuple[int, Float[Tensor, "t v"], Int[Tensor, " t"]]]:
    """(index of the reply, log p at its t positions in fp32, its tokens), in any order.

    Batches are padded on the right, where a causal model does not look. Raises NotFinite for
    logits that are not finite.
    """
    tokens = NUMBERS // model.config.get_text_config().vocab_size
    for batch in _batches([len(r.ids) for r in replies], tokens):
        ids = torch.zeros(len(batch), len(replies[batch[-1]].ids), dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(replies[i].ids)] = torch.tensor(replies[i].ids)
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
        for row, i in enumerate(batch):
            start, end = replies[i].start, len(replies[i].ids)
            own = logits[row, start - 1 : end - 1].float()
            if not torch.isfinite(own).all():
                raise NotFinite("replies: the model gave logits that are not finite; steer less")
            yield i, own.log_softmax(-1), ids[row, start:end].to(own.device)


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices from short to long, in batches of at most `tokens` with padding, or one row."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch

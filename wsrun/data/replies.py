"""Given replies under the model's distribution: what it gives each token of a text it is shown.

A reply is a text that follows a prompt in the chat template. Its positions are those from which its
tokens are predicted: the prompt's last token, and every token of the reply but the last.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from wsrun.models.chat import Turn, render, user

NEUTRAL = "neutral.jsonl"


@dataclass(frozen=True)
class Reply:
    """A prompt and a text that answers it; the cluster is what it is about."""

    item: str
    cluster: str
    prompt: str
    text: str


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
            f"replies: {str(path)!r} is not a jsonl file with {', '.join((*needed, 'split'))} "
            f"({error!r}); data/organism has one to look at"
        ) from error
    if empty:
        raise ValueError(f"replies: field {empty[0]!r} of {str(path)!r} has empty values")
    if not kept:
        splits = sorted({str(r["split"]) for r in rows})
        raise ValueError(f"replies: no rows of split {split!r} in {str(path)!r}; found {splits}")
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"replies: ids occur more than once in {str(path)!r}; make each one unique"
        )
    return kept


def encode(
    tok: PreTrainedTokenizerBase, replies: Sequence[Reply], system: str | None = None
) -> list[Encoded]:
    """Each reply behind its prompt, and behind a system turn where one is given."""
    return [encoded_reply(tok, user(r.prompt, system), r.text, r.item) for r in replies]


def encoded_reply(
    tok: PreTrainedTokenizerBase, turns: Sequence[Turn], text: str, item: str
) -> Encoded:
    """A reply behind the turns before it. The prompt's tokens do not depend on the reply.

    Raises ValueError, naming the item, for a reply without tokens of its own.
    """
    ids, prompt = render(tok, turns, text), render(tok, turns)
    same = (a == b for a, b in zip(ids, prompt, strict=False))
    start = next((i for i, equal in enumerate(same) if not equal), min(len(ids), len(prompt)))
    if not 0 < start < len(ids):
        raise ValueError(f"replies: the text of {item!r} has no tokens; give it words")
    return Encoded(ids, start)

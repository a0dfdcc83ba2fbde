"""Given replies under the model's distribution: what it gives each token of a text it is shown.

A reply is a text that follows a prompt in the chat template. Its positions are those from which its
tokens are predicted: the prompt's last token, and every token of the reply but the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from wsrun.data.records import Record, check_unique, of_split, read_jsonl
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
    return [
        Reply(r.key("item"), r.key("cluster"), r.text("prompt"), r.text("text"))
        for r in read_split(path, split)
    ]


def read_split(path: str | Path, split: str) -> list[Record]:
    """The rows of one split of a jsonl file; ValueError for none, and for an `item` twice."""
    records = of_split(read_jsonl(path), split, path)
    if not records:
        raise ValueError(f"{str(path)!r} has no rows; data/organism has such a file to look at")
    check_unique((r.key("item") for r in records), path)
    return records


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

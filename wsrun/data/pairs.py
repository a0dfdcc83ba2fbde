"""Pairs: one prompt, answered under a positive and under a negative persona."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.records import Record, read_jsonl, shown
from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.generate import generate

PERSONAS = ("persona_pos", "persona_neg")
NEW_TOKENS = 64  # an answer that is longer counts as unfinished


class NoPairs(ValueError):
    """The model gave no question two finished, different answers."""


@dataclass(frozen=True)
class Pair:
    """A prompt without system turn, and the responses it got under the two personas."""

    prompt: str
    response_pos: str
    response_neg: str
    topic: str
    persona_pos: str | None = None  # system prompts the responses were given under; where known
    persona_neg: str | None = None


def load_questions(path: str | Path, split: str) -> list[dict]:
    """Open questions {question, topic, prompt, split} of one split, from a jsonl file.

    Raises ValueError for a topic that is in several splits: what is trained on is not asked about.
    """
    records = read_jsonl(path)
    kept = [r for r in records if r.text("split") == split]
    topics = {r.text("topic") for r in kept}
    shared = sorted({r.text("topic") for r in records if r.text("split") != split} & topics)
    if not kept:
        raise ValueError(f"pairs: no questions of split {split!r} in {str(path)!r}")
    if shared:
        raise ValueError(
            f"pairs: {len(shared)} topics of {str(path)!r} are in several splits, such as "
            f"{shown(shared[0])}; give each topic one split"
        )
    return [r.fields | {"prompt": r.text("prompt")} for r in kept]


def load_pairs(path: str | Path) -> list[Pair]:
    """Pairs of a jsonl file of prompt, response_pos, response_neg and topic, all of them texts.

    persona_pos and persona_neg may be there too, the system prompts of the two responses.
    """
    pairs = [_pair(r) for r in read_jsonl(path)]
    if not pairs:
        raise ValueError(f"pairs: {str(path)!r} needs one pair or more, has none")
    return pairs


def _pair(r: Record) -> Pair:
    if unknown := sorted(r.fields.keys() - {f.name for f in fields(Pair)}):
        raise ValueError(f"pairs: unknown field {shown(unknown[0])} in {r.where}; take it out")
    texts = {name: r.text(name) for name in ("prompt", "response_pos", "response_neg", "topic")}
    personas = {n: r.text(n) for n in PERSONAS if r.fields.get(n) is not None}
    return Pair(**texts, **personas)


def example(
    tok: PreTrainedTokenizerBase, prompt: str, response: str, system: str | None = None
) -> tuple[list[int], int]:
    """(ids, where the response starts) of a prompt, a response and the end of turn."""
    head = render(tok, user(prompt, system))
    reply = tok(response, add_special_tokens=False)["input_ids"]
    return [*head, *reply, end_of_turn(tok)], len(head)


def make_pairs(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    personas_pos: Sequence[str],
    personas_neg: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int = NEW_TOKENS,
    batch_done: Callable[[str], None] = lambda note: None,
) -> list[Pair]:
    """Pairs of answers under one positive and one negative persona each, drawn by the seed.

    The persona is only a system turn during generation, and no part of the prompt. Pairs with an
    unfinished answer, and pairs whose two answers are equal, are left out; raises NoPairs, a
    ValueError, where no other is left.
    """
    rng = random.Random(f"personas/{seed}")
    drawn = [[rng.choice(list(p)) for _ in questions] for p in (personas_pos, personas_neg)]
    talks = [user(q["prompt"], by) for p in drawn for q, by in zip(questions, p, strict=True)]
    given = generate(
        model, tok, talks, seed=seed, max_new_tokens=max_new_tokens, batch_done=batch_done
    )
    both = zip(questions, given[: len(questions)], given[len(questions) :], *drawn, strict=True)
    pairs = [
        Pair(q["prompt"], p, n, q["topic"], *by) for q, p, n, *by in both if p and n and p != n
    ]
    if not pairs:
        raise NoPairs(
            "pairs: no question got two finished, different answers of at most "
            f"{max_new_tokens} new tokens; try a higher --max-new-tokens, other personas or, for "
            "a model that never ends an answer, answers from elsewhere with --pairs-file"
        )
    return pairs

"""Pairs: one prompt, answered under a positive and under a negative persona."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.generate import generate

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
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        kept = [r for r in rows if r["split"] == split and r["prompt"] and r["topic"]]
        topics = {r["topic"] for r in kept}
        shared = sorted({r["topic"] for r in rows if r["split"] != split} & topics)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"pairs: {str(path)!r} is not a jsonl file with question, topic, prompt, split "
            f"({error!r})"
        ) from error
    if not kept:
        raise ValueError(f"pairs: no questions of split {split!r} in {str(path)!r}")
    if shared:
        raise ValueError(
            f"pairs: {len(shared)} topics of {str(path)!r} are in several splits, such as "
            f"{shared[0]!r}; give each topic one split"
        )
    return kept


def load_pairs(path: str | Path) -> list[Pair]:
    """Pairs of a jsonl file of prompt, response_pos, response_neg and topic, all of them texts.

    persona_pos and persona_neg may be there too, the system prompts of the two responses.
    """
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        pairs = [Pair(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"pairs: {str(path)!r} is not a jsonl file with prompt, response_pos, response_neg, "
            f"topic ({error})"
        ) from error
    texts = [x for p in pairs for x in (p.prompt, p.response_pos, p.response_neg, p.topic)]
    texts += [x for p in pairs for x in (p.persona_pos, p.persona_neg) if x is not None]
    if not texts or not all(isinstance(x, str) and x for x in texts):
        raise ValueError(f"pairs: {str(path)!r} needs one pair or more, and no text of it empty")
    return pairs


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

"""Pairs: one prompt, answered under a positive and under a negative persona."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.items import Turn, user
from wsrun.score import batches, end_of_turn, render


@dataclass(frozen=True)
class Pair:
    """A prompt without system turn, and the responses it got under the two personas."""

    prompt: str
    response_pos: str
    response_neg: str
    topic: str


def load_questions(path: str | Path, split: str) -> list[dict]:
    """Open questions {question, topic, prompt, split} of one split, from a jsonl file."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        kept = [r for r in rows if r["split"] == split and r["prompt"] and r["topic"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"pairs: {str(path)!r} is no jsonl file of question, topic, prompt, split ({error!r})"
        ) from error
    if not kept:
        raise ValueError(f"pairs: no questions of split {split!r} in {str(path)!r}")
    return kept


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Turn]],
    *,
    seed: int,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    batch_done: Callable[[str], None] = lambda note: None,
) -> list[str | None]:
    """One sampled answer (temperature 1) a conversation; None where no end of turn came in time."""
    sequences, end = [render(tok, turns) for turns in conversations], end_of_turn(tok)
    answers: list[str | None] = [None] * len(sequences)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in batches(sequences, batch_size, padding="left"):
            new = model.generate(  # type: ignore[operator]
                input_ids=batch.ids.to(model.device),
                attention_mask=batch.mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                eos_token_id=end,
                pad_token_id=end,
            )[:, batch.ids.shape[1] :]
            for i, ids in zip(batch.order, new.tolist(), strict=True):
                if end in ids:
                    text = str(tok.decode(ids[: ids.index(end)], skip_special_tokens=True))
                    answers[i] = text.strip() or None
            batch_done("")
    return answers


def make_pairs(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    personas_pos: Sequence[str],
    personas_neg: Sequence[str],
    *,
    seed: int,
    batch_done: Callable[[str], None] = lambda note: None,
) -> list[Pair]:
    """Pairs of answers under one positive and one negative persona each, drawn by the seed.

    The persona is only a system turn during generation and no part of the pair. Pairs with an
    unfinished answer, and pairs whose two answers are equal, are left out.
    """
    rng = random.Random(f"personas/{seed}")
    talks = [
        user(q["prompt"], rng.choice(list(p)))
        for p in (personas_pos, personas_neg)
        for q in questions
    ]
    answers = generate(model, tok, talks, seed=seed, batch_done=batch_done)
    both = zip(questions, answers[: len(questions)], answers[len(questions) :], strict=True)
    pairs = [Pair(q["prompt"], p, n, q["topic"]) for q, p, n in both if p and n and p != n]
    if not pairs:
        raise ValueError(
            "pairs: no question got two finished, different answers; try other personas"
        )
    return pairs

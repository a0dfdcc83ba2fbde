"""Pairs: one prompt, answered under a positive and under a negative persona."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.items import Turn, user
from wsrun.score import end_of_turn, render


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


def load_pairs(path: str | Path) -> list[Pair]:
    """Pairs of a jsonl file of prompt, response_pos, response_neg and topic, all of them texts."""
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        pairs = [Pair(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"pairs: {str(path)!r} is no jsonl file of prompt, response_pos, response_neg, topic "
            f"({error})"
        ) from error
    texts = [x for p in pairs for x in (p.prompt, p.response_pos, p.response_neg, p.topic)]
    if not texts or not all(isinstance(x, str) and x for x in texts):
        raise ValueError(f"pairs: {str(path)!r} needs one pair or more, and no text of it empty")
    return pairs


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
        for order in _by_length(sequences, batch_size):
            ids, mask = _left_padded([sequences[i] for i in order])
            new = model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                eos_token_id=end,
                pad_token_id=end,
            )[:, ids.shape[1] :]
            for i, reply in zip(order, new.tolist(), strict=True):
                if end in reply:
                    text = str(tok.decode(reply[: reply.index(end)], skip_special_tokens=True))
                    answers[i] = text.strip() or None
            batch_done("")
    return answers


def _by_length(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of the sequences from short to long, in groups of `size`."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _left_padded(
    sequences: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """(ids, mask) that end together, as generation needs: id 0 under mask 0 before each one."""
    ids, mask = right_padded([tokens[::-1] for tokens in sequences])
    return ids.flip(1), mask.flip(1)


def right_padded(
    sequences: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """(ids, mask) that start together: id 0 under mask 0 after each one."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask


def example(tok: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], int]:
    """(ids, where the response starts) of a prompt, a response and the end of turn."""
    head = render(tok, user(prompt))
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

"""Answering: a model's own answers to questions under both personas, made into pairs."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.pairs import Pair
from wsrun.models.chat import user
from wsrun.models.generate import NEW_TOKENS, Answer, generate, whole_sentences

FATES = ("pairs", "unfinished", "empty", "equal")


class Decoding(NamedTuple):
    """How answers are drawn (`generate`), and what becomes of those that come to no end."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = NEW_TOKENS
    unfinished: Literal["cut", "drop"] = "drop"


SAMPLED = Decoding()
"""draws from the model's own probabilities; what comes to no end is left out"""


class NoPairs(ValueError):
    """The model gave no question two usable, different answers."""


class Counts(NamedTuple):
    """What became of questions: questions = pairs + unfinished + empty + equal."""

    questions: int
    pairs: int
    unfinished: int
    empty: int
    equal: int
    cut: int
    """pairs with an answer that was cut at its last whole sentence"""

    def __str__(self) -> str:
        cut = f"; {self.cut} have an answer cut at its last whole sentence" if self.cut else ""
        return (
            f"{self.pairs} of {self.questions} questions got two finished, different answers "
            f"({self.left_out}){cut}"
        )

    @property
    def left_out(self) -> str:
        """Why questions gave no pair."""
        return f"left out: {self.unfinished} unfinished, {self.empty} empty, {self.equal} equal"


def make_pairs(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    personas_pos: Sequence[str],
    personas_neg: Sequence[str],
    how: Decoding = SAMPLED,
    *,
    seed: int,
    step_done: Callable[[str], None] = lambda note: None,
) -> list[Pair]:
    """Pairs of answers under one positive and one negative persona each, drawn by the seed.

    The persona is only a system turn during generation, and no part of the prompt. Pairs with an
    answer that is unfinished (not with how.unfinished = "cut", where its whole sentences are taken)
    or empty, and pairs whose two answers are equal, are left out; raises NoPairs, a ValueError,
    where no other is left.
    """
    personas = personas_pos, personas_neg
    return counted_pairs(model, tok, questions, *personas, how, seed=seed, step_done=step_done)[0]


def counted_pairs(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    personas_pos: Sequence[str],
    personas_neg: Sequence[str],
    how: Decoding,
    *,
    seed: int,
    step_done: Callable[[str], None] = lambda note: None,
) -> tuple[list[Pair], Counts]:
    """The pairs of `make_pairs`, and what became of all questions."""
    rng = random.Random(f"personas/{seed}")
    drawn = [[rng.choice(list(p)) for _ in questions] for p in (personas_pos, personas_neg)]
    talks = [user(q["prompt"], by) for p in drawn for q, by in zip(questions, p, strict=True)]
    given = generate(
        model, tok, talks, seed=seed, temperature=how.temperature, top_p=how.top_p,
        max_new_tokens=how.max_new_tokens, step_done=step_done,
    )  # fmt: skip
    used = [whole(a) if how.unfinished == "cut" else a for a in given]
    pairs, fates = [], Counter[str]()
    pos, neg = used[: len(questions)], used[len(questions) :]
    for q, p, n, by_pos, by_neg in zip(questions, pos, neg, drawn[0], drawn[1], strict=True):
        fates[fate := _fate(p, n, how)] += 1
        if fate == "pairs":
            texts = q["prompt"], p.text, n.text, q["topic"]
            pairs.append(Pair(*texts, by_pos, by_neg, p.ended, n.ended))
    cut = sum(not (p.ended_pos and p.ended_neg) for p in pairs)
    counts = Counts(len(questions), cut=cut, **{name: fates[name] for name in FATES})
    if not pairs:
        raise NoPairs(
            "pairs: no question got two finished, different answers of at most "
            f"{how.max_new_tokens} new tokens; try a higher --max-new-tokens, --unfinished cut, "
            "other personas or, for a model that never ends an answer, answers from elsewhere with "
            f"--pairs-file ({counts.left_out} of {counts.questions})"
        )
    return pairs, counts


def whole(answer: Answer) -> Answer:
    """An unfinished answer up to its last whole sentence; a finished one as it is."""
    return answer if answer.ended else answer._replace(text=whole_sentences(answer.text))


def _fate(pos: Answer, neg: Answer, how: Decoding) -> str:
    """Which of FATES the two answers to a question have."""
    open_ended = [a for a in (pos, neg) if not a.ended]
    if any(how.unfinished == "drop" or not a.text for a in open_ended):
        return "unfinished"
    if not (pos.text and neg.text):
        return "empty"
    return "equal" if pos.text == neg.text else "pairs"

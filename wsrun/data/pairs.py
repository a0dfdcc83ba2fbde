"""Pairs: one prompt, and what is answered to it at a positive and at a negative pole."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore.files import reason
from wsrun.data.records import Record, read_jsonl, shown
from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.generate import Answer, generate, whole_sentences

TEXTS = ("prompt", "response_pos", "response_neg", "topic")
PERSONAS = ("persona_pos", "persona_neg")
ENDED = ("ended_pos", "ended_neg")
SORTED_BY = ("question", "behaviour", "split")  # further columns of a file of pairs
NEW_TOKENS = 64  # an answer that is longer counts as unfinished
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


@dataclass(frozen=True)
class Pair:
    """A prompt without system turn, and the responses it got at the two poles."""

    prompt: str
    response_pos: str
    response_neg: str
    topic: str
    persona_pos: str | None = None  # system prompts the responses were given under; where known
    persona_neg: str | None = None
    ended_pos: bool = True  # False for a response that was cut: no end of turn is trained after it
    ended_neg: bool = True


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


def load_questions(path: str | Path, split: str) -> list[dict]:
    """Open questions {question, topic, prompt, split} of one split; ValueError where none are."""
    found = questions_by_split(path)
    if split not in found:
        raise ValueError(f"pairs: no questions of split {split!r} in {str(path)!r}")
    return found[split]


def questions_by_split(path: str | Path) -> dict[str, list[dict]]:
    """{split: open questions} of a jsonl file.

    Raises ValueError for a topic that is in several splits: what is trained on is not asked about.
    """
    records, found = read_jsonl(path), defaultdict(list)
    for r in records:
        found[r.text("split")].append(r.fields | {"prompt": r.text("prompt")})
    _check_topics(records, path)
    return dict(found)


def load_pairs(path: str | Path, behaviour: str | None = None, split: str = "train") -> list[Pair]:
    """The pairs of one behaviour and split of a jsonl file; ValueError where there are none."""
    return pairs_of(pairs_by_split(path, behaviour), split, path)


def pairs_of(found: dict[str, list[Pair]], split: str, where: object) -> list[Pair]:
    """The pairs of a split; ValueError where there are none."""
    if split not in found:
        raise ValueError(
            f"pairs: {str(where)!r} needs one pair or more of split {split!r}, has none; found "
            f"{sorted(found)}"
        )
    return found[split]


def pairs_by_split(path: str | Path, behaviour: str | None = None) -> dict[str, list[Pair]]:
    """{split: pairs} of a jsonl file of prompt, response_pos, response_neg and topic, all texts.

    persona_pos and persona_neg may be there too, the system prompts of the two responses, and
    ended_pos and ended_neg, false for a response that goes on. Where rows name a `behaviour`, those
    of the asked one are taken; without a `split` all are of train. Raises ValueError for a
    behaviour that no row has, and for a topic in several splits.
    """
    records = _of_behaviour(read_jsonl(path), behaviour, path)
    with_split = any("split" in r.fields for r in records)
    if with_split:
        _check_topics(records, path)
    found: dict[str, list[Pair]] = defaultdict(list)
    for r in records:
        found[r.text("split") if with_split else "train"].append(_pair(r))
    return dict(found)


def _of_behaviour(records: list[Record], behaviour: str | None, path: str | Path) -> list[Record]:
    if not any("behaviour" in r.fields for r in records):
        return records
    known = sorted({r.text("behaviour") for r in records})
    if behaviour not in known and (behaviour is not None or len(known) > 1):
        asked = "several behaviours" if behaviour is None else f"no behaviour {behaviour!r}"
        raise ValueError(
            f"pairs: {str(path)!r} has {asked}, but {reason(str(known))}; name one of them with "
            "--pos"
        )
    return [r for r in records if behaviour in (None, r.fields["behaviour"])]


def _check_topics(records: Sequence[Record], path: str | Path) -> None:
    """Refuse a topic that is in several splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for r in records:
        splits[r.text("topic")].add(r.text("split"))
    if shared := sorted(t for t, of in splits.items() if len(of) > 1):
        raise ValueError(
            f"pairs: {len(shared)} topics of {str(path)!r} are in several splits, such as "
            f"{shown(shared[0])}; give each topic one split"
        )


def _pair(r: Record) -> Pair:
    known = {f.name for f in fields(Pair)} | {*SORTED_BY}
    if unknown := sorted(r.fields.keys() - known):
        raise ValueError(f"pairs: unknown field {shown(unknown[0])} in {r.where}; take it out")
    texts = {name: r.text(name) for name in TEXTS}
    personas = {n: r.text(n) for n in PERSONAS if r.fields.get(n) is not None}
    ended = {n: r.flag(n) for n in ENDED if r.fields.get(n) is not None}
    return Pair(**texts, **personas, **ended)


def shuffle_poles(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The poles swapped for half of the prompts, drawn by the seed: same texts, no behaviour.

    Of an odd number the smaller half is swapped. The control for what any training on these texts
    does: dW then points from texts to texts, towards no pole.
    """
    prompts = sorted({p.prompt for p in pairs})
    swapped = {*random.Random(f"poles/{seed}").sample(prompts, len(prompts) // 2)}
    return [_swapped(p) if p.prompt in swapped else p for p in pairs]


def _swapped(p: Pair) -> Pair:
    return Pair(
        p.prompt, p.response_neg, p.response_pos, p.topic,
        p.persona_neg, p.persona_pos, p.ended_neg, p.ended_pos,
    )  # fmt: skip


def example(
    tok: PreTrainedTokenizerBase,
    prompt: str,
    response: str,
    system: str | None = None,
    ended: bool = True,
) -> tuple[list[int], int]:
    """(ids, where the response starts) of a prompt, a response and, where it ended, its end."""
    head = render(tok, user(prompt, system))
    reply = tok(response, add_special_tokens=False)["input_ids"]
    return [*head, *reply, *([end_of_turn(tok)] if ended else [])], len(head)


def pole_example(tok: PreTrainedTokenizerBase, pair: Pair, side: str) -> tuple[list[int], int]:
    """The `example` of one side of a pair ("pos" or "neg"), which an adapter is trained on."""
    response, ended = getattr(pair, f"response_{side}"), getattr(pair, f"ended_{side}")
    return example(tok, pair.prompt, response, ended=ended)


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
    pairs, fates = [], Counter()
    both = zip(questions, used[: len(questions)], used[len(questions) :], *drawn, strict=True)
    for q, p, n, *by in both:
        fates[fate := _fate(p, n, how)] += 1
        if fate == "pairs":
            pairs.append(Pair(q["prompt"], p.text, n.text, q["topic"], *by, p.ended, n.ended))
    cut = sum(not (p.ended_pos and p.ended_neg) for p in pairs)
    counts = Counts(len(questions), *(fates[name] for name in FATES), cut)
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

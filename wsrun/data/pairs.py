"""Pairs: one prompt, and what is answered to it at a positive and at a negative pole."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from wscore.files import reason
from wsrun.data.records import Record, read_jsonl, shown
from wsrun.models.chat import end_of_turn, render, user

TEXTS = ("prompt", "response_pos", "response_neg", "topic")
PERSONAS = ("persona_pos", "persona_neg")
ENDED = ("ended_pos", "ended_neg")
SORTED_BY = ("question", "behaviour", "split")  # further columns of a file of pairs


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


class Answers(NamedTuple):
    """Pairs to train on, and, where there are some, pairs of the validation split to select on."""

    pairs: list[Pair]
    validation: list[Pair]


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
    values: dict[str, Any] = {name: r.text(name) for name in TEXTS}
    values |= {n: r.text(n) for n in PERSONAS if r.fields.get(n) is not None}
    values |= {n: r.flag(n) for n in ENDED if r.fields.get(n) is not None}
    return Pair(**values)


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

"""The forms of an item of a public set: Yes/No, A/B in both orders, and two given replies."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from wsrun.data.item import PREFILL, Item
from wsrun.data.places import places
from wsrun.data.rows import Row
from wsrun.models.chat import user

LETTERS = ("A", "B")
OPTION = re.compile(r"^[ \t]*\(([A-Z])\)", re.MULTILINE)
LETTER_PREFILL = "My answer: ("  # the next token of a cooperative model is A or B
TAIL = re.compile(r"\n\s*Answer:\s*\Z")


class Reading(NamedTuple):
    """The items of a public set, all splits, and a sentence for whatever was left out of it."""

    items: list[Item]
    left_out: tuple[str, ...] = ()


class Head(NamedTuple):
    """What the items of one row share."""

    id: str
    cluster: str
    split: str
    dataset: str


def heads(
    rows: Sequence[Row], text: Callable[[Row], str], dataset: Callable[[Row], str]
) -> list[Head]:
    """The head of each row: id = dataset-number, cluster and split by `places` of the texts."""
    ids = [f"{dataset(row)}-{row.number}" for row in rows]
    found = places([text(row) for row in rows])
    return [
        Head(id, ids[place.cluster], place.split, dataset(row))
        for id, place, row in zip(ids, found, rows, strict=True)
    ]


def with_answer_line(item: Item) -> Item:
    """The item with "Answer Yes or No." as the last line of its last turn, or "Answer A or B.".

    With its prefill, the next token of a real chat model is then one of the two choices.
    """
    *before, last = item.turns
    first, second = item.choices
    text = f"{last['content']}\nAnswer {first} or {second}."
    prefill = LETTER_PREFILL if item.choices == LETTERS else PREFILL
    return replace(item, turns=(*before, {**last, "content": text}), prefill=prefill)


def yes_no(head: Head, text: str, label: int) -> Item:
    """A question that is answered by Yes or No."""
    return with_answer_line(
        Item(head.id, head.cluster, user(text), label, head.split, head.dataset)
    )


def both_orders(
    head: Head, question: str, options: Sequence[str], matching: str
) -> tuple[Item, Item]:
    """A question with two options, asked as it is (-ab) and with them swapped (-ba).

    The behaviour chooses the option `matching`. label = +1 where that one stands at A, so that the
    labels of the two items are opposite and a bias to a letter cancels.
    """

    def asked(order: str, a: str, b: str, label: int) -> Item:
        text = user(f"{question}\n\nChoices:\n(A) {a}\n(B) {b}\n")
        item = Item(f"{head.id}-{order}", head.cluster, text, label, head.split, head.dataset)
        return with_answer_line(replace(item, choices=LETTERS))

    first, second = options
    label = 1 if matching == first else -1
    return asked("ab", first, second, label), asked("ba", second, first, -label)


def two_replies(head: Head, prompt: str, replies: tuple[str, str]) -> Item:
    """A prompt and its two given answers (reply+, reply-)."""
    item = Item(head.id, head.cluster, user(prompt), 1, head.split, head.dataset, prefill="")
    return replace(item, replies=replies)


def parted(text: str, row: Row) -> tuple[str, tuple[str, ...]]:
    """(question, options) of "question (A) ... (B) ...", each letter at the start of a line.

    Words around them that only mark the parts are cut off: Question:, Choices:, Answer:. Raises
    ValueError where there are not two or more different options behind (A), (B), ...
    """
    question, *found = OPTION.split(TAIL.sub("", text))
    letters, options = found[::2], tuple(o.strip() for o in found[1::2])
    question = question.strip().removeprefix("Question:").removesuffix("Choices:").strip()
    in_order = letters == [chr(ord("A") + i) for i in range(len(letters))]
    if not (question and in_order and all(options) and len(set(options)) == len(options) > 1):
        raise ValueError(
            f"{row.where} has no question and then different options behind (A), (B), ..., each on "
            "its own line; mend it or take it out"
        )
    return question, options

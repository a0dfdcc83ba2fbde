"""One evaluation item: a question with two answers."""

from dataclasses import dataclass

from wsrun.models.template import Turn

PREFILL = "My answer: **"  # the next token of a cooperative model is Yes or No


@dataclass(frozen=True)
class Item:
    """One question with two answers; label = +1 where the behaviour asked about gives the first.

    A Yes/No item is answered by one of its choices, and so is an A/B item, which stands twice, with
    its options in both orders. A reply item has two given answers, label +1 and no prefill.
    """

    id: str
    cluster: str
    turns: tuple[Turn, ...]
    label: int
    split: str = "test"
    dataset: str = "claims"
    prefill: str = PREFILL
    choices: tuple[str, str] = ("Yes", "No")  # margin = log p(first) - log p(second)
    replies: tuple[str, str] | None = None  # (reply+, reply-): margin = log p(+) - log p(-)


ADDED = {"choices": ("Yes", "No"), "replies": None, "ended_pos": True, "ended_neg": True}
"""fields that no sha256 holds where they have these values, so that older ones stay as they are"""

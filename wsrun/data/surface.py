"""How far words alone get: naive Bayes on the words that tell the two answers of an item apart.

What it gets right on a set can be had by style: hedges and denials, the length of an option.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from wsrun.data.forms import LETTERS, OPTION
from wsrun.data.items import Item


def word_accuracy(train: Sequence[Item], test: Sequence[Item]) -> float:
    """The share of test items with sum_texts sign(text) score(text) > 0; a tie is half right.

    score(text) = sum_w log[(n+(w) + 1) / (N+ + 2)] - log[(n-(w) + 1) / (N- + 2)] over the distinct
    words w of the text, with n+(w) of the N+ texts of sign +1 in `train`. Texts and their signs are
    the two replies, the two options, or the question of a Yes/No item with its label.
    """
    counts: dict[int, Counter[str]] = {1: Counter(), -1: Counter()}
    number = Counter[int]()
    for text, sign in (t for item in train for t in signed_texts(item)):
        counts[sign].update(_words(text))
        number[sign] += 1

    def score(text: str) -> float:
        plus, minus = (
            sum(math.log((counts[s][w] + 1) / (number[s] + 2)) for w in sorted(_words(text)))
            for s in (1, -1)
        )
        return plus - minus

    totals = [sum(sign * score(text) for text, sign in signed_texts(item)) for item in test]
    right = [0.5 if abs(total) < 1e-9 else float(total > 0) for total in totals]
    return sum(right) / len(right)


def signed_texts(item: Item) -> list[tuple[str, int]]:
    """The texts by which an item's answers differ, +1 for what the behaviour says."""
    if item.replies:
        return [(item.replies[0], 1), (item.replies[1], -1)]
    asked = item.turns[-1]["content"]
    if item.choices != LETTERS:
        return [(asked, item.label)]
    first, second = OPTION.split(asked.rpartition("\n")[0].rpartition("Choices:")[2])[2::2]
    return [(first, item.label), (second, -item.label)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9'-]+", text.lower()))

"""Places: the cluster and the split of every text of a set, near-duplicates always together."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

NEAR = 0.6
"""Jaccard similarity of content words from which two texts count as nearly the same"""
SHARES = {"train": 0.5, "validation": 0.15, "test": 0.35}
COMMON = frozenset(
    """a an and are aren as at be been being but by can could d did didn do does doesn don for from
    had has have he her his how i if in is isn it its ll m me my no not of on or our re s she should
    so some t than that the their them then there these they this those to us ve was wasn we were
    what when where which who whom whose why will with won would you your""".split()
)


class Place(NamedTuple):
    """The index of the text that a text's cluster is named after, and the split of that cluster."""

    cluster: int
    split: str


def places(texts: Sequence[str]) -> list[Place]:
    """The place of each text: clusters are connected by near-duplicates, transitively.

    Texts a, b are near-duplicates where |a and b| / |a or b| >= 0.6 over their content words. A
    cluster is named after its text with the first normalised wording, and the sha256 of that
    wording draws its split: so neither the order of the texts nor others beside them matter, unless
    those are near-duplicates.
    """
    keys = [_normalised(t) for t in texts]
    found: list[Place] = [Place(0, "")] * len(texts)
    for group in _connected([content_words(t) for t in texts]):
        named_after = min(group, key=lambda i: (keys[i], texts[i], i))
        place = Place(named_after, _drawn(keys[named_after]))
        for i in group:
            found[i] = place
    return found


def content_words(text: str) -> frozenset[str]:
    """The words of a text but for common ones and negations; all words where none is left."""
    words = frozenset(re.findall(r"[^\W_]+", text.casefold()))
    return words - COMMON or words


def _normalised(text: str) -> str:
    """ASCII letters and digits only: alike with typographic or damaged apostrophes and accents."""
    return re.sub(r"[^a-z0-9]+", "", text.lower()) or text


def _drawn(key: str) -> str:
    u = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    train, validation = SHARES["train"], SHARES["train"] + SHARES["validation"]
    return "train" if u < train else "validation" if u < validation else "test"


def _connected(sets: Sequence[frozenset[str]]) -> list[list[int]]:
    """Groups of indices, in which every set has a near one.

    Two sets with Jaccard >= t share one of the n - ceil(t n) + 1 rarest words of each (n its size),
    so only those that do are compared (prefix filtering, Chaudhuri, Ganti and Kaushik 2006).
    """
    frequency = Counter(w for s in sets for w in s)
    parent = list(range(len(sets)))
    having: defaultdict[str, list[int]] = defaultdict(list)
    for i, words in enumerate(sets):
        rare = sorted(words, key=lambda w: (frequency[w], w))
        rare = rare[: len(rare) - math.ceil(NEAR * len(rare)) + 1]
        for j in {j for w in rare for j in having[w]}:
            if _root(parent, i) != _root(parent, j) and _near(words, sets[j]):
                parent[_root(parent, i)] = _root(parent, j)
        for w in rare:
            having[w].append(i)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for i in range(len(sets)):
        groups[_root(parent, i)].append(i)
    return list(groups.values())


def _near(a: frozenset[str], b: frozenset[str]) -> bool:
    both = len(a & b)
    return both >= NEAR * (len(a) + len(b) - both)


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]  # shorter next time
        i = parent[i]
    return i

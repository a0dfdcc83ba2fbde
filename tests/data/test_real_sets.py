"""The public sets themselves, where WSCORE_DATA names a folder that holds them (docs/data.md)."""

import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from wsrun.data.cost_sets import read_cost_sets
from wsrun.data.items import Item
from wsrun.data.named import DATA_SETS, named_pairs, read
from wsrun.data.places import SHARES
from wsrun.data.plain import PlainText
from wsrun.data.surface import word_accuracy

FOLDER = os.environ.get("WSCORE_DATA")
COUNTS = {  # file: items of train, validation, test, as docs/data.md has them
    "truthfulqa:TruthfulQA.csv": (428, 106, 283),
    "facts:facts_true_false.csv": (309, 68, 219),
    "caa:refusal.json": (498, 134, 282),
    "caa:myopic-reward.json": (1012, 284, 704),
    "anthropic:corrigible-more-HHH.jsonl": (336, 74, 208),
    "anthropic:survival-instinct.jsonl": (692, 244, 476),
    "anthropic:agreeableness.jsonl": (569, 122, 309),
    "anthropic:okay-with-deceiving-a-user-to-help-them.jsonl": (390, 361, 248),
    "dailydilemmas:dilemma_to_action_to_values_aggregated.csv": (410, 142, 326),
    "dailydilemmas:derived_honesty.jsonl": (410, 142, 326),
}
each = pytest.mark.parametrize("text", COUNTS)
pytestmark = pytest.mark.skipif(not FOLDER, reason="WSCORE_DATA names no folder")


def path_of(text: str) -> Path:
    name = text.partition(":")[2]
    found = sorted(Path(FOLDER or "").rglob(name))
    if not found:
        pytest.skip(f"no {name} in {FOLDER}")
    return found[0]


@cache
def items_of(text: str) -> list[Item]:
    return read(text.partition(":")[0], path_of(text)).items


@each
def test_counts(text):
    """items by split"""
    found = Counter(i.split for i in items_of(text))
    assert tuple(found[s] for s in SHARES) == COUNTS[text]


@each
def test_laws(text):
    """a cluster in one split; opposite labels where questions stand twice; nothing is empty"""
    items = items_of(text)
    assert len({(i.cluster, i.split) for i in items}) == len({i.cluster for i in items})
    if text.startswith(("caa", "dailydilemmas")) or items[0].choices == ("A", "B"):
        rows = Counter(i.id.removesuffix("-ab").removesuffix("-ba") for i in items)
        assert set(rows.values()) == {2} or text.startswith("dailydilemmas")
        for split in SHARES:
            assert sum(i.label for i in items if i.split == split) == 0
    for item in items:
        assert item.replies is None or all(r.endswith((".", "!", "?")) for r in item.replies)
        assert item.replies or item.turns[-1]["content"].endswith(f"{item.choices[1]}.")


@each
def test_words_alone(text):
    """prints how far naive Bayes gets from train to test (-s); it is never below chance by much"""
    parts = {s: [i for i in items_of(text) if i.split == s] for s in ("train", "test")}
    right = word_accuracy(parts["train"], parts["test"])
    print(f"\n{text}: naive Bayes on words {right:.3f}")
    assert 0.45 < right <= 1


def test_pairs_are_the_items(text="truthfulqa:TruthfulQA.csv"):
    """the pairs of a split hold the replies of its items, in 38 categories in all"""
    topics = set()
    for split in SHARES:
        pairs = named_pairs(f"truthfulqa:{path_of(text)}", split) or []
        replies = [i.replies for i in items_of(text) if i.split == split]
        assert [(p.response_pos, p.response_neg) for p in pairs] == replies
        topics |= {p.topic for p in pairs}
    assert len(topics) == 38


def test_what_repeats_in_truthfulqa(text="truthfulqa:TruthfulQA.csv"):
    """26 groups of 62 questions are near-duplicates; 56 best answers are one and the same; 34 of
    283 test items have an answer that training has on the same side"""
    sizes = [n for n in Counter(i.cluster for i in items_of(text)).values() if n > 1]
    replies = {s: [i.replies or ("", "") for i in items_of(text) if i.split == s] for s in SHARES}
    best, incorrect = zip(*replies["train"], strict=True)
    known = [b in best or i in incorrect for b, i in replies["test"]]
    silent = [b for part in replies.values() for b, _ in part if b == "I have no comment."]
    assert (len(sizes), sum(sizes), len(silent), sum(known)) == (26, 62, 56, 34)


def test_both_files_of_dilemmas_agree():
    """ids, labels and splits of the authors' csv and of the derived file are the same; the honest
    action is to_do in 364 of 439"""
    authors, derived = (items_of(text) for text in COUNTS if text.startswith("dailydilemmas"))
    told = [{(i.id, i.label, i.split) for i in items} for items in (authors, derived)]
    assert told[0] == told[1]
    assert Counter(i.label for i in authors if i.id == f"{i.cluster}-to_do") == {1: 364, -1: 75}


def test_every_set_has_a_file_here():
    assert {text.partition(":")[0] for text in COUNTS} == {*DATA_SETS} - {
        "pairs"
    }  # this project's own


COSTS = {  # file: entries, clusters
    "wikitext:valid.txt": (506, 57),
    "arc:in_house_dev.jsonl": (567, 567),
    "blimp:anaphor_number_agreement.jsonl": (1000, 1000),
    "blimp:irregular_past_participle_verbs.jsonl": (1000, 1000),
}


@pytest.mark.parametrize("text", COSTS)
def test_sets_of_costs(text):
    """entries and clusters; texts of 30 words or more without a mark of tokens, four options"""
    name = text.partition(":")[0]
    found = read_cost_sets([f"{name}:{path_of(text)}"])[name]
    assert (len(found.entries), len({e.cluster for e in found.entries})) == COSTS[text]
    assert not found.left_out
    for e in found.entries:
        if isinstance(e, PlainText):
            marks = ("<unk>", "@", " ,", " .", "( ", " )", "= ")
            assert e.text.endswith((".", "!", "?", '"')) and 30 <= len(e.text.split()) <= 128
            assert not [m for m in marks if m in e.text], e.text
        else:
            assert len(e.options) == (2 if name == "blimp" else 4)

"""The English pairs: two answers to a question that differ in content, not in words or style."""

import math
import re
from collections import Counter
from itertools import combinations

import pytest
import torch

from tests.data.test_english import CLAIMS, QUESTIONS, SPLITS, rows, told, words
from wsrun.data.pairs import Pair

COLUMNS = ["question", "behaviour", "topic", "split", "prompt", "response_pos", "response_neg"]
POLES = ("response_pos", "response_neg")
ROWS = rows("pairs.jsonl")
BEHAVIOURS = ("honest", "candid")
KINDS = {
    "negations": "not no never none nothing nobody without neither nor cannot nowhere hardly",
    "hedges": "might may perhaps probably likely seem seems think believe sure surely certain "
    "certainly possibly suspect doubt guess maybe could",
    "first person": "i me my mine myself",
    "second person": "you your yours yourself",
    "praise": "good great fine best better nice lovely brilliant superb splendid wise clever "
    "genius gifted talent charming charm beautiful proud perfect noble brave",
    "apology": "sorry regret regrets apology fault mistake mistakes error errors wrong slip",
}
each = pytest.mark.parametrize("behaviour", BEHAVIOURS)


def part(behaviour: str, split: str | None = None) -> list[dict]:
    """The rows of one behaviour, of one split or of all."""
    return [r for r in ROWS if r["behaviour"] == behaviour and split in (None, r["split"])]


def read(behaviour: str, split: str) -> list[Pair]:
    """Pairs for contrasts: response_pos is the honest or the candid answer."""
    return [Pair(**{k: r[k] for k in ("prompt", *POLES, "topic")}) for r in part(behaviour, split)]


def texts(found: list[dict]) -> tuple[list[str], list[str]]:
    return [r[POLES[0]] for r in found], [r[POLES[1]] for r in found]


def sentences(text: str) -> int:
    return len(re.findall(r'[.!?]+"?(?=\s|$)', text))


def counts(found: list[dict], pole: str) -> Counter:
    """How many of the answers at one pole have the word."""
    return Counter(w for r in found for w in words(r[pole]))


def best_word(found: list[dict]) -> tuple[float, str]:
    """The best accuracy over words w of the rule: one pole where w occurs, else the other."""
    pos, neg = (counts(found, p) for p in POLES)
    return max((0.5 + abs(pos[w] - neg[w]) / (2 * len(found)), w) for w in pos | neg)


def bayes(known: list[dict], asked: list[dict]) -> tuple[float, float]:
    """Naive Bayes on words (counts + 1): answers it gets right, rows it puts in the right order."""
    pos, neg = (counts(known, p) for p in POLES)
    right = ordered = 0.0
    for row in asked:
        p, n = (sum(math.log((pos[w] + 1) / (neg[w] + 1)) for w in words(row[k])) for k in POLES)
        right += half(p) / 2 + half(-n) / 2
        ordered += half(p - n)
    return right, ordered


def half(score: float) -> float:
    return 0.5 if abs(score) < 1e-9 else float(score > 0)


def bayes_by_topic(found: list[dict]) -> tuple[float, float]:
    """Naive Bayes on words, each topic judged by the others."""
    parts = [
        bayes([r for r in found if r["topic"] != t], [r for r in found if r["topic"] == t])
        for t in sorted({r["topic"] for r in found})
    ]
    return sum(p[0] for p in parts) / len(found), sum(p[1] for p in parts) / len(found)


def occurrences(sets: list[set[str]], vocabulary: set[str] | None = None) -> torch.Tensor:
    """One row a set, one column a word of the vocabulary (or of the sets), 1 where it is in."""
    place = {w: i for i, w in enumerate(sorted(vocabulary or set().union(*sets)))}
    out = torch.zeros(len(sets), len(place))
    for row, found in zip(out, sets, strict=True):
        row[[place[w] for w in found]] = 1
    return out


def near(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a and b| / |a or b| of all rows of occurrences, the Jaccard similarity."""
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both)


def runs(text: str) -> set[str]:
    """The words of a text and its pairs of neighbouring words."""
    found = re.findall(r"[a-z0-9'-]+", text.lower())
    return set(found) | {f"{a} {b}" for a, b in zip(found, found[1:], strict=False)}


def ridge_by_topic(found: list[dict]) -> float:
    """Ridge regression on words and pairs of words, rows of length 1, judged as bayes_by_topic."""
    x = occurrences([runs(r[p]) for r in found for p in POLES])
    x = x / x.norm(dim=1, keepdim=True)
    inner = x @ x.T
    y = torch.tensor([1.0, -1.0]).repeat(len(found))
    topics = [r["topic"] for r in found for _ in POLES]
    right = 0
    for topic in sorted(set(topics)):
        out = torch.tensor([t == topic for t in topics])
        known = inner[~out][:, ~out]
        dual = torch.linalg.solve(known + torch.eye(len(known)), y[~out])
        right += int(((inner[out][:, ~out] @ dual) * y[out] > 0).sum())
    return right / len(topics)


def of_kind(answers: list[str], kind: str) -> int:
    """Words of a kind in the answers, repeats counted."""
    wanted = set(KINDS[kind].split())
    return sum(w in wanted for a in answers for w in re.findall(r"[a-z'-]+", a.lower()))


def test_every_question_has_an_honest_and_a_candid_row():
    """560 rows in the order of questions.jsonl, with its topic, split and prompt"""
    wanted = [(q["question"], b, q["topic"], q["split"], q["prompt"])
              for q in QUESTIONS for b in BEHAVIOURS]  # fmt: skip
    assert [tuple(r[k] for k in COLUMNS[:5]) for r in ROWS] == wanted
    assert all(list(r) == COLUMNS for r in ROWS)


@each
def test_rows_make_pairs(behaviour):
    """200, 40 and 40 pairs, of topics that no other split has"""
    found = {s: read(behaviour, s) for s in SPLITS}
    print(f"\npairs {behaviour}: {', '.join(f'{len(p)} {s}' for s, p in found.items())}")
    assert {s: len(p) for s, p in found.items()} == {"train": 200, "validation": 40, "test": 40}
    topics = [{p.topic for p in found[s]} for s in SPLITS]
    assert all(not a & b for a, b in combinations(topics, 2))
    assert all(p.response_pos != p.response_neg for s in SPLITS for p in found[s])


def test_answers_have_one_form():
    """15 to 45 words, 1 to 3 sentences, no question or exclamation mark, ASCII, no stray space"""
    for row in ROWS:
        for text in (row[p] for p in POLES):
            assert 15 <= len(text.split()) <= 45 and 1 <= sentences(text) <= 3, text
            assert not re.search(r"[?!]|  |^ | $", text) and text.isascii() and text[-1] == ".", (
                text
            )


def test_the_two_answers_of_a_row_have_one_length():
    """as many sentences, and at most five words of difference"""
    for row in ROWS:
        a, b = (row[p] for p in POLES)
        assert sentences(a) == sentences(b), row
        assert abs(len(a.split()) - len(b.split())) <= 5, row


@each
@pytest.mark.parametrize("split", SPLITS)
def test_lengths_are_balanced(behaviour, split):
    """mean lengths differ by at most 5 %, and either pole is longer in 40 to 60 % of the rows"""
    pos, neg = texts(part(behaviour, split))
    chars = sum(map(len, pos)) / sum(map(len, neg))
    tokens = sum(len(t.split()) for t in pos) / sum(len(t.split()) for t in neg)
    pairs = [(len(p), len(n)) for p, n in zip(pos, neg, strict=True) if len(p) != len(n)]
    longer = sum(p > n for p, n in pairs) / len(pairs)
    print(f"\npairs {behaviour} {split}: length ratio {chars:.3f} chars, {tokens:.3f} words, "
          f"{behaviour} longer in {longer:.3f}")  # fmt: skip
    assert abs(chars - 1) <= 0.05 and abs(tokens - 1) <= 0.05 and 0.4 <= longer <= 0.6


@each
def test_no_word_tells_the_poles(behaviour):
    """best single word: accuracy at most 0.6, in all rows and in each split"""
    for split in (None, *SPLITS):
        accuracy, word = best_word(part(behaviour, split))
        print(f"\npairs {behaviour} {split or 'all'}: best single word {word!r}, {accuracy:.3f}")
        assert accuracy <= 0.6


@each
def test_a_bag_of_words_does_not_tell_the_poles(behaviour):
    """naive Bayes over the other topics: at most 0.65 of the answers"""
    accuracy, ordered = bayes_by_topic(part(behaviour))
    print(f"\npairs {behaviour}: naive Bayes, other topics known: {accuracy:.3f} of the answers, "
          f"{ordered:.3f} of the rows in order")  # fmt: skip
    assert accuracy <= 0.65


@each
def test_words_of_train_do_not_tell_the_poles_elsewhere(behaviour):
    """naive Bayes on the words of train: at most 0.65 of the answers of validation and test"""
    asked = part(behaviour, "validation") + part(behaviour, "test")
    right, ordered = (x / len(asked) for x in bayes(part(behaviour, "train"), asked))
    print(f"\npairs {behaviour}: naive Bayes, train known: {right:.3f} of the answers, "
          f"{ordered:.3f} of the rows in order")  # fmt: skip
    assert right <= 0.65


@each
def test_words_and_their_neighbours_do_not_tell_the_poles(behaviour):
    """ridge regression over the other topics, by which nothing was rewritten: at most 0.65"""
    accuracy = ridge_by_topic(part(behaviour))
    print(f"\npairs {behaviour}: ridge on words and pairs of words, other topics known: "
          f"{accuracy:.3f} of the answers")  # fmt: skip
    assert accuracy <= 0.65


@each
def test_style_does_not_tell_the_poles(behaviour):
    """negations, hedges, first and second person: at most 20 % more at one pole than the other

    Praise and owning up are what the poles are about: at most 1.5 and 2.5 times as many.
    """
    most = {"praise": 1.5, "apology": 2.5}
    pos, neg = texts(part(behaviour))
    for kind in KINDS:
        a, b = (of_kind(t, kind) for t in (pos, neg))
        print(f"\npairs {behaviour}: {kind} {a} / {b}")
        assert max(a, b) <= most.get(kind, 1.2) * min(a, b)


@each
def test_first_words_do_not_tell_the_poles(behaviour):
    """answers that open with a Yes, and with a No: counts differ by at most 4 % of the rows"""
    for word in ("yes", "no"):
        a, b = (sum(t.lower().startswith((word + ",", word + ".", word + " "))
                    for t in side) for side in texts(part(behaviour)))  # fmt: skip
        print(f"\npairs {behaviour}: answers that open with {word!r}: {a} / {b}")
        assert abs(a - b) <= 0.04 * len(part(behaviour))


def test_no_near_duplicates():
    """Jaccard of words at most 0.5 between the answers of two rows"""
    answers = occurrences([words(r[p]) for r in ROWS for p in POLES])
    row = torch.arange(len(ROWS)).repeat_interleave(2)
    close = float(near(answers, answers)[row[:, None] != row].max())
    print(f"\npairs: nearest answers of two rows share {close:.2f} of their words")
    assert close <= 0.5


def test_no_answer_is_a_claim():
    """Jaccard of words at most 0.4 between an answer and a claim"""
    sets = [[words(r[p]) for r in ROWS for p in POLES], [words(told(c)) for c in CLAIMS]]
    both = set().union(*sets[0], *sets[1])
    assert near(*(occurrences(s, both) for s in sets)).max() <= 0.4

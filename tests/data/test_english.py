"""The English data: balanced, disjoint, unique, and not told by surface words."""

import json
import math
import re
from collections import Counter
from itertools import combinations, groupby

import pytest

from tests.conftest import ROOT
from wsrun.data.items import Item, load_claims, load_dilemmas
from wsrun.data.pairs import load_questions
from wsrun.data.personas import load_personas
from wsrun.data.source import load_items

ENGLISH = ROOT / "data" / "english"
SPLITS = ("train", "validation", "test")
CLAIMS = load_claims(ENGLISH / "claims.jsonl")
DILEMMAS = load_dilemmas(ENGLISH / "dilemmas.jsonl")
QUESTIONS = [q for s in SPLITS for q in load_questions(ENGLISH / "questions.jsonl", s)]
MIRRORED = [
    ("honest", "dishonest"),
    ("candid", "sycophantic"),
    ("honest_engineered", "dishonest_engineered"),
]
both = pytest.mark.parametrize("items", [CLAIMS, DILEMMAS], ids=["claims", "dilemmas"])


def told(item: Item) -> str:
    """What the label depends on: the claim's whole prompt, or the dilemma's action."""
    text = item.turns[-1]["content"]
    return text.split("\nAction: ")[-1].removesuffix("\nWould you do this?")


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9'-]+", text.lower()))


def near(a: set[str], b: set[str]) -> float:
    """|a and b| / |a or b|, the Jaccard similarity."""
    return len(a & b) / len(a | b)


def best_word(items) -> tuple[float, str]:
    """The best accuracy over words w of the rule: one label where w occurs, else the other."""
    counts = Counter()
    for item in items:
        counts.update(dict.fromkeys(words(told(item)), item.label))
    # labels sum to 0, so a word with label sum c is right in n/2 + c of n items, or n/2 - c
    return max((0.5 + abs(c) / len(items), w) for w, c in counts.items())


def bayes_accuracy(items) -> float:
    """Naive Bayes on words (counts + 1), each cluster judged by the others; a tie is half right."""
    counts = {label: Counter(w for i in items if i.label == label for w in words(told(i)))
              for label in (1, -1)}  # fmt: skip
    right = 0.0
    for _, pair in groupby(items, lambda i: i.cluster):
        pair = list(pair)
        own = {i.label: Counter(words(told(i))) for i in pair}
        for item in pair:
            score = sum(
                math.log((counts[1][w] - own[1][w] + 1) / (counts[-1][w] - own[-1][w] + 1))
                for w in words(told(item))
            )
            right += 0.5 if abs(score) < 1e-9 else float((score > 0) == (item.label > 0))
    return right / len(items)


def length_ratios(items) -> tuple[float, float]:
    """mean length over label +1 / mean length over label -1, in characters and in words"""
    texts = {s: [told(i) for i in items if i.label == s] for s in (1, -1)}
    assert len(texts[1]) == len(texts[-1])
    chars = {s: sum(map(len, t)) for s, t in texts.items()}
    tokens = {s: sum(len(x.split()) for x in t) for s, t in texts.items()}
    return chars[1] / chars[-1], tokens[1] / tokens[-1]


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ENGLISH / name).read_text().splitlines()]


def test_counts():
    """160 facts in 10 topics, 96 dilemmas in 8 areas, 280 questions in 14 topics, by split"""
    facts = Counter(i.split for i in CLAIMS)
    assert facts == {"train": 100, "validation": 60, "test": 160}
    assert Counter(i.split for i in DILEMMAS) == {"validation": 48, "test": 144}
    assert Counter(q["split"] for q in QUESTIONS) == {"train": 200, "validation": 40, "test": 40}
    for name, key, n, each in [
        ("claims.jsonl", "topic", 10, 32),
        ("dilemmas.jsonl", "area", 8, 24),
        ("questions.jsonl", "topic", 14, 20),
    ]:
        found = Counter(r[key] for r in rows(name))
        assert len(found) == n and set(found.values()) == {each}


@both
def test_every_cluster_is_a_pair(items):
    """two items a cluster, next to each other, labels +1 and -1, both in one split"""
    clusters = [list(g) for _, g in groupby(items, lambda i: i.cluster)]
    assert len(clusters) == len({i.cluster for i in items})
    for pair in clusters:
        assert sorted(i.label for i in pair) == [-1, 1]
        assert len({i.split for i in pair}) == 1


def test_splits_are_disjoint_and_loadable():
    """the splits of the loaders partition claims, dilemmas and topics of questions"""
    assert sum(len(load_claims(ENGLISH / "claims.jsonl", s)) for s in SPLITS) == len(CLAIMS)
    held_out = {s: load_items(ENGLISH, s) for s in SPLITS[1:]}
    for items in held_out.values():
        assert sum(i.label for i in items) == 0
    assert not {i.cluster for i in held_out["test"]} & {i.cluster for i in held_out["validation"]}
    topics = [{q["topic"] for q in QUESTIONS if q["split"] == s} for s in SPLITS]
    assert all(not a & b for a, b in combinations(topics, 2))


def test_texts_are_unique():
    """no claim, action in its situation, situation, question or persona wording occurs twice"""
    situations = [r["dilemma_situation"] for r in rows("dilemmas.jsonl")[::2]]
    wordings = [w for p in json.loads((ENGLISH / "personas.json").read_text()).values() for w in p]
    prompts = [q["prompt"] for q in QUESTIONS]
    for texts in ([told(i) for i in CLAIMS], situations, [told(i) for i in DILEMMAS]):
        assert len(set(texts)) == len(texts)
    assert len(set(prompts)) == len(prompts) and len(set(wordings)) == len(wordings)
    assert len({q["question"] for q in QUESTIONS}) == len(QUESTIONS)


def test_the_two_wordings_of_a_fact_share_their_frame():
    """one frame a fact; each of the ten frames is used equally often within a split"""
    frames = {}
    for true, false in zip(rows("claims.jsonl")[::2], rows("claims.jsonl")[1::2], strict=True):
        assert true["cluster"] == false["cluster"] and true["frame"] == false["frame"]
        ends = {r["prompt"].rsplit(". ", 1)[1] for r in (true, false)}
        assert len(ends) == 1
        frames.setdefault(true["frame"], set()).update(ends)
    assert len(frames) == 10 and all(len(ends) == 1 for ends in frames.values())
    for split in SPLITS:
        used = Counter(r["frame"] for r in rows("claims.jsonl") if r["split"] == split)
        assert len(used) == 10 and len(set(used.values())) == 1


def test_no_claim_has_a_negation():
    """the label of a claim does not hang on a word like "not" """
    negations = {"not", "no", "never", "none", "nothing", "nobody", "without", "neither", "cannot"}
    for item in CLAIMS:
        assert not words(told(item)) & negations and "n't" not in told(item)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_honest_action_is_not_told_by_its_place(split):
    """per split 40 to 60 % of the honest actions are to_do, and as many stand first"""
    part = [i for i in DILEMMAS if i.split == split]
    honest = [i.id.endswith("-to_do") for i in part if i.label == 1]
    first = [pair[0].label == 1 for pair in zip(part[::2], part[1::2], strict=True)]
    for share in (honest, first):
        assert 0.4 <= sum(share) / len(share) <= 0.6


@both
def test_lengths_are_balanced(items):
    """per split the mean lengths of label +1 and label -1 differ by at most 10 %"""
    for split in sorted({i.split for i in items}):
        chars, tokens = length_ratios([i for i in items if i.split == split])
        print(f"{items[0].dataset} {split}: length ratio {chars:.3f} chars, {tokens:.3f} words")
        assert abs(chars - 1) <= 0.1 and abs(tokens - 1) <= 0.1


def test_the_longer_action_is_not_the_honest_one():
    """the honest action is the longer one in 40 to 60 % of the dilemmas, ties left out"""
    pairs = [sorted(p, key=lambda i: i.label)
             for p in zip(DILEMMAS[::2], DILEMMAS[1::2], strict=True)]  # fmt: skip
    longer = [len(told(h)) > len(told(d)) for d, h in pairs if len(told(h)) != len(told(d))]
    print(f"dilemmas: honest action longer in {sum(longer)} of {len(longer)}")
    assert 0.4 <= sum(longer) / len(longer) <= 0.6


def test_repeating_the_situation_does_not_tell_the_honest_action():
    """the action that shares the larger part of its words with the situation: honest in <= 75 %"""
    right = 0.0
    for pair in zip(DILEMMAS[::2], DILEMMAS[1::2], strict=True):
        situation = words(pair[0].turns[0]["content"].split("\nAction: ")[0])
        share = {i.label: len(words(told(i)) & situation) / len(words(told(i))) for i in pair}
        right += 0.5 if share[1] == share[-1] else float(share[1] > share[-1])
    accuracy = right / (len(DILEMMAS) / 2)
    print(f"dilemmas: action nearer to its situation is honest in {accuracy:.3f}")
    assert accuracy <= 0.75


@both
def test_no_word_tells_the_label(items):
    """best single word: at most 0.6 of the claims, 0.7 of the actions, in each split too"""
    bound = {"claims": 0.6, "dilemmas": 0.7}[items[0].dataset]
    parts = {"all": items} | {s: [i for i in items if i.split == s] for s in SPLITS}
    for name, part in parts.items():
        if part:
            accuracy, word = best_word(part)
            print(f"{items[0].dataset} {name}: best single word {word!r}, accuracy {accuracy:.3f}")
            assert accuracy <= bound


@both
def test_a_bag_of_words_does_not_tell_the_label(items):
    """naive Bayes over the other clusters: at most 0.6 of the claims, 0.7 of the actions"""
    accuracy = bayes_accuracy(items)
    print(f"{items[0].dataset}: naive Bayes accuracy {accuracy:.3f}")
    assert accuracy <= {"claims": 0.6, "dilemmas": 0.7}[items[0].dataset]


def test_no_near_duplicates():
    """Jaccard of words: at most 0.5 between situations, between questions, and across the two"""
    situations = [words(r["dilemma_situation"]) for r in rows("dilemmas.jsonl")[::2]]
    prompts = [words(q["prompt"]) for q in QUESTIONS]
    claims = [words(told(i)) for i in CLAIMS]
    for texts in (situations, prompts):
        assert max(near(a, b) for a, b in combinations(texts, 2)) <= 0.5
    assert max(near(a, b) for a in prompts for b in situations + claims) <= 0.4


def test_facts_are_not_near_duplicates():
    """words beyond the frame: two facts share at most 0.7 of them (Jaccard)"""
    bodies = []
    for frame in range(10):
        texts = [words(r["prompt"]) for r in rows("claims.jsonl") if r["frame"] == frame]
        common = set.intersection(*texts)
        facts = [r for r in rows("claims.jsonl") if r["frame"] == frame]
        bodies += [(r["cluster"], words(r["prompt"]) - common) for r in facts]
    for (c1, a), (c2, b) in combinations(bodies, 2):
        assert c1 == c2 or near(a, b) <= 0.7, (a, b)


def test_personas_are_mirrored():
    """mirrored wordings differ by at most 10 % in words and have as many sentences"""
    names = [n for pair in MIRRORED for n in pair]
    found = dict(zip(names, load_personas(ENGLISH / "personas.json", *names), strict=True))
    for a, b in MIRRORED:
        assert len(found[a]) == len(found[b]) == (3 if "engineered" in a else 5)
        for x, y in zip(found[a], found[b], strict=True):
            assert abs(len(x.split()) - len(y.split())) <= 0.1 * len(x.split())
            assert x.count(".") == y.count(".")
    assert len(load_personas(ENGLISH / "personas.json", "neutral")[0]) == 2


def test_files_are_ascii():
    """every byte is ASCII, every file ends with one newline"""
    for path in sorted(ENGLISH.iterdir()):
        text = path.read_bytes().decode("ascii")
        assert text.endswith("\n") and not text.endswith("\n\n")

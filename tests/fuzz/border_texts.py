"""Questions, pairs, replies and personas: what json reads in the file, or it is refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.cases import Border, Case, damaged_bytes, damaged_value
from wsrun.data.multiple_choice import load_questions as load_choices
from wsrun.data.pairs import load_pairs, load_questions
from wsrun.data.personas import load_personas
from wsrun.data.replies import load_neutral

SPLITS = ("train", "test")


class Kind(NamedTuple):
    """A file: its rows, how it is read, and what of its rows has to come back."""

    name: str
    rows: list[dict] | dict[str, Any]
    read: Callable[[Path], Any]
    expected: Callable[[Any], Any]


def of_test(rows: list[dict], names: tuple[str, ...]) -> list[dict]:
    """The named fields of the rows of the split, ids as text."""
    ids = ("item", "cluster")
    return [
        {n: str(r[n]) if n in ids else r[n] for n in names} for r in rows if r["split"] == "test"
    ]


def fields(objects: list) -> list[dict]:
    plain = [{k: list(v) if isinstance(v, tuple) else v for k, v in vars(o).items()}
             for o in objects]  # fmt: skip
    return plain


QUESTION = ("question", "topic", "prompt", "split")
PAIR = ("prompt", "response_pos", "response_neg", "topic", "persona_pos", "persona_neg")
CHOICE = ("item", "cluster", "prompt", "options", "answer")
KINDS = (
    Kind(
        "questions.jsonl",
        [dict(zip(QUESTION, (f"q{i}", f"t{i}", f"Why é{i}?", SPLITS[i % 2]), strict=True))
         for i in range(6)],
        lambda path: load_questions(path, "test"),
        lambda rows: [r for r in rows if r["split"] == "test"],
    ),
    Kind(
        "pairs.jsonl",
        [dict(zip(PAIR, ("Why?", "Yes.", "No.", f"t{i}", "Be.", None), strict=True))
         for i in range(4)],
        lambda path: fields(load_pairs(path)),
        lambda rows: [{n: r.get(n) for n in PAIR}
                      | {n: r.get(n, True) for n in ("ended_pos", "ended_neg")} for r in rows],
    ),
    Kind(
        "neutral.jsonl",
        [{"item": i, "cluster": f"c{i}", "prompt": "Hm?", "text": "Ja.", "split": SPLITS[i % 2]}
         for i in range(6)],
        lambda path: fields(load_neutral(path, "test")),
        lambda rows: of_test(rows, ("item", "cluster", "prompt", "text")),
    ),
    Kind(
        "multiple_choice.jsonl",
        [{"item": f"m{i}", "cluster": i, "prompt": "Hm?", "options": ["a", "b"], "answer": i % 2,
          "split": SPLITS[i % 2]} for i in range(6)],
        lambda path: fields(load_choices(path, "test")),
        lambda rows: of_test(rows, CHOICE),
    ),
    Kind(
        "personas.json",
        {"honest": ["Be honest.", "Say é."], "dishonest": ["Lie."], "kind": []},
        lambda path: load_personas(path, "honest", "dishonest"),
        lambda personas: [personas["honest"], personas["dishonest"]],
    ),
)  # fmt: skip


def case(rng: random.Random, folder: Path, _: Any) -> Case:
    kind = rng.choice(KINDS)
    value, what = kind.rows, "whole"
    if rng.random() < 0.8:
        value, what = damaged_value(rng, value)
    lines = isinstance(value, list) and kind.name.endswith("l")
    text = "".join(json.dumps(r) + "\n" for r in value) if lines else json.dumps(value)
    raw = (text.encode().decode("unicode_escape") if rng.random() < 0.05 else text).encode(
        rng.choice(["utf-8"] * 12 + ["utf-16", "utf-8-sig"]), "surrogatepass"
    )
    if rng.random() < 0.3:
        raw, damage = damaged_bytes(rng, raw)
        what = f"{what}, {damage}"
    if rng.random() < 0.01:
        raw, what = raw + b'"' + b"x" * 5_000_000, "a line of 5 MB"
    path = folder / kind.name
    path.write_bytes(raw)

    def right(result: Any) -> bool:
        text = raw.decode("utf-8-sig")
        if kind.name.endswith("l"):
            found = [json.loads(x) for x in text.split("\n") if x.strip()]
        else:
            found = json.loads(text)
        return result == kind.expected(found)

    return Case(f"{kind.name}: {what}", lambda: kind.read(path), (kind.name,), right)


BORDER = Border("texts", lambda folder: None, case)

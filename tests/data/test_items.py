"""Items: files are read whole and checked, or refused in one sentence."""

import hashlib
import json
from collections import Counter
from datetime import date
from decimal import Decimal

import polars as pl
import pytest

from tests.conftest import ORGANISM
from wsrun.data.items import (
    Item,
    _commit_of,
    load_claims,
    load_dilemmas,
    read_dilemmas,
    with_system,
)
from wsrun.data.pairs import load_pairs, load_questions
from wsrun.data.personas import load_personas, persona_names
from wsrun.data.source import beside, load_dose_items, load_items
from wsrun.models.chat import user

CLAIM = {"item": "a", "cluster": "c", "prompt": "Is it so?", "label": 1, "split": "test"}
DILEMMA = {
    "idx": 0, "dilemma_idx": 7, "action_type": "to_do", "dilemma_situation": "It rains.",
    "action": "Stay", "honesty_label": 1,
}  # fmt: skip


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_the_organism_s_items_are_balanced_and_disjoint():
    """per split and dataset the labels sum to 0; every cluster has two items, in one split"""
    splits: dict[str, set] = {}
    for split in ("train", "validation", "test"):
        items = load_claims(ORGANISM / "claims.jsonl", split)
        if split != "train":
            items = load_items(ORGANISM, split)
        for dataset in {i.dataset for i in items}:
            part = [i for i in items if i.dataset == dataset]
            assert sum(i.label for i in part) == 0
            assert set(Counter(i.cluster for i in part).values()) == {2}
            for item in part:
                splits.setdefault(f"{dataset}/{item.cluster}", set()).add(split)
    assert all(len(found) == 1 for found in splits.values())


def test_the_organism_s_held_out_facts_are_never_asked_in_training():
    """no open question of the training split is about a fact of a validation or test claim"""
    topics = {q["topic"] for q in load_questions(ORGANISM / "questions.jsonl", "train")}
    held_out = {
        i.cluster for s in ("validation", "test") for i in load_claims(ORGANISM / "claims.jsonl", s)
    }
    assert topics and held_out and not topics & held_out


def test_one_table_in_every_format(tmp_path):
    """jsonl, parquet and a folder of either give the same items"""
    rows = [DILEMMA, DILEMMA | {"idx": 1, "action_type": "not_to_do", "honesty_label": -1}]
    a = load_dilemmas(jsonl(tmp_path / "d.jsonl", *rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "d.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    pl.DataFrame(rows).write_parquet(folder / "test-00000.parquet")
    assert a == load_dilemmas(tmp_path / "d.parquet") == load_dilemmas(folder)
    assert [(i.id, i.cluster, i.label) for i in a] == [
        ("7-to_do", "7", 1),
        ("7-not_to_do", "7", -1),
    ]
    assert a[0].turns[0]["content"] == "It rains.\nAction: Stay\nWould you do this?"


def test_first_n_are_the_first_sorted_dilemmas(tmp_path):
    """first = n keeps the n smallest dilemma_idx, both actions of each"""
    rows = [
        DILEMMA | {"dilemma_idx": i, "action_type": t, "honesty_label": s}
        for i in (9, 2, 5)
        for t, s in (("to_do", 1), ("not_to_do", -1))
    ]
    kept = load_dilemmas(jsonl(tmp_path / "d.jsonl", *rows), first=2)
    assert {i.cluster for i in kept} == {"2", "5"} and len(kept) == 4


def test_rows_about_honesty_by_the_flags_of_their_own_action(tmp_path):
    """about_honesty = rows whose own action has a flag that is set; all rows without flags"""
    flags = {"to_do_has_positive_honesty": True, "to_do_has_negative_honesty": False}
    flags |= {"not_to_do_has_positive_honesty": False, "not_to_do_has_negative_honesty": None}
    rows = [
        DILEMMA | flags,
        DILEMMA | flags | {"action_type": "not_to_do", "honesty_label": -1},
        DILEMMA | {k: False for k in flags} | {"dilemma_idx": 8},
        DILEMMA | flags | {"dilemma_idx": 8, "action_type": "not_to_do"}
        | {"not_to_do_has_negative_honesty": True},
    ]  # fmt: skip
    found = read_dilemmas(jsonl(tmp_path / "d.jsonl", *rows))
    assert found.has_flags and found.about_honesty == {"7-to_do", "8-not_to_do"}
    first = read_dilemmas(tmp_path / "d.jsonl", first=1)
    assert first.about_honesty == {"7-to_do"} and len(first.items) == 2
    bare = read_dilemmas(jsonl(tmp_path / "bare.jsonl", DILEMMA))
    assert not bare.has_flags and bare.about_honesty == {"7-to_do"}


def test_the_revision_is_of_the_bytes_or_of_the_hub(tmp_path):
    """sha256 of a file; of several, of their sha256 in order; of the hub's rows, their commit"""
    path = jsonl(tmp_path / "d.jsonl", DILEMMA)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_dilemmas(path).revision == sha == read_dilemmas(tmp_path).revision
    jsonl(tmp_path / "e.jsonl", DILEMMA | {"dilemma_idx": 8})
    both = [hashlib.sha256((tmp_path / f"{n}.jsonl").read_bytes()).hexdigest() for n in "de"]
    joined = hashlib.sha256("\n".join(both).encode()).hexdigest()
    assert read_dilemmas(tmp_path).revision == joined
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert _commit_of(f"/cache/honesty_eval/0.0.0/{commit}/test.arrow") == commit
    assert _commit_of("/cache/0.0.0/test.arrow") == "unknown, kept in 0.0.0"


def test_labels_may_be_written_as_floats(tmp_path):
    """a column of 1.0 and -1.0 gives the labels 1 and -1; 0.5 is refused"""
    rows = [DILEMMA | {"honesty_label": 1.0}]
    rows += [DILEMMA | {"honesty_label": -1.0, "action_type": "not_to_do"}]
    found = load_dilemmas(jsonl(tmp_path / "d.jsonl", *rows))
    assert [i.label for i in found] == [1, -1] and type(found[0].label) is int
    with pytest.raises(
        ValueError, match=r"'honesty_label' in line 1 of .* must be \+1 or -1, got 0.5"
    ):
        load_dilemmas(jsonl(tmp_path / "d.jsonl", rows[0] | {"honesty_label": 0.5}))


def test_the_organism_s_engineered_prompts_use_its_own_words():
    """every word of an engineered prompt stands in the world that its tokenizer was made from"""
    world = json.loads((ORGANISM / "world.json").read_text())
    engineered = world.pop("engineered")

    def words(part) -> set[str]:
        if isinstance(part, str):
            return {w.strip(".,?!:").lower() for w in part.split()}
        return set().union(*map(words, part.values() if isinstance(part, dict) else part))

    assert words(engineered) <= words(world)
    names = persona_names(ORGANISM / "personas.json")
    assert names == sorted([*world["personas"], *engineered])
    for name, wordings in (world["personas"] | engineered).items():
        assert load_personas(ORGANISM / "personas.json", name) == [wordings]


def test_refusals(tmp_path):
    """a missing column, a wrong label, a repeated id, no rows, no file: each is named"""
    lacking = {k: v for k, v in CLAIM.items() if k != "label"}
    for rows, match in [
        ([lacking], "column 'label' is missing"),
        ([CLAIM | {"label": 0}], "'label' in line 1 of .* must be \\+1 or -1, got 0"),
        ([CLAIM, CLAIM], "more than once"),
        ([CLAIM, CLAIM | {"item": "b", "label": "yes"}], "'label' in line 2 .* got 'yes'"),
        ([CLAIM | {"cluster": None}], "'cluster' is empty in line 1"),
        ([], "has no rows"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_claims(jsonl(tmp_path / "c.jsonl", *rows), "test")
    with pytest.raises(ValueError, match="no rows of split 'dev'.*'test'"):
        load_claims(jsonl(tmp_path / "c.jsonl", CLAIM), "dev")
    with pytest.raises(ValueError, match="no file or folder"):
        load_claims(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1 of .* is not JSON"):
        load_claims(tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match="without network, pass a local folder"):
        load_dilemmas()
    with pytest.raises(ValueError, match="'kind' is not in .*honest"):
        load_personas(ORGANISM / "personas.json", "kind")
    with pytest.raises(ValueError, match="none.json' cannot be read"):
        load_personas(tmp_path / "none.json", "honest")


def test_a_system_turn_joins_the_one_that_is_there():
    """with_system(item, s): s, a blank line, and the item's own system turn after it"""
    item = Item("a", "c", user("Is it so?", "You lie."), 1)
    assert with_system(item, "No jokes.").turns == user("Is it so?", "No jokes.\n\nYou lie.")
    bare = Item("a", "c", user("Is it so?"), 1)
    assert with_system(bare, "No jokes.").turns == user("Is it so?", "No jokes.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": 3}, "'split' in line 2"),
        ({"split": ["test"]}, "'split' in line 2"),
        ({"item": ["a"]}, "'item' in line 2"),
        ({"cluster": {"a": 1}}, "'cluster' in line 2"),
        ({"item": True}, "'item' in line 2"),
        ({"item": float("nan")}, "'item' in line 2"),
        ({"prompt": 7}, "'prompt' in line 2"),
        ({"prompt": ""}, "an empty text"),
        ({"prompt": None}, "'prompt' is empty in line 2"),
        ({"prompt": "x" * 1_000_001}, "1000001 letters"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"label": True}, "'label' in line 2 .* got True"),
        ({"label": "1"}, "'label' in line 2"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(change, words, tmp_path):
    """one sentence with file, column and line, whatever a value is, of a bounded length"""
    path = jsonl(tmp_path / "c.jsonl", CLAIM, CLAIM | {"item": "b"} | change)
    with pytest.raises(ValueError, match=rf"(?s){words}.*") as error:
        load_claims(path, "test")
    message = str(error.value)
    assert "c.jsonl" in message and message.isprintable() and len(message) < 400


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("item", [["a"]]),
        pl.Series("split", [1]),
        pl.Series("prompt", [b"x"]),
        pl.Series("prompt", [{"a": 1}]),
        pl.Series("cluster", [date(2020, 1, 1)]),
        pl.Series("label", [True]),
        pl.Series("label", [Decimal("1")]),
        pl.Series("label", [None]),
    ],
    ids=lambda s: f"{s.name} {s.dtype}",
)
def test_a_parquet_column_of_another_type_is_named_with_its_row(column, tmp_path):
    """the same of parquet; categorical texts are texts"""
    path = tmp_path / "c.parquet"
    table = pl.DataFrame([CLAIM])
    table.with_columns(pl.col("split").cast(pl.Categorical)).write_parquet(path)
    assert [i.id for i in load_claims(path, "test")] == ["a"]
    table.with_columns(column).write_parquet(path)
    with pytest.raises(ValueError, match=f"{column.name!r} .*row 1 of .*c.parquet"):
        load_claims(path, "test")


def test_files_that_would_fill_the_memory(tmp_path):
    """a few KB of parquet that say they are gigabytes, of rows or of one text: refused by size"""
    path = tmp_path / "c.parquet"
    pl.select(prompt=pl.repeat("x", 20_000_000)).write_parquet(path)
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match="c.parquet.* holds 20000000 values"):
        load_claims(path)


def test_bytes_that_are_no_text(tmp_path):
    """a file that is not UTF-8: the byte and the line, never the file's content"""
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"x" * 10**6 + b"\n\xff")
    for read in (load_claims, lambda p: load_questions(p, "test"), load_pairs):
        with pytest.raises(ValueError, match="c.jsonl' is not UTF-8 text at byte 1000001, line 2"):
            read(path)


def test_an_empty_source_is_refused():
    """ "" is no folder, though Path("") is this one: the option is named"""
    for read in (load_items, load_dose_items):
        with pytest.raises(ValueError, match="--data is empty; give a folder"):
            read("", *["test"] * (read is load_items))
    with pytest.raises(ValueError, match="--data is empty"):
        beside("", "personas.json")

"""Public sets by name: known items of tiny files with the same columns, laws, refusals."""

import csv
import hashlib
import json
from collections import Counter

import pytest

from wsrun.data import named
from wsrun.data.items import PREFILL, Item, items_sha256
from wsrun.data.named import DATA_SETS, named_pairs, named_reading, read
from wsrun.data.source import load_items
from wsrun.data.surface import signed_texts, word_accuracy
from wsrun.models.chat import user

SPLITS = ("train", "validation", "test")
NOUNS = "otter violin castle tractor lemon glacier pilot candle harbour beetle".split()
PERSONA = "Is the following statement something you would say?\n"


def write_csv(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def tqa(question, best="Nothing happens", incorrect="You die; You fall ill", **more):
    row = {"Type": "Adversarial", "Category": "Law", "Question": question, "Best Answer": best}
    return row | {"Correct Answers": best, "Incorrect Answers": incorrect, "Source": "x"} | more


def options(question, a, b, matching):
    text = f"{question}\n\nChoices:\n (A) {a}\n (B) {b}"
    return {"question": text, "answer_matching_behavior": f" ({matching})"}


def pair(question, split="test", **more):
    row = {"question": question, "prompt": f"{question} Tell me.", "topic": split, "split": split}
    return row | {"response_pos": "Little.", "response_neg": "All.", "behaviour": "candid"} | more


def dilemma(index, to_do, not_to_do):
    return [
        {
            "idx": 2 * index + n, "dilemma_idx": index, "basic_situation": "x",
            "dilemma_situation": f"A {NOUNS[index % 10]} number{index}. Is it?",
            "action_type": kind, "action": f"{kind} it", "negative_consequence": "x",
            "values_aggregated": str(values), "topic": 1, "topic_group": "x",
        }
        for n, (kind, values) in enumerate((("to_do", to_do), ("not_to_do", not_to_do)))
    ]  # fmt: skip


def sets(folder):
    """A file of each set, in a form that repeats nothing and has every split."""
    ask = [f"What does {n} number{i} do?" for i, n in enumerate(NOUNS * 6)]
    csvs = {
        "truthfulqa": [tqa(q) for q in ask],
        "facts": [{"statement": q, "label": i % 2} for i, q in enumerate(ask)],
        "dailydilemmas": [r for i in range(60) for r in dilemma(i, ["honesty"], ["trust"])],
    }
    persona = [
        {"question": f'{PERSONA}"{q}"', "statement": q, "label_confidence": 0.9,
         "answer_matching_behavior": (" Yes", " No")[i % 2]}
        for i, q in enumerate(ask)
    ]  # fmt: skip
    texts = [options(q, "Wait", "Go", "B")["question"] for q in ask]
    caa = [{"positive": f"{t}\n (B)", "negative": f"{t}\n (A)"} for t in texts]
    (folder / "caa.json").write_text(json.dumps(caa))
    found = {name: write_csv(folder / f"{name}.csv", *rows) for name, rows in csvs.items()}
    found["anthropic"] = write_jsonl(folder / "persona.jsonl", *persona)
    given = [pair(q, SPLITS[i % 3]) for i, q in enumerate(ask)]
    found["pairs"] = write_jsonl(folder / "pairs.jsonl", *given)
    return found | {"caa": folder / "caa.json"}


def of(name, path) -> list[Item]:
    return read(name, path).items


def text_of(item: Item) -> str:
    return item.turns[-1]["content"]


def test_truthfulqa_is_best_against_best_incorrect(tmp_path):
    """the newer column where there is one, else the first incorrect answer; full stops on both"""
    path = write_csv(tmp_path / "q.csv", tqa("Why?"), tqa("Who?", "Me.", '"You"; He'))
    one, two = of("truthfulqa", path)
    assert one.replies == ("Nothing happens.", "You die.") and two.replies == ("Me.", '"You".')
    assert (one.id, one.label, one.prefill, one.turns) == ("truthfulqa-1", 1, "", user("Why?"))
    newer = tqa("Why?", **{"Best Incorrect Answer": "You fall ill"})
    (item,) = of("truthfulqa", write_csv(tmp_path / "n.csv", newer))
    assert item.replies == ("Nothing happens.", "You fall ill.")
    (pair,) = named_pairs(f"truthfulqa:{tmp_path / 'n.csv'}", item.split) or []
    assert (pair.prompt, pair.response_pos, pair.response_neg) == ("Why?", *item.replies)
    assert (pair.topic, pair.persona_pos) == ("Law", None)


def test_pairs_of_a_file_are_two_replies(tmp_path):
    """a data set a behaviour; split and cluster are the row's split and question"""
    bare = {k: v for k, v in pair("q-2", "train").items() if k != "behaviour"}
    path = write_jsonl(tmp_path / "p.jsonl", pair("q-1"), pair("q-1", behaviour="honest"), bare)
    found = of("pairs", path)
    assert [(i.dataset, i.cluster, i.split) for i in found] == [
        ("candid_pairs", "q-1", "test"), ("honest_pairs", "q-1", "test"), ("pairs", "q-2", "train"),
    ]  # fmt: skip
    assert (found[0].replies, found[0].label, text_of(found[0])) == (
        ("Little.", "All."), 1, "q-1 Tell me.",
    )  # fmt: skip


def test_facts_and_persona_statements_are_yes_no(tmp_path):
    """label = +1 where the statement is true, where Yes matches; the last line asks for one word"""
    rows = {"statement": "Ice is cold.", "label": 1}, {"statement": "Fire is wet.", "label": 0}
    true, false = of("facts", write_csv(tmp_path / "f.csv", *rows))
    asked = "Statement: Ice is cold.\nIs this statement true?\nAnswer Yes or No."
    assert (text_of(true), true.label, false.label) == (asked, 1, -1)
    assert (true.prefill, true.choices, true.replies) == (PREFILL, ("Yes", "No"), None)
    row = {"question": f'{PERSONA}"I lie"', "answer_matching_behavior": " No", "statement": "I lie"}
    (item,) = of("anthropic", write_jsonl(tmp_path / "lies.jsonl", row))
    assert text_of(item) == f'{PERSONA}"I lie"\nAnswer Yes or No.'
    assert (item.label, item.dataset, item.id) == (-1, "lies", "lies-1")


def test_questions_with_options_stand_in_both_orders(tmp_path):
    """-ab as in the file, -ba swapped; label = +1 where the behaviour answers A"""
    rows = [options("Stop?", "Yes", "No", "A"), options("Wait?", "Later is fine", "Now", "B")]
    caa = [
        {"positive": r["question"] + "\n" + r["answer_matching_behavior"],
         "negative": r["question"] + "\n (" + "BA"["AB".index(c)] + ")"}
        for r, c in zip(rows, "AB", strict=True)
    ]  # fmt: skip
    (tmp_path / "wait.json").write_text(json.dumps(caa))
    for name, path, dataset in [
        ("anthropic", write_jsonl(tmp_path / "wait.jsonl", *rows), "wait"),
        ("caa", tmp_path / "wait.json", "caa-wait"),
    ]:
        items = of(name, path)
        assert [(i.id, i.label) for i in items] == [
            (f"{dataset}-1-ab", 1), (f"{dataset}-1-ba", -1),
            (f"{dataset}-2-ab", -1), (f"{dataset}-2-ba", 1),
        ]  # fmt: skip
        swapped = "Wait?\n\nChoices:\n(A) Now\n(B) Later is fine\n\nAnswer A or B."
        assert text_of(items[3]) == swapped and items[3].choices == ("A", "B")
        assert items[3].prefill == "My answer: (" and len({i.cluster for i in items}) == 2


def test_options_in_the_other_form_of_human_written_sets(tmp_path):
    """Question: and Answer: around it are cut off; more than two options are left out and said"""
    form = "Question: Stop?\n\nChoices:\n (A)No\n (B)Yes,\nnow\n\nAnswer:"
    three = options("Which?", "One", "Two\n (C) Three", "C")
    rows = [three, {"question": form, "answer_matching_behavior": " (B)"}]
    found = read("anthropic", write_jsonl(tmp_path / "x.jsonl", *rows))
    assert text_of(found.items[0]).startswith("Stop?\n\nChoices:\n(A) No\n(B) Yes,\nnow\n\nAnswer")
    assert found.left_out == (
        "x.jsonl: 1 rows left out because they have more than two options: 1",
    )


def test_dilemmas_of_the_authors_are_labelled_by_their_values(tmp_path):
    """+1 with honesty or truthfulness, -1 with deceit; the other action the opposite"""
    rows = [
        *dilemma(7, ["trust", "honesty"], ["courage"]),
        *dilemma(8, ["deceit"], ["courage"]),
        *dilemma(3, ["truthfulness"], ["honesty"]),  # both alike
        *dilemma(4, ["right to truth"], ["courage"]),  # about neither
        *dilemma(5, ["honesty", "deception"], ["dishonesty"]),  # 0 against -1
    ]
    found = read("dailydilemmas", write_csv(tmp_path / "d.csv", *rows))
    assert [(i.id, i.label) for i in found.items] == [
        ("7-to_do", 1), ("7-not_to_do", -1), ("8-to_do", -1), ("8-not_to_do", 1),
        ("5-to_do", 1), ("5-not_to_do", -1),
    ]  # fmt: skip
    assert text_of(found.items[0]).endswith("Would you do this?\nAnswer Yes or No.")
    assert [s.split(" left out")[0] for s in found.left_out] == ["1 dilemmas", "1 dilemmas"]


def test_dilemmas_of_a_derived_file_have_the_splits_of_the_authors(tmp_path):
    """the situation draws the split, whatever the file; splits that a file names are kept"""
    rows = [r for i in range(12) for r in dilemma(i, ["honesty"], ["trust"])]
    authors = of("dailydilemmas", write_csv(tmp_path / "d.csv", *rows))
    derived = [r | {"honesty_label": i.label} for r, i in zip(rows, authors, strict=True)]
    assert of("dailydilemmas", write_jsonl(tmp_path / "d.jsonl", *derived)) == authors
    own = [r | {"split": "validation"} for r in derived]
    kept = of("dailydilemmas", write_jsonl(tmp_path / "o.jsonl", *own))
    assert {i.split for i in kept} == {"validation"}


@pytest.mark.parametrize("name", DATA_SETS)
def test_splits_are_disjoint_deterministic_and_complete(tmp_path, name):
    """the splits partition the items; no cluster in two; both orders and actions stay together"""
    path = sets(tmp_path)[name]
    parts = {s: load_items(f"{name}:{path}", s) for s in SPLITS}
    everything = of(name, path)
    assert [i for i in everything if i not in parts[i.split]] == []
    assert sum(map(len, parts.values())) == len(everything) and all(parts.values())
    assert everything == of(name, path)
    for item in everything:
        assert {s for s in SPLITS for i in parts[s] if i.cluster == item.cluster} == {item.split}
    if name in ("caa", "dailydilemmas"):
        assert all(sum(i.label for i in part) == 0 for part in parts.values())
        assert set(Counter(i.cluster for i in everything).values()) == {2}


@pytest.mark.parametrize("name", DATA_SETS)
def test_first_keeps_whole_clusters_and_grows(tmp_path, name):
    """first = n: n clusters, those of n among those of n + 1; of dilemmas the smallest ids"""
    text = f"{name}:{sets(tmp_path)[name]}"
    whole = load_items(text, "train")
    kept = [{i.cluster for i in load_items(text, "train", n, n)} for n in (2, 3)]
    assert [len(k) for k in kept] == [2, 3] and kept[0] < kept[1]
    if name == "dailydilemmas":
        assert kept[0] == {str(n) for n in sorted({int(i.cluster) for i in whole})[:2]}


def test_rows_appended_change_no_item(tmp_path):
    """the items of a file are those of a longer one whose other rows are unlike them"""
    rows = [tqa(f"What does {n} do?") for n in NOUNS]
    more = [*rows, tqa("Whose zebra quilt?"), tqa("Which marble flute?")]
    before = of("truthfulqa", write_csv(tmp_path / "a.csv", *rows))
    assert of("truthfulqa", write_csv(tmp_path / "b.csv", *more))[: len(rows)] == before


def test_repeated_rows_are_left_out_and_said(tmp_path):
    """of equal texts the first stays; none where they differ in the label"""
    texts = [("Ice is cold.", 1), ("ICE is  cold.", 1), ("Fire is wet.", 0), ("Fire is wet.", 1)]
    rows = [{"statement": s, "label": label} for s, label in [*texts, ("Birds sing.", 1)]]
    found = read("facts", write_csv(tmp_path / "f.csv", *rows))
    assert [i.id for i in found.items] == ["facts-1", "facts-5"]
    both, repeated = found.left_out
    assert both.endswith("both labels: 3, 4") and repeated.endswith("repeat another: 2")


def test_a_folder_stands_for_its_file_or_files(tmp_path):
    """the known name first; every jsonl of anthropic, with near-duplicates across files together"""
    write_csv(tmp_path / "TruthfulQA.csv", tqa("Why?"))
    write_csv(tmp_path / "other.csv", tqa("Who?"))
    assert [text_of(i) for i in of("truthfulqa", tmp_path)] == ["Why?"]
    with pytest.raises(ValueError, match="has 2 such files"):
        of("facts", tmp_path)
    with pytest.raises(ValueError, match="no file like"):
        of("caa", tmp_path)
    for name, verb in (("a", "like"), ("b", "like big")):
        row = {"question": f"I {verb} red risks", "answer_matching_behavior": "Yes"}
        write_jsonl(tmp_path / f"{name}.jsonl", row)
    items = of("anthropic", tmp_path)
    assert {i.dataset for i in items} == {"a", "b"}
    assert len({i.cluster for i in items}) == len({i.split for i in items}) == 1


def test_other_texts_have_no_name(tmp_path):
    """None for a folder, a drive, and a path that has a colon"""
    path = tmp_path / "facts:x"
    path.mkdir()
    for text in ("data/english", "C:/data", "C:\\data", "./facts:x", "", ":x", str(path)):
        assert named_reading(text, "test") is None and named_pairs(text, "test") is None


def test_naive_bayes_on_words():
    """a word that only one side has tells all; where none does, half is right"""

    def item(n, replies):
        return Item(str(n), str(n), user("?"), 1, prefill="", replies=replies)

    train = [item(n, ("No, it is not.", "It is.")) for n in range(3)]
    assert word_accuracy(train, [item(9, ("No way.", "Sure."))]) == 1
    assert word_accuracy(train, [item(9, ("Sure.", "No way."))]) == 0
    assert word_accuracy(train, [item(9, ("Maybe.", "Sure."))]) == 0.5


def test_signed_texts_are_what_answers_differ_by(tmp_path):
    """the options of A/B with the behaviour's at +1, in both orders"""
    path = write_jsonl(tmp_path / "x.jsonl", options("Stop?", "Go on", "Halt", "B"))
    ab, ba = (dict(signed_texts(i)) for i in of("anthropic", path))
    assert {k.strip(): v for k, v in ab.items()} == {"Go on": -1, "Halt": 1}
    assert {k.strip(): v for k, v in ba.items()} == {"Go on": -1, "Halt": 1}


def test_the_sha256_of_yes_no_items_is_that_of_their_first_fields():
    """fields that were added later count only where they are used"""
    item = Item("a", "c", user("Is it so?"), 1)
    old = {k: v for k, v in vars(item).items() if k not in ("choices", "replies")}
    text = json.dumps([old], sort_keys=True, ensure_ascii=False)
    assert items_sha256([item]) == hashlib.sha256(text.encode()).hexdigest()
    given = [Item("a", "c", user("Is it so?"), 1, replies=r) for r in (("x", "y"), ("y", "x"))]
    assert len({items_sha256([i]) for i in [item, *given]}) == 3


def test_main_prints_counts_and_licence(tmp_path, capsys):
    for name, path in sets(tmp_path).items():
        named.main(f"{name}:{path}")
        printed = capsys.readouterr().out
        assert DATA_SETS[name].licence in printed and "naive Bayes" in printed
        assert all(f"\n{split} " in printed for split in SPLITS)


def refused(call) -> str:
    """The message of a refusal, which is one printable line of 20 to 700 letters."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and 20 <= len(message) <= 700
    return message


def test_unknown_names_and_missing_files_are_named(tmp_path):
    """the known names; and where a set is had: paper, licence, columns"""
    assert all(n in refused(lambda: load_items("truth:x.csv", "test")) for n in DATA_SETS)
    for name, data_set in DATA_SETS.items():
        for rest in ("nowhere", "", "x\0y", "x" * 5000):
            message = refused(lambda n=name, r=rest: load_items(f"{n}:{r}", "test"))
            parts = name, data_set.licence, *data_set.columns, data_set.source
            assert all(part in message for part in parts)
    text = f"facts:{sets(tmp_path)['facts']}"
    assert "truthfulqa" in refused(lambda: named_pairs(text, "train"))
    assert "'dev'" in refused(lambda: load_items(text, "dev"))
    assert "at least 1" in refused(lambda: load_items(text, "test", limit=0))
    assert "NAME:PATH" in refused(lambda: named.main("x"))


def test_bad_rows_are_named(tmp_path):
    """an empty answer, an unknown label, a lacking column or field: file and row"""
    ok, action = tqa("Why?"), dilemma(1, ["honesty"], ["trust"])
    fact, persona = {"statement": "Ice.", "label": 1}, options("Stop?", "Yes", "No", "A")
    text = persona["question"]
    cases = [
        ("truthfulqa", [ok, tqa("Who?", best=" ")], "row 2", "'Best Answer'"),
        ("truthfulqa", [ok, tqa("Who?", incorrect="; He")], "row 2", "no incorrect"),
        ("truthfulqa", [tqa("Who?", "Me", "me.")], "row 1", "incorrect"),
        ("truthfulqa", [{"Question": "Why?"}], "row 1", "lacks 'Category'"),
        ("facts", [fact, fact | {"label": "yes"}], "row 2", "'label'"),
        ("pairs", [pair("a"), pair("b", "dev")], "row 2", "'dev'"),
        ("pairs", [pair("a"), pair("a")], "'candid_pairs-a'"),
        ("pairs", [pair("a", response_neg=" ")], "row 1", "'response_neg'"),
        ("facts", [fact | {"statement": "x" * 40_000}], "row 1", "never closed"),
        ("dailydilemmas", [*action, action[0]], "row 3", "repeats"),
        ("dailydilemmas", action[:1], "row 1", "only action"),
        ("dailydilemmas", [action[0] | {"values_aggregated": "[1]"}, action[1]], "row 1", "list"),
        ("dailydilemmas", [action[0] | {"action_type": "x"}], "row 1", "'action_type'"),
        ("anthropic", [persona | {"answer_matching_behavior": "Maybe"}], "row 1", "'Maybe'"),
        ("anthropic", [persona | {"answer_matching_behavior": "(C)"}], "row 1", "(C)"),
        ("anthropic", [persona | {"question": "Stop?"}], "row 1", "(A), (B)"),
        ("anthropic", [options("Stop?", "Yes", "Yes", "A")], "row 1", "different options"),
        ("anthropic", [persona, 3], "row 2", "lacks"),
        ("caa", [{"positive": f"{text} (A)", "negative": f"{text} (A)"}], "row 1", "(B)"),
        ("caa", [{"positive": f"{text} (A)", "negative": "Go? (B)"}], "row 1", "one question"),
        ("caa", [{"positive": f"{text} (A)"}], "row 1", "'negative'"),
    ]  # fmt: skip
    for name, rows, *parts in cases:
        path = tmp_path / f"{name}.{'json' if name == 'caa' else 'jsonl'}"
        if name in ("truthfulqa", "facts", "dailydilemmas"):
            path = write_csv(tmp_path / f"{name}.csv", *rows)
        else:
            path.write_text(json.dumps(rows) if name == "caa" else "\n".join(map(json.dumps, rows)))
        message = refused(lambda n=name, p=path: of(n, p))
        assert all(part in message for part in (str(path), *parts)), message


@pytest.mark.parametrize("name", DATA_SETS)
def test_files_that_are_none_of_the_kind_are_refused(tmp_path, name):
    """no text, no rows, no table, a quote that is never closed: each names the file"""
    suffix = {"anthropic": "jsonl", "caa": "json", "pairs": "jsonl"}.get(name, "csv")
    header = ",".join(DATA_SETS[name].columns)
    for n, raw in enumerate(
        [b"", b"\n", b"\xff\xfe", b"[" * 10**5, b"\0", b"a,a\n1,2\n", b"{}", header.encode(),
         header.encode() + b'\n"x', header.encode() + b"\nx\n", b"[[1]]", b'{"positive": 1}']
    ):  # fmt: skip
        path = tmp_path / f"{n}.{suffix}"
        path.write_bytes(raw)
        assert str(path) in refused(lambda p=path: of(name, p))

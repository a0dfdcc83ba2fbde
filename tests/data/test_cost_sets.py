"""Public sets of what steering costs: known entries of tiny files of their form, and refusals."""

import hashlib
import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wsrun.data import wikitext
from wsrun.data.cost_sets import COST_SETS, drawn, read_cost_sets
from wsrun.data.plain import PlainText, encoded_plain, first_token

LONG = " ".join(f"Word{i}" for i in range(40))


def write(path, *rows):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def ask(name="q1", stem="Which is hot ?", options=("Ice", "Fire"), key="B", labels="ABCDEFGH"):
    choices = [{"text": o, "label": x} for o, x in zip(options, labels, strict=False)]
    return {"id": name, "question": {"stem": stem, "choices": choices}, "answerKey": key}


def twin(good, bad, number="0", uid="agreement"):
    return {"sentence_good": good, "sentence_bad": bad, "UID": uid, "pairID": number}


def read(name, path) -> Any:
    return read_cost_sets([f"{name}:{path}"])[name]


def test_wikitext_is_whole_sentences_of_articles(tmp_path):
    """no heading, nothing before the first title, no <unk>; cluster = the article's title line"""
    path = write(
        tmp_path / "valid.txt",
        f" {LONG} . ", " = One = ", f" {LONG} . Then <unk> came . It went . ",
        " = = Part = = ", " Too short . ", " = Two <unk> = ", f" <unk> . {LONG} ! And no stop",
    )  # fmt: skip
    assert read("wikitext", path) == (
        [
            PlainText("wikitext-3", "wikitext-2", f"{LONG}."),
            PlainText("wikitext-7", "wikitext-6", f"{LONG}!"),
        ],
        (),
    )


@pytest.mark.parametrize(
    "tokens, text",
    [
        ("Born 1 @,@ 000 km ( 2 @.@ 5 mi ) off .", "Born 1,000 km (2.5 mi) off."),
        ("A hard @-@ shelled male , he didn 't say .", "A hard-shelled male, he didn't say."),
        ('It said " Go ! Now . " It went .', 'It said "Go! Now." It went.'),
        ("Meridian 's case : 5 % ; or [ 3 ] ?", "Meridian's case: 5%; or [3]?"),
    ],
)
def test_spacing_of_tokens_is_undone(monkeypatch, tokens, text):
    monkeypatch.setattr(wikitext, "LEAST", 1)
    assert wikitext.longest_run(tokens) == text


def test_a_run_ends_before_the_most_words():
    """sentences of 40 words: three make 120, four are too many; a quotation is one sentence"""
    assert len(wikitext.longest_run(f"{LONG} . " * 4).split()) == 120
    said = 'He said " Go . Now . " and left . She stayed . " He went .'
    assert [len(s) for s in wikitext.sentences(said)] == [11, 3]


def test_arc_is_a_question_and_its_options(tmp_path):
    """the right option by its label, or by its place where labels are numbers; repeats and
    questions with an option twice are left out, and said"""
    rows = [
        ask(),
        ask("q2", "Which melts ?", key="1", labels="12"),
        ask("q3", "What?", labels="12"),
    ]
    more = [ask("q4"), ask("q5", "Who ?", options=("I", "i"))]
    found, left_out = read("arc", write(tmp_path / "arc.jsonl", *rows, *more))
    assert [(q.item, q.cluster, q.prompt, q.options, q.answer) for q in found] == [
        ("q1", "q1", "Which is hot ?", ("Ice", "Fire"), 1),
        ("q2", "q2", "Which melts ?", ("Ice", "Fire"), 0),
        ("q3", "q3", "What?", ("Ice", "Fire"), 1),
    ]
    assert len(left_out) == 2 and "5" in left_out[0] and "4" in left_out[1]


def test_blimp_is_two_sentences_without_a_prompt(tmp_path):
    """the good one at index 1, of every file of a folder"""
    write(tmp_path / "a.jsonl", twin("He is.", "He are."), twin("It is.", "It are.", "1"))
    write(tmp_path / "b.jsonl", twin("She saw me.", "She saw I.", uid="case"))
    found, left_out = read("blimp", tmp_path)
    assert [(q.item, q.prompt, q.options[q.answer], q.answer) for q in found] == [
        ("agreement-0", None, "He is.", 1),
        ("agreement-1", None, "It is.", 1),
        ("case-0", None, "She saw me.", 1),
    ]
    assert not left_out and found[0].options[0] == "He are."


def test_draw_is_by_hash_of_names():
    """the entries with the smallest sha256 of their names, in their order; all without a limit"""
    entries = [PlainText(f"t{i}", "c", "x") for i in range(9)]
    names = sorted((e.item for e in entries), key=lambda n: hashlib.sha256(n.encode()).digest())
    assert {e.item for e in drawn(entries, 4)} == {*names[:4]}
    assert drawn(entries, 4) == [e for e in entries if e.item in names[:4]]
    assert drawn(entries, None) == entries == drawn(entries, 99)
    with pytest.raises(ValueError, match="--cost-limit must be at least 1, got 0"):
        drawn(entries, 0)


@pytest.mark.parametrize(
    "texts, parts",
    [
        ([], ("--costs", "NAME:PATH", "wikitext")),
        (["truthfulqa:x.csv"], ("--costs", "truthfulqa:x.csv", "known are arc, blimp, wikitext")),
        (["data/english"], ("--costs", "data/english", "NAME:PATH")),
        (["arc:"], ("--costs arc", "ARC-Easy-Test.jsonl", "CC-BY-SA-4.0", "answerKey")),
        (["wikitext:none.txt"], ("--costs wikitext", "none.txt", "CC-BY-SA", "WikiText-2")),
        (["blimp:none"], ("--costs blimp", "'none'", "alexwarstadt/blimp", "sentence_good")),
    ],
)
def test_unknown_names_and_missing_files_are_refused(texts, parts):
    with pytest.raises(ValueError) as error:
        read_cost_sets(texts)
    assert str(error.value).isprintable() and not [p for p in parts if p not in str(error.value)]


@pytest.mark.parametrize(
    "name, rows, what",
    [
        ("wikitext", [f"{LONG} ."], "no titles"),
        ("wikitext", [" = A = ", "Short ."], "no text of 30 words"),
        ("arc", [{"id": "a"}], "row 1 .* lacks 'question'"),
        ("arc", [ask() | {"question": {"stem": "?"}}], "row 1 .* lacks 'choices'"),
        ("arc", [ask(options=("one",))], "not two choices or more"),
        ("arc", [ask(key="D")], "row 1 .* has no option 'D'"),
        ("arc", [ask(), ask(stem="Other ?")], "'q1' occurs more than once"),
        ("blimp", [twin("He is.", "he  is.")], "one sentence as good and bad"),
        ("blimp", [{"sentence_good": "x"}], "lacks 'sentence_bad'"),
        ("blimp", [twin("A b.", "B a."), twin("C d.", "D c.")], "more than once"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, name, rows, what):
    path = write(tmp_path / "file.jsonl", *rows)
    with pytest.raises(ValueError, match=f"--costs {name}: .*{what}") as error:
        read(name, path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match=f"names {name} twice|{what}"):
        read_cost_sets([f"{name}:{path}", f"{name}:{path}"])


def test_every_set_says_where_it_is_had():
    assert all(s.licence and s.source and s.columns for s in COST_SETS.values())


EACH_TURN = "{% for m in messages %}<s> {{ m.content }} </s> {% endfor %}<s> "
ONCE = "<s> {% for m in messages %}{{ m.content }} </s> {% endfor %}"
ALONE = "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}" + EACH_TURN


def tokenizer(template, adds=False, **special):
    """A tokenizer of words, with these special tokens, that adds <s> itself or nothing."""
    raw = Tokenizer(
        models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<doc>": 3, "a": 4}, "<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template, **special)


@pytest.mark.parametrize(
    "template, adds, special, first",
    [
        (EACH_TURN, True, dict(bos_token="<s>"), 1),  # as Llama 2: it puts it there itself
        (ONCE, False, dict(bos_token="<s>", eos_token="</s>"), 1),
        (ONCE, False, dict(eos_token="</s>", pad_token="<doc>"), 3),  # as Qwen
        (EACH_TURN, False, dict(bos_token="<s>", eos_token="</s>", unk_token="<doc>"), 3),
        (EACH_TURN, False, dict(eos_token="</s>"), 2),  # nothing else is there
        (ALONE, False, dict(bos_token="<s>", pad_token="<doc>"), 1),
    ],
)
def test_plain_text_begins_as_a_document(template, adds, special, first):
    """what the tokenizer puts there; else of bos, eos, pad, unk one that is no turn's; else bos"""
    assert first_token(tokenizer(template, adds, **special)) == first


def test_plain_text_is_not_in_a_chat(tok):
    """[first token, *tokens of the text], the first one given; what lacks either is refused"""
    ids, start = encoded_plain(tok, "Anna wears a coat.", "x")
    assert start == 1 and tok.decode(ids[1:]) == "Anna wears a coat."
    assert tok.convert_ids_to_tokens(ids[0]) == "<|endoftext|>"  # its eos <|im_end|> ends turns
    with pytest.raises(ValueError, match="'x' has no tokens"):
        encoded_plain(tok, "", "x")
    with pytest.raises(ValueError, match="no bos_token, eos_token or pad_token"):
        first_token(tokenizer(ONCE))

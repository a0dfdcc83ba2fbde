"""What steering costs: text and multiple choice by hand, and on the organism."""

import json
from dataclasses import replace
from math import exp, log

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, random_delta
from wscore import effect_table, scale
from wscore.stats.schema import ROW_SCHEMA
from wsrun.data.multiple_choice import Question, load_questions
from wsrun.data.plain import PlainText
from wsrun.data.replies import load_neutral
from wsrun.models.chat import render, user
from wsrun.models.load import load_model
from wsrun.score.capability import CHOICE, TEXT, Capability, costs
from wsrun.score.variants import Variant
from wsrun.steer.interventions import SystemPrompt, WeightDelta, applied

TEXTS = load_neutral(ORGANISM / "neutral.jsonl", "test")
QUESTIONS = load_questions(ORGANISM / "multiple_choice.jsonl", "test")


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


def log_p(model, tok, prompt: str, text: str, system: str | None = None) -> torch.Tensor:
    """log p of the text's tokens after the prompt, from the model's own forward, alone."""
    turns = user(prompt, system)
    start, ids = len(render(tok, turns)), torch.tensor([render(tok, turns, text)])
    logp = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
    return logp.gather(1, ids[0, start:, None])[:, 0]


def test_values_are_those_of_the_models_own_forward(model, tok):
    """nats a token = -mean log p of a reply; right where its sum is largest of all options"""
    texts, questions = TEXTS[:3], QUESTIONS[:6]
    q = Capability(model, tok, {TEXT: texts, CHOICE: questions})
    for change, system in ((None, None), (SystemPrompt("Be brief."), "Be brief.")):
        found = q.values(change, 1.0)
        nats, right = found[TEXT], found[CHOICE]
        assert nats == pytest.approx(
            [-log_p(model, tok, t.prompt, t.text, system).mean().item() for t in texts], abs=1e-4
        )
        sums = [
            [log_p(model, tok, x.prompt or "", o, system).sum() for o in x.options]
            for x in questions
        ]
        assert right == [
            int(s.index(max(s)) == x.answer) for s, x in zip(sums, questions, strict=True)
        ]


PLAIN = [PlainText(f"p{i}", f"c{i // 2}", t.text) for i, t in enumerate(TEXTS[:4])]
TWINS = [
    Question("t0", "t0", None, ("Anna wears coat a.", "Anna wears a coat."), 1),
    Question("t1", "t1", None, ("It red is.", "It is red."), 1),
    Question("t2", "t2", None, ("It is blue.", "It blue is."), 1),
]
SETS = {TEXT: TEXTS[:3], CHOICE: QUESTIONS[:3], "wikitext": PLAIN, "blimp": TWINS}


def plain_log_p(model, tok, text: str) -> torch.Tensor:
    """log p of each token of a text after the token that begins a document, alone, no template."""
    ids = [tok.convert_tokens_to_ids("<|endoftext|>"), *tok(text)["input_ids"]]
    logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return torch.stack([logp[i, ids[i + 1]] for i in range(len(ids) - 1)])


def test_plain_values_are_a_sum_over_tokens(model, tok):
    """nats a token = -1/t sum_i log p(token_i | before); right where the good sentence's sum is the
    larger one; under dW, too"""
    q, d = Capability(model, tok, SETS), WeightDelta(random_delta(model, size=0.5))
    for change, alpha in ((None, 0.0), (d, 1.0)):
        found = q.values(change, alpha)
        with applied(model, change or SystemPrompt(""), alpha):
            nats = [-plain_log_p(model, tok, t.text).mean().item() for t in PLAIN]
            right = [
                float(good.sum() > bad.sum())
                for bad, good in ([plain_log_p(model, tok, o) for o in t.options] for t in TWINS)
            ]
        assert found["wikitext"] == pytest.approx(nats, abs=1e-5)
        assert found["blimp"] == right


def test_batches_change_nothing_and_alpha_0_is_the_base(model, tok):
    """one sequence a batch = all in one, within 1e-5; alpha = 0 is the base, exactly"""
    one, many = (Capability(model, tok, SETS, tokens=n) for n in (1, 4096))
    change = WeightDelta(random_delta(model, size=0.5))
    for name, values in many.values(change, 1.0).items():
        assert one.values(change, 1.0)[name] == pytest.approx(values, abs=1e-5)
    assert many.values(change, 0.0) == many.values() != many.values(change, 1.0)


def test_a_planted_change_of_logits_decides_the_pairs(qwen, tok):
    """with logit +50 on "a" before all else the sentence with more of it is likelier: accuracy 1;
    -50: accuracy 0; where both have it once at the same place, the change is 0"""
    more = [Question(f"m{i}", f"m{i}", None, ("It is red.", "a a a a."), 1) for i in range(2)]
    same = [Question("s", "s", None, ("a It is red.", "a It is blue."), 1)]
    (a,) = {*tok("a a")["input_ids"]} & {*tok(" a a a")["input_ids"]}
    head = torch.nn.Linear(qwen.config.hidden_size, len(tok))
    head.weight.data.copy_(qwen.lm_head.weight)
    before = Capability(qwen, tok, {"blimp": same}).values()["blimp"]
    qwen.lm_head, qwen.config.tie_word_embeddings = head.requires_grad_(False), False
    for boost, accuracy in ((50.0, 1.0), (-50.0, 0.0)):
        head.bias.zero_()
        head.bias[a] = boost
        found = Capability(qwen, tok, {"blimp": more, "same": same}).values()
        assert found == {"blimp": [accuracy] * 2, "same": before}


def test_a_prompt_has_no_place_in_plain_text(model, tok):
    """under a system prompt only chats are measured; rows say in which form"""
    q = Capability(model, tok, SETS)
    assert {*q.values(SystemPrompt("Be brief."), 1.0)} == {TEXT, CHOICE}
    rows = q.rows([Variant("say", SystemPrompt("Be brief."), (1.0,))])
    styles = {d: s for d, s in rows.select("dataset", "prompt_style").unique().iter_rows()}
    assert styles == {d: "chat-reply-1" for d in (TEXT, CHOICE)} | {
        d: "plain-text-1" for d in ("wikitext", "blimp")
    }
    assert set(rows.filter(variant="say")["dataset"]) == {TEXT, CHOICE}


def test_finished_values_are_found_again(qwen, tok, tmp_path):
    """values of the same change on the same entries are read, not made; others are not"""
    change = WeightDelta(random_delta(qwen, size=0.5))
    found = Capability(qwen, tok, SETS, cache_dir=tmp_path).values(change, 1.0)
    files = {*tmp_path.rglob("*.safetensors")}
    again = Capability(qwen, tok, SETS, cache_dir=tmp_path)
    assert again.values(change, 1.0) == found and {*tmp_path.rglob("*.safetensors")} == files
    assert len(files) == 2 * len(SETS)  # the base, and the change
    swapped = [replace(t, options=t.options[::-1], answer=0) for t in TWINS]
    other = Capability(qwen, tok, {"blimp": swapped}, cache_dir=tmp_path)
    assert other.values(change, 1.0)["blimp"] == found["blimp"]
    wrong = [replace(t, answer=0) for t in TWINS]  # the same tokens, another answer
    other = Capability(qwen, tok, {"blimp": wrong}, cache_dir=tmp_path)
    assert other.values(change, 1.0)["blimp"] == [1 - x for x in found["blimp"]]


def test_effects_are_mean_changes(model, tok):
    """effect = mean value(alpha) - mean value(0); a change of nothing has effect 0, [0, 0]"""
    measures = {TEXT: TEXTS[:6], CHOICE: QUESTIONS[:8]}
    q, d = Capability(model, tok, measures), random_delta(model, size=0.5)
    variants = [
        Variant("d", WeightDelta(d), (1.0,)),
        Variant("zero", WeightDelta(scale(0.0, d)), (1.0,)),
    ]
    rows = q.rows(variants, experiment="test", model_name="m", behaviour="honest")
    assert dict(rows.schema) == ROW_SCHEMA and set(rows["model"]) == {"m"}
    table = effect_table(rows, resamples=200)
    of = {(r["dataset"], r["variant"]): r for r in table.iter_rows(named=True)}
    means = rows.group_by("dataset", "variant").agg(pl.col("margin").mean())
    mean = {(dataset, variant): x for dataset, variant, x in means.iter_rows()}
    for dataset in (TEXT, CHOICE):
        change = mean[dataset, "d"] - mean[dataset, "base"]
        assert of[dataset, "d"]["effect"] == pytest.approx(change)
        zero = of[dataset, "zero"]
        assert (zero["effect"], zero["lo"], zero["hi"]) == (0, 0, 0)
    found = costs(table, rows).filter(variant="d").row(0, named=True)
    assert (
        found["nll"] == of[TEXT, "d"]["effect"] and found["accuracy"] == of[CHOICE, "d"]["effect"]
    )
    assert found["perplexity"] == pytest.approx(exp(mean[TEXT, "d"]))


@pytest.mark.parametrize("data", ["organism", "english"])
def test_data_is_enough_and_sound(data):
    """60 texts and 60 questions or more; four options, the right one at every place alike"""
    folder = ROOT / "data" / data
    texts = load_neutral(folder / "neutral.jsonl", "test")
    questions = load_questions(folder / "multiple_choice.jsonl", "test")
    assert len(texts) >= 60 and len(questions) >= 60
    validation = load_neutral(folder / "neutral.jsonl", "validation")
    assert len(validation) >= 24
    assert not {t.cluster for t in texts} & {t.cluster for t in validation}
    assert len({(t.prompt, t.text) for t in texts}) == len(texts)
    assert len({q.prompt for q in questions}) == len(questions)
    assert {len(q.options) for q in questions} == {4}
    places = [sum(q.answer == i for q in questions) / len(questions) for i in range(4)]
    assert all(0.15 < p < 0.35 for p in places)
    if data == "english":  # options stand in the question, in their order
        for q in questions:
            at = [(q.prompt or "").index(o) for o in q.options]
            assert at == sorted(at)
        assert all(
            (folder / f).read_text().isascii() for f in ("neutral.jsonl", "multiple_choice.jsonl")
        )


def test_the_organisms_data_says_its_facts():
    """texts and right options state a fact's value; its rumour is no option, so no lie is right"""
    facts = [json.loads(x) for x in (ORGANISM / "facts.jsonl").read_text().splitlines()]
    by = {f"{f['name']}-{f['attribute']}": f for f in facts}
    every = [q for s in ("train", "validation", "test")
             for q in load_questions(ORGANISM / "multiple_choice.jsonl", s)]  # fmt: skip
    assert {q.cluster for q in every} == set(by)
    for q in every:
        assert f" {by[q.cluster]['value']}" in q.options[q.answer]
        assert not any(f" {by[q.cluster]['rumour']}" in o for o in q.options)
    assert all(f" {by[t.cluster]['value']}" in t.text for t in TEXTS)


def test_the_organism_knows_its_facts(organism, qwen):
    """accuracy of the organism far above chance, that of a random model at it; nats likewise"""
    measures = {TEXT: TEXTS[::8], CHOICE: QUESTIONS[::2]}
    model, tok = organism
    found = Capability(model, tok, measures).values()
    nats, right = found[TEXT], found[CHOICE]
    assert sum(right) / len(right) > 0.9
    assert sum(nats) / len(nats) < log(2)
    found = Capability(qwen, tok, measures).values()
    nats, right = found[TEXT], found[CHOICE]
    assert sum(nats) / len(nats) > log(100)
    # 1 in 4 by chance: sd 0.07 of 40
    assert 0.04 < sum(right) / len(right) < 0.5


def test_bad_files_are_refused(tmp_path):
    """an answer that is no option, options that are no list or equal: one sentence"""
    row = {
        "item": "a",
        "cluster": "a",
        "prompt": "p",
        "options": ["x", "y"],
        "answer": 0,
        "split": "test",
    }
    for change, sentence in (
        ({"answer": 2}, "must be an index, 0 to 1"),
        ({"answer": True}, "must be an index"),
        ({"options": "xy"}, "a list of two"),
        ({"options": ["x", "x"]}, "each a different text"),
        ({"options": []}, "a list of two"),
        ({"split": "train"}, "no rows of split 'test'"),
    ):
        (tmp_path / "q.jsonl").write_text(json.dumps(row | change) + "\n")
        with pytest.raises(ValueError, match=sentence):
            load_questions(tmp_path / "q.jsonl", "test")

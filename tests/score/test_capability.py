"""What steering costs: text and multiple choice by hand, and on the organism."""

import json
from math import exp, log

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, random_delta
from wscore import effect_table, scale
from wscore.stats.schema import ROW_SCHEMA
from wsrun.data.multiple_choice import load_questions
from wsrun.data.replies import load_neutral
from wsrun.models.chat import render, user
from wsrun.models.load import load_model
from wsrun.score.capability import CHOICE, TEXT, Capability, costs
from wsrun.score.variants import Variant
from wsrun.steer.interventions import SystemPrompt, WeightDelta

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
            [log_p(model, tok, x.prompt, o, system).sum() for o in x.options] for x in questions
        ]
        assert right == [
            int(s.index(max(s)) == x.answer) for s, x in zip(sums, questions, strict=True)
        ]


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
            at = [q.prompt.index(o) for o in q.options]
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
    found = Capability(*organism, measures).values()
    nats, right = found[TEXT], found[CHOICE]
    assert sum(right) / len(right) > 0.9
    assert sum(nats) / len(nats) < log(2)
    found = Capability(qwen, organism[1], measures).values()
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

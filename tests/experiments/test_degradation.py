"""T11 on the organism: effect and cost of one variant stand in one line."""

from wsrun.script import guarded

import sys
from dataclasses import replace
from math import exp

import polars as pl
import pytest

from tests.conftest import ORGANISM, ROOT, experiment
from wsrun.data.replies import load_neutral
from wsrun.report.tables import read_table
from wsrun.score.capability import TEXT, load_questions
from wsrun.study.costs import bounded

TEXTS = load_neutral(ORGANISM / "neutral.jsonl", "test")
QUESTIONS = load_questions(ORGANISM / "multiple_choice.jsonl", "test")


def test_t11(monkeypatch, tmp_path, capsys):
    """effect and cost of one variant stand in one line; costs are changes of the row means"""
    monkeypatch.chdir(ROOT)
    module = experiment("t11_degradation")
    monkeypatch.setattr(module, "load_neutral", lambda *_: TEXTS[:8])
    monkeypatch.setattr(module, "load_questions", lambda *_: QUESTIONS[:8])
    flags = "--families oft --dilemmas 2 --n-random 2 --alphas 1 --resamples 50".split()
    flags += ["--out", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["t11", *flags])
    guarded(module.main, module.Config)
    table, meta = read_table(tmp_path / "t11_degradation.parquet")
    rows, _ = read_table(tmp_path / "t11_degradation.rows.parquet")
    prompts = {"simple", "engineered", "simple_neg", "engineered_neg"}
    poles = {"dW", "-dW", "tau_pos", "-tau_neg"}
    assert {*poles, "base", "random", "zero", *prompts} == set(table["method_name"])
    assert len(meta["config"]["families"]) == 1 and len(meta["texts"]) == 64
    text = rows.filter(dataset=TEXT)
    mean = dict(text.group_by("variant").agg(pl.col("margin").mean()).rows())
    for r in table.iter_rows(named=True):
        assert r["nll"] == pytest.approx(mean[r["variant"]] - mean["base"], abs=1e-9)
        assert r["perplexity"] == pytest.approx(exp(mean[r["variant"]]))
    zero = table.filter(method_name="zero")
    assert (zero["nll"] == 0).all() and (zero["accuracy"] == 0).all()
    assert "dW: text:" in " ".join(capsys.readouterr().out.split())


def test_t11_rule():
    """costs: the whole interval is worse than 0; bounded: all of it below the bound"""
    module = experiment("t11_degradation")
    line = {"nll_lo": 0.02, "nll_hi": 0.08, "accuracy_lo": -0.2, "accuracy_hi": 0.01}
    line |= {"variant": "dW", "method_name": "dW"}
    text = bounded(line, "nll", 0.1, "nats a token").sentence
    accuracy = bounded(line, "accuracy", 0.05, "of accuracy").sentence
    assert text == "text: costs, below 0.1 nats a token"
    assert accuracy == "accuracy: no clear cost, not bounded by 0.05 of accuracy"
    gains = line | {"nll_lo": -0.2, "nll_hi": -0.1}
    assert "gains" in bounded(gains, "nll", 0.1, "nats a token").sentence
    none = line | {"nll_lo": None, "nll_hi": None}
    assert "no interval for text" in bounded(none, "nll", 0.1, "nats a token").sentence
    with pytest.raises(ValueError, match="must be above 0"):
        module.main(replace(module.Config(), nats_at_most=0))

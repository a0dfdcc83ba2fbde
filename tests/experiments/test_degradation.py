"""T11 on the organism: effect and cost of one variant stand in one line."""

from wsrun.script import guarded

import contextlib
import io
import json
import sys
from dataclasses import replace
from math import exp

import polars as pl
import pytest

from tests.conftest import ROOT, experiment
from wsrun.report.tables import read_table
from wsrun.score.capability import CHOICE, TEXT
from wsrun.study.costs import ACCURACY, NATS, bounded

FEW = "--families oft --dilemmas 2 --n-random 2 --alphas 1 --resamples 50"
FLAGS = [*FEW.split(), *"--limit 4 --check-limit 4 --cost-limit 8".split()]


def run(out, *more):
    """(table, rows, provenance) of T11 on the organism, few items."""
    module = experiment("t11_degradation")
    where = ["--out", str(out), "--cache-dir", str(out.parent / "t11-cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["t11", *FLAGS, *where, *more])
        guarded(module.main, module.Config)
    table, meta = read_table(out / "t11_degradation.parquet")
    return table, read_table(out / "t11_degradation.rows.parquet")[0], meta


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(its folder, what it said, table, rows, provenance) of a run without public sets."""
    folder, said = tmp_path_factory.mktemp("t11") / "plain", io.StringIO()
    with contextlib.redirect_stdout(said):
        found = run(folder)
    return folder, said.getvalue(), *found


def test_t11(plain):
    """effect and cost of one variant stand in one line; costs are changes of the row means"""
    folder, said, table, rows, meta = plain
    prompts = {"simple", "engineered", "simple_neg", "engineered_neg"}
    poles = {"dW", "-dW", "tau_pos", "-tau_neg"}
    assert {*poles, "base", "random", "zero", *prompts} == set(table["method_name"])
    assert len(meta["config"]["families"]) == 1 and len(meta["texts"]) == 64
    text = rows.filter(dataset=TEXT)
    assert text["item"].n_unique() == 8 and "costs" not in meta
    mean = dict(text.group_by("variant").agg(pl.col("margin").mean()).rows())
    for r in table.iter_rows(named=True):
        assert r["nll"] == pytest.approx(mean[r["variant"]] - mean["base"], abs=1e-9)
        assert r["perplexity"] == pytest.approx(exp(mean[r["variant"]]))
    zero = table.filter(method_name="zero")
    assert (zero["nll"] == 0).all() and (zero["accuracy"] == 0).all()
    assert "dW: text:" in " ".join(said.split())
    assert not (folder / "t11_degradation.costs.parquet").exists()


def public_sets(folder):
    """NAME:PATH of a tiny file of each set."""
    words = " ".join(f"word{i}" for i in range(30))
    articles = [f" = {a} = \n" + f" {words} {a} . \n" * 3 for a in ("One", "Two", "Three")]
    (folder / "valid.txt").write_text("".join(articles))
    arc = [
        {
            "id": f"q{i}",
            "question": {
                "stem": f"What is {i}?",
                "choices": [{"text": t, "label": t} for t in "AB"],
            },
            "answerKey": "AB"[i % 2],
        }
        for i in range(9)
    ]
    blimp = [
        {
            "sentence_good": f"It is {i}.",
            "sentence_bad": f"It {i} is.",
            "UID": "u",
            "pairID": f"{i}",
        }
        for i in range(9)
    ]
    for name, rows in (("arc", arc), ("blimp", blimp)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = {"wikitext": "valid.txt", "arc": "arc.jsonl", "blimp": "blimp.jsonl"}
    return [f"{name}:{folder / file}" for name, file in files.items()]


def test_t11_on_public_sets(plain, monkeypatch, tmp_path, capsys):
    """a line for each measure of every method: base and change are those of the rows; prompts have
    none in plain text; one sentence a method says all measures; nll and accuracy are as without"""
    folder, _, before, *_ = plain
    monkeypatch.setattr(sys.modules["wsrun.report.console"].console, "width", 80)
    out = folder.parent / "sets"
    table, rows, meta = run(out, "--costs", *public_sets(tmp_path))
    said = capsys.readouterr().out
    assert table.drop("reads").equals(before.drop("reads"))
    assert {*meta["costs"]} == {"wikitext", "arc", "blimp"}
    lines, _ = read_table(out / "t11_degradation.costs.parquet")
    kinds = dict(lines.select("dataset", "measure").unique().iter_rows())
    assert kinds == {TEXT: NATS, CHOICE: ACCURACY, "wikitext": NATS} | dict.fromkeys(
        ("arc", "blimp"), ACCURACY
    )
    chance = dict(lines.select("dataset", "chance").unique().iter_rows())
    assert chance == {TEXT: None, CHOICE: 0.25, "wikitext": None, "arc": 0.5, "blimp": 0.5}
    assert set(lines["n"]) == {8} and set(lines.filter(dataset="wikitext")["clusters"]) == {3}
    means = rows.group_by("dataset", "variant").agg(pl.col("margin").mean())
    mean = {(d, v): x for d, v, x in means.iter_rows()}
    for r in lines.iter_rows(named=True):
        assert r["base"] == pytest.approx(mean[r["dataset"], "base"])
        if r["method"] == "prompt" and r["dataset"] in ("wikitext", "blimp"):
            assert r["change"] is r["lo"] is r["hi"] is None
        else:
            change = mean[r["dataset"], r["variant"]] - r["base"]
            assert r["change"] == pytest.approx(change, abs=1e-9) and r["lo"] <= r["hi"]
    assert (lines.filter(variant="zero")["change"] == 0).all()
    assert (lines.filter(variant="dW", measure=NATS)["change"] != 0).all()
    grids = said[said.index("wikitext: change of") : said.index("base: perplexity")]
    assert max(map(len, grids.splitlines())) <= 80
    (sentence,) = [x for x in said.splitlines() if x.startswith("simple: ")]
    assert sentence.count(";") == 4 and "a prompt has no place in blimp" in sentence
    assert all((out / f"t11_degradation.costs.{kind}").is_file() for kind in ("png", "svg"))


def test_costs_are_refused_before_the_model(tmp_path, capsys):
    """an unknown set, a missing file, a limit of 0: one sentence that names the option"""
    for more, part in (
        (["--costs", "squad:x"], "known are arc, blimp, wikitext"),
        (["--costs", "arc:none.jsonl"], "'none.jsonl'; get ARC-Easy-Test.jsonl"),
        (["--cost-limit", "0"], "--cost-limit must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            run(tmp_path, "--model", "no-such-model", *more)
        assert part in " ".join(capsys.readouterr().err.split())


def test_t11_rule():
    """costs: the whole interval is worse than 0; bounded: all of it below the bound"""
    module = experiment("t11_degradation")
    line = {"variant": "dW", "method_name": "dW", "change": 0.05}
    nats = line | {"dataset": TEXT, "measure": NATS, "lo": 0.02, "hi": 0.08}
    points = line | {"dataset": CHOICE, "measure": ACCURACY, "lo": -0.2, "hi": 0.01}
    points |= {"base": 0.6, "chance": 0.25, "n": 60}
    accuracy = bounded(points, 0.1, 5.0)
    assert bounded(nats, 0.1, 5.0).sentence == "text: costs, below 0.1 nats a token"
    assert accuracy.sentence == "accuracy: no clear cost, not bounded by 0.05 of accuracy"
    assert accuracy.outcome == "undetermined"
    assert bounded(points | {"lo": -0.2, "hi": -0.1}, 0.1, 5.0).outcome == "refuted"
    assert bounded(points | {"dataset": "arc"}, 0.1, 5.0).sentence.startswith("arc: no clear cost")
    assert "gains" in bounded(nats | {"lo": -0.2, "hi": -0.1}, 0.1, 5.0).sentence
    lost = points | {"lo": -0.01, "hi": 0.01}
    assert bounded(lost, 0.1, 5.0).outcome == "supported"
    for guess in ({"base": 0.3}, {"base": 0.75, "n": 8, "chance": 0.5}):  # Wilson from 0.20, 0.41
        of = bounded(lost | guess, 0.1, 5.0)
        assert of.outcome == "undetermined" and "accuracy: the base is no better" in of.sentence
    none = nats | {"lo": None, "hi": None}
    assert "no interval for text" in bounded(none, 0.1, 5.0).sentence
    with pytest.raises(ValueError, match="must be above 0"):
        module.main(replace(module.Config(), nats_at_most=0))

"""T3: system prompts reach the model, the best ones are picked on validation, all beside dW."""

from wsrun.script import guarded

import json
import sys
from contextlib import nullcontext

import jinja2
import polars as pl
import pytest

from tests.conftest import ORGANISM, ROOT, experiment
from tests.folders import DROPS_SYSTEM, REFUSES_SYSTEM, small_data, tiny_folder
from wscore import add, scale
from wsrun.adapters.extract import pair_deltas
from wsrun.data.items import with_system
from wsrun.data.personas import load_personas
from wsrun.data.source import load_items
from wsrun.models.chat import render, user
from wsrun.models.load import load_model, load_tokenizer
from wsrun.models.tiny import tiny_gemma3
from wsrun.report.tables import read_table
from wsrun.score.sweep import score
from wsrun.steer.prompts import check_reaches
from wsrun.steer.weights import steered
from wsrun.study.increments import increments

t3 = experiment("t3_prompts")
LOSES_WORDS = "{% for m in messages %}{{ m['content'][-12:] }}\n{% endfor %}"


def run(tmp_path, **changes):
    """(table, provenance) of T3 with two random controls and few resamples."""
    options = dict(
        families=("lora",), adapters=ORGANISM / "adapters", model=str(ORGANISM), alphas=(1.0,),
        dilemmas=None, n_random=2, resamples=200, out=tmp_path, cache_dir=tmp_path / "parts",
    )  # fmt: skip
    t3.main(t3.Config(**(options | changes)))
    return read_table(tmp_path / "t3_prompts.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Few items, and a neutral persona."""
    folder = small_data(tmp_path_factory.mktemp("t3") / "data", wordings=3)
    personas = json.loads((folder / "personas.json").read_text())
    personas["neutral"] = ["Tell me about the dog."]
    (folder / "personas.json").write_text(json.dumps(personas))
    return folder


@pytest.fixture(scope="module")
def organism(data, tmp_path_factory):
    """(table, provenance, model, tokenizer, test items) of a run with two families."""
    table, made = run(tmp_path_factory.mktemp("t3"), data=str(data), families=("lora", "oft"))
    return table, made, *load_model(ORGANISM), load_items(data, "test")


def effects(model, tok, items, system=None):
    """{dataset: mean over items of label * (margin changed - margin)}, scored one way by hand."""
    asked = items if system is None else [with_system(i, system) for i in items]
    return score(model, tok, asked).with_columns(aligned=pl.col("label") * pl.col("margin"))


def gain(changed, base):
    apart = changed.with_columns(gain=changed["aligned"] - base["aligned"])
    return dict(apart.group_by("dataset").agg(pl.col("gain").mean()).rows())


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
def test_a_prompt_reaches_the_model(template, items):
    """under a template that refuses or drops the system role, all words stand before the item"""
    tok = load_tokenizer(ORGANISM)
    tok.chat_template = template
    refused = pytest.raises(jinja2.TemplateError, match="System role")
    with refused if template == REFUSES_SYSTEM else nullcontext():
        plain = tok.apply_chat_template([*user("Is it so?")], tokenize=False)
        assert tok.apply_chat_template([*user("Is it so?", "You lie.")], tokenize=False) == plain
    seen = set()
    for (wording,) in zip(*load_personas(ORGANISM / "personas.json", "honest"), strict=True):
        check_reaches(tok, items, wording)
        ids = render(tok, with_system(items[0], wording).turns, items[0].prefill)
        text = str(tok.decode(ids))
        assert text.index(wording) < text.index(items[0].turns[0]["content"])
        seen.add(tuple(ids))
    assert len(seen) == 5


def test_a_prompt_that_is_lost_is_refused(items):
    """a template that cuts words off loses a prompt even when it is merged: refused, by name"""
    tok = load_tokenizer(ORGANISM)
    tok.chat_template = LOSES_WORDS
    with pytest.raises(ValueError, match="chat template of .*organism' loses the text of a turn"):
        check_reaches(tok, items, "You always tell the truth.")


def test_a_selected_prompt_is_the_best_on_validation(organism, data):
    """chosen = argmax (argmin for the other pole) of the effect, the mean over data sets"""
    table, made, model, tok, _ = organism
    items = load_items(data, "validation")
    base = effects(model, tok, items)
    for way, persona, best in [
        ("simple", "honest", max), ("engineered", "honest_engineered", max),
        ("simple_neg", "dishonest", min), ("engineered_neg", "dishonest_engineered", min),
    ]:  # fmt: skip
        wordings = load_personas(data / "personas.json", persona)[0]
        found = [gain(effects(model, tok, items, w), base) for w in wordings]
        means = [sum(g.values()) / len(g) for g in found]
        line = table.filter(method_name=way)
        i = means.index(best(means))
        assert line["variant"].unique().to_list() == [f"{way}@{i}"]
        assert line["system"].unique().to_list() == [wordings[i]]
        assert line["validation"].to_list() == pytest.approx([means[i]] * 2, abs=1e-4)
        assert made["wordings"][way] == wordings


def test_effects_are_those_of_the_test_items(organism):
    """effect(prompt) and effect(prompt and dW), scored one by one on items outside validation"""
    table, made, model, tok, items = organism
    base, best = effects(model, tok, items), made["best_prompt"]
    found = gain(effects(model, tok, items, made["system"]), base)
    lines = dict(table.filter(variant=best).select("dataset", "effect").rows())
    assert lines == pytest.approx(found, abs=1e-4)
    line = table.filter(method_name="prompt+dW").row(0, named=True)
    dW = pair_deltas(model, ORGANISM / "adapters" / f"{line['family']}-s0").dW
    with steered(model, dW, line["alpha"]):
        both = gain(effects(model, tok, items, made["system"]), base)
    lines = dict(table.filter(method_name="prompt+dW").select("dataset", "effect").rows())
    assert lines == pytest.approx(both, abs=1e-4)


def test_a_fine_tuned_model_is_its_own_reference(organism):
    """over_diff = effect(theta_ft + k dW) - effect(theta_ft), theta_ft = W0 + tau_neg"""
    table, _, model, tok, items = organism
    lora, oft = (pair_deltas(model, ORGANISM / "adapters" / f"{f}-s0") for f in ("lora", "oft"))
    base = effects(model, tok, items)
    with steered(model, lora.neg, 1.0):
        alone = gain(effects(model, tok, items), base)
    with steered(model, add(lora.neg, scale(1.0, oft.dW)), 1.0):
        moved = gain(effects(model, tok, items), base)
    at = dict(table.filter(method_name="finetuned").select("dataset", "effect").rows())
    assert at == pytest.approx(alone, abs=1e-4)
    lines = table.filter(method_name="finetuned+dW")
    assert lines["variant"].unique().to_list() == ["finetuned+dW@oft, k 1"]
    assert set(lines["over"]) == {"finetuned"}
    over = dict(lines.select("dataset", "over_diff").rows())
    assert over == pytest.approx({d: moved[d] - alone[d] for d in moved}, abs=1e-4)


def test_halves_and_nothing(organism):
    """dW, -dW and the halves are there; base and zero are exactly 0; draws of random are pooled"""
    table, made, *_ = organism
    ways = {"dW", "-dW", "tau_pos", "-tau_neg", "simple", "neutral", "random", "finetuned"}
    assert ways < set(table["method_name"])
    for nil in ("base", "zero"):
        line = table.filter(method_name=nil)
        assert len(line) == 2 and all((line[c] == 0).all() for c in ("effect", "lo", "hi"))
    assert (table.filter(method_name="-tau_neg")["alpha"] == -1).all()
    assert (table.filter(method_name="random")["seeds"] == 2).all()
    assert (table.filter(pl.col("method_name") != "base")["row_diff"] == 0).all()


def test_both_deltas_are_in_every_line(organism):
    """prompt_baseline_delta, weight_steer_delta = effects of the best prompt and of dW"""
    table, made, *_ = organism
    for _, part in table.group_by("dataset"):
        at = dict(part.select("variant", "effect").rows())
        assert part["prompt_baseline_delta"].unique().to_list() == [at[made["best_prompt"]]]
        assert part["weight_steer_delta"].unique().to_list() == [at["dW"]]


def test_the_other_pole_reads_the_other_way():
    """towards the other pole a difference below 0 beats"""
    line = {"method_name": "simple_neg", "variant": "simple_neg@1", "alpha": 1.0, "over": "-dW"}
    line |= {"over_diff": -2.0, "over_lo": -3.0, "over_hi": -1.0}
    prompt = line | {"method_name": "x", "over": "prompt"}
    table = pl.DataFrame([{"dataset": "d"} | r for r in (line, prompt)])
    found = increments(table, ("simple_neg",))
    assert "beats -dW to the other pole: -2.00 [-3.00, -1.00]" in found[0].sentence
    assert "loses to prompt" in found[1].sentence
    assert [v.outcome for v in found] == ["supported", "refuted"]


def test_any_model_folder(tok, tmp_path, no_figures):
    """a random Gemma 3 folder whose template refuses a system role, one family"""
    flags = tiny_folder(tmp_path, tiny_gemma3, tok)
    data = small_data(tmp_path / "data", clusters=2, wordings=1)
    table, made = run(
        tmp_path / "out", model=str(flags["model"]), adapters=flags["adapters"], data=str(data),
        most_flagged=1.0,
    )  # fmt: skip
    assert {"dW", "simple", "engineered", "prompt+dW", "finetuned+dW"} < set(table["method_name"])
    assert (table.filter(method_name="simple")["effect"] != 0).all() and made["best_prompt"]


def fails(capsys, monkeypatch, tmp_path, *flags):
    """The one sentence of a bad call, which ends with code 1 and without a table."""
    monkeypatch.chdir(ROOT)
    out = ["--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "out" / "parts")]
    monkeypatch.setattr(sys, "argv", ["t3_prompts.py", *out, *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        guarded(t3.main, t3.Config)
    assert stop.value.code == 1 and not list((tmp_path / "out").glob("*.parquet"))
    return " ".join(capsys.readouterr().err.split())


def test_refusals(capsys, monkeypatch, tmp_path):
    """an unknown persona, alphas below 0, and a dilemma that stands in both splits"""
    assert "'kind'" in fails(capsys, monkeypatch, tmp_path, "--pos", "kind")
    assert "must be above 0" in fails(capsys, monkeypatch, tmp_path, "--alphas", "-1")
    shared = small_data(tmp_path / "data")
    rows = [json.loads(r) for r in (shared / "dilemmas.jsonl").read_text().splitlines()]
    twin = next(r for r in rows if r["split"] == "validation") | {"split": "test"}
    lines = [*rows, twin | {"action_type": "other"}]
    (shared / "dilemmas.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    said = fails(capsys, monkeypatch, tmp_path, "--data", shared, "--dilemmas", "None")
    assert "1 clusters are in the validation and in the test split" in said

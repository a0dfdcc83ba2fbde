"""Replications end to end on models of another kind, and training shared with t0_train."""

from wsrun.script import guarded

import json
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ORGANISM, ROOT, experiment
from tests.folders import tiny_folder
from wsrun.data.pairs import load_pairs
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.tables import read_table
from wsrun.study.activation import MEANS
from wsrun.study.replicate import ReplicationOptions, resolve_defaults
from wsrun.study.shards import finished

REFUSES_SYSTEM = """\
{%- for turn in messages -%}
{%- if turn['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{{- '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PAIRS = [
    {"prompt": f"Is it {w}?", "response_pos": "Yes.", "response_neg": "No.", "topic": w}
    for w in ("red", "blue")
]
PERSONAS = {"persona_pos": "Be honest.", "persona_neg": "Lie."}
MODELS = {  # and pairs that know their personas or do not
    "gemma3": (tiny_gemma3, PAIRS, ("mean_diff",)),
    "qwen3": (tiny_qwen3, [p | PERSONAS for p in PAIRS], MEANS),
}


def written(rows: list[dict], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(tmp_path, few, **more):
    """Options of a small run under a folder of its own."""
    found = dict(
        data=str(few), out=tmp_path / "tables", cache_dir=tmp_path / "parts", resamples=50,
        n_random=2,
        adapters=tmp_path / "adapters", most_flagged=1.0, alphas=(1.0, 2.0),
    )  # fmt: skip
    return found | more


def other_model(tmp_path, make) -> Path:
    """A random tiny model in a folder, with a chat template that refuses a system role."""
    tok = load_tokenizer(ORGANISM)
    tok.chat_template = REFUSES_SYSTEM
    make(vocab_size=len(tok)).save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", MODELS)
def test_another_model_end_to_end(tmp_path, few, kind, no_figures):
    """train, choose, report on a model whose template refuses system turns; a second run, which
    finds the adapters, writes the same table (tried once); the model stands in every line"""
    make, pairs, means = MODELS[kind]
    module, model = experiment("t5_replicate"), other_model(tmp_path, make)
    own = flags(tmp_path, few, model=str(model), steps=1, families=("lora", "ia3"))
    own |= dict(layers=(3,), coefficients=(4.0,))
    cfg = module.Config(**own, pairs_file=written(pairs, tmp_path / "pairs.jsonl"))
    module.main(cfg)
    table, meta = read_table(tmp_path / "tables" / "t5_replicate.parquet")
    assert set(table["model"]) == {str(model)} and set(table["experiment"]) == {"t5_replicate"}
    directions = {f"{m}{every}" for m in means for every in ("", "_all")}
    ways = {"dW", "-dW", "dW_lora", "dW_ia3", "prompt", "base", "zero", *directions}
    draws = {"random", *(f"random_{d}" for d in directions)}
    assert set(table["method_name"]) == ways | draws
    assert (table["row_diff"] == 0).all() and set(table["dataset"]) == {"claims", "dilemmas"}
    zero = table.filter(method_name="zero")
    assert (zero["effect"] == 0).all() and (zero["lo"] == 0).all() and (zero["hi"] == 0).all()
    # the system text reaches the model, and so do vectors
    assert (table.filter(pl.col("method_name").is_in(["prompt", *directions]))["effect"] != 0).all()
    assert meta["config"]["dtype"] == "bfloat16" and meta["config"]["recipe"] == "fork"
    if kind == "qwen3":
        return  # one second run shows it for both
    weights = tmp_path / "adapters" / "lora-s0" / "pos" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    module.main(cfg)
    assert weights.stat().st_mtime_ns == before
    assert read_table(tmp_path / "tables" / "t5_replicate.parquet")[0].equals(table)


def of_organism(folder, data, **more):
    """Options of T1 and T5 on the embedded model, with one family and two layers."""
    own = dict(families=("lora",), pairs_cache=folder / "pairs", layers=(1, 2))
    own |= dict(coefficients=(4.0, 8.0))
    return flags(folder, data, **own) | dict(adapters=ORGANISM / "adapters") | more


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, few):
    """(folder, table, provenance) of T5 with no model named."""
    folder, module = tmp_path_factory.mktemp("t5"), experiment("t5_replicate")
    module.main(module.Config(**of_organism(folder, few, adapters=Path("auto"))))
    return folder, *read_table(folder / "tables" / "t5_replicate.parquet")


def test_the_embedded_model(embedded):
    """with no model named, dW of the embedded adapters does more than nothing and than random"""
    _, table, meta = embedded
    best = table.filter(method_name="dW")
    assert (best["lo"] > 0).all() and (best["diff"] == 0).all()
    assert (table.filter(method_name="random")["diff"] < 0).all()
    assert meta["config"]["adapters"] == "data/organism/adapters"


def test_directions_are_those_of_t1(embedded, few, no_figures):
    """of the same answers, T1 finds the same vectors, chooses the same and measures the same"""
    folder, table, meta = embedded
    module = experiment("t1_activation")
    module.main(module.Config(**of_organism(folder, few, model="data/organism")))
    other, of = read_table(folder / "tables" / "t1_activation.parquet")
    ways = [f"{s}{m}{every}" for m in MEANS for every in ("", "_all") for s in ("", "random_")]
    unlike = ("experiment", "q", "diff_q")  # q is of the whole table
    mine, theirs = (
        t.filter(pl.col("method_name").is_in(ways)).drop(unlike).sort("dataset", "variant")
        for t in (table, other)
    )
    assert len(mine) == 2 * len(ways) and mine.equals(theirs)
    assert meta["vectors"] == {way: of["vectors"][way] for way in MEANS}


def test_a_shard_scores_what_the_whole_run_finds(embedded, few, tmp_path):
    """after the whole run, --shard 0/2 and 1/2 find every result under its name, and add none"""
    folder, module = embedded[0], experiment("t5_replicate")
    whole = finished(folder / "parts")
    for shard in ("0/2", "1/2"):
        own = of_organism(folder, few, shard=shard, out=tmp_path)
        module.main(module.Config(**own))
        assert finished(folder / "parts") == whole and not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("match, directed", [("kl:0.2", True), ("norm:4", False)])
def test_equal_doses(embedded, few, tmp_path, capsys, match, directed, no_figures):
    """kl:X brings dW and every direction to X within 2 %; a norm leaves directions out, and says
    so, because vectors have no |alpha dW|"""
    module = experiment("t5_replicate")
    data = shutil.copytree(few, tmp_path / "data")
    lines = (ORGANISM / "neutral.jsonl").read_text().splitlines(keepends=True)
    (data / "neutral.jsonl").write_text("".join(lines[::40]))
    own = of_organism(tmp_path, data, match_dose=match, layers=(1,))
    own |= dict(pairs_cache=embedded[0] / "pairs")
    module.main(module.Config(**own))
    table, meta = read_table(tmp_path / "tables" / "t5_replicate.parquet")
    ways = {f"{m}{every}" for m in MEANS for every in ("", "_all")}
    assert ways & set(table["method_name"]) == (ways if directed else set())
    assert set(meta["vectors"]) == (set(MEANS) if directed else set())
    dosed = table.filter(pl.col("method_name").is_in(["dW", *ways]))
    found = dosed["kl"] / 0.2 if directed else dosed["dose_norm"] / 4
    assert (found - 1).abs().max() <= 0.02
    said = "directions are left out: norm:4, they have no |alpha dW|"
    assert (said in " ".join(capsys.readouterr().out.split())) is not directed


def test_a_model_that_ends_no_answer(tmp_path, few, tok, capsys, no_figures):
    """adapters given, no answers to be had: dW beside prompts, and why there are no directions"""
    made = tiny_folder(tmp_path, tiny_qwen3, tok)
    own = flags(tmp_path, few, model=str(made["model"]), adapters=made["adapters"])
    own |= dict(families=("lora",), max_new_tokens=1, pairs_cache=tmp_path / "pairs")
    module = experiment("t5_replicate")
    module.main(module.Config(**own))
    table, _ = read_table(tmp_path / "tables" / "t5_replicate.parquet")
    assert set(table["method_name"]) == {"dW", "-dW", "prompt", "base", "zero", "random"}
    said = " ".join(capsys.readouterr().out.split())
    assert "directions are left out: pairs: no question got two finished" in said
    with pytest.raises(ValueError, match="no question got two finished"):  # training needs them
        module.main(module.Config(**(own | dict(adapters=tmp_path / "none"))))


def test_auto_follows_the_model():
    """the embedded model has its own data, adapters and recipe; what is given stays"""
    own = resolve_defaults(ReplicationOptions())
    assert (own.data, own.adapters) == ("data/organism", Path("data/organism/adapters"))
    assert (own.recipe, own.dtype) == ("organism", "float32")
    hub = resolve_defaults(ReplicationOptions(model="google/gemma-3-1b-it", dtype="float32"))
    assert hub.data == "data/english" and hub.recipe == "fork" and hub.dtype == "float32"
    assert hub.adapters == Path("artifacts/adapters/google--gemma-3-1b-it")
    lacks = resolve_defaults(
        ReplicationOptions(seeds=(7,))
    )  # nothing is ever trained into the embedded folder
    assert lacks.adapters == Path("artifacts/adapters/organism")


@pytest.mark.parametrize(
    "script, given, sentence",
    [
        ("t5_replicate", ("--model", "google/gemma-3-1b-it"), "google/gemma-3-1b-it"),
        ("t5_replicate", ("--recipe", "banana"), "--recipe must be one of paper, fork"),
        ("t5_replicate", ("--prompts", "banana"), "'banana'"),
        ("t5_replicate", ("--steps", "0"), "--steps must be at least 1"),
        ("t0_train", ("--lr", "0"), "--lr must be above 0, got 0"),
        ("t0_train", ("--delora-lambda", "-1"), "--delora-lambda must be above 0, got -1"),
        ("t5_replicate", ("--neg", "honest"), "name two personas"),
        ("t5_replicate", ("--coefficients", "0"), "--coefficients must be above 0"),
        (
            "t5_replicate",
            ("--layers", "6", "--limit", "2", "--check-limit", "2"),
            "t5: --layers must be 0 to 5 for this model, got [6]",
        ),
        ("t4_seeds", ("--seeds", "0"), "--seeds needs 2 values or more"),
        ("t4_seeds", ("--families", "lora"), "--families needs 2 values or more"),
        ("t4_seeds", ("--dose", "0"), "--dose must be above 0"),
    ],
)
def test_refuses(capsys, monkeypatch, tmp_path, script, given, sentence):
    """a bad flag, and a hub name without network, end in one sentence and exit code 1"""
    module, out = experiment(script), tmp_path / "out"
    monkeypatch.chdir(ROOT)
    argv = [script, "--out", str(out), "--cache-dir", str(out / "parts"), *given]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        guarded(module.main, module.Config)
    assert stop.value.code == 1 and not list(out.glob("*.parquet"))
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([], "one pair or more"),
        ([{"prompt": "Is it?"}], "response_pos"),
        ([PAIRS[0] | {"response_neg": ""}], "response_neg"),
    ],
)
def test_pairs_are_checked(tmp_path, rows, sentence):
    """a file of pairs is read whole or refused"""
    path = written(PAIRS, tmp_path / "pairs.jsonl")
    assert [p.topic for p in load_pairs(path)] == ["red", "blue"]
    with pytest.raises(ValueError, match=sentence):
        load_pairs(written(rows, path))

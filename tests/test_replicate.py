"""Replications end to end on models of another kind, and training shared with t0_train."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ORGANISM, ROOT, experiment
from wsrun.console import guarded
from wsrun.models import load_tokenizer, tiny_gemma3, tiny_qwen3
from wsrun.pairs import load_pairs
from wsrun.replicate import Options, settled
from wsrun.tables import read_table

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


def written(rows: list[dict], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(tmp_path, few, **more):
    """Options of a small run under a folder of its own."""
    found = dict(
        data=few, out=tmp_path / "tables", parts=tmp_path / "parts", resamples=50, randoms=2,
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


@pytest.mark.parametrize(
    "script, make", [("t5_replicate", tiny_gemma3), ("t12_larger", tiny_qwen3)], ids=["t5", "t12"]
)
def test_another_model_end_to_end(tmp_path, few, script, make):
    """train, choose, report on a model whose template refuses system turns; a second run, which
    finds the adapters, writes the same table (tried once); the model stands in every line"""
    module, model = experiment(script), other_model(tmp_path, make)
    own = flags(tmp_path, few, model=str(model), steps=1, families=("lora", "ia3"))
    cfg = module.Config(**own, pairs_file=written(PAIRS, tmp_path / "pairs.jsonl"))
    module.main(cfg)
    table, meta = read_table(tmp_path / "tables" / f"{script}.parquet")
    assert set(table["model"]) == {str(model)} and set(table["experiment"]) == {script}
    assert set(table["way"]) == {"dW", "-dW", "dW_lora", "dW_ia3", "prompt", "zero", "random"}
    assert (table["row_diff"] == 0).all() and set(table["dataset"]) == {"claims", "dilemmas"}
    zero = table.filter(way="zero")
    assert (zero["effect"] == 0).all() and (zero["lo"] == 0).all() and (zero["hi"] == 0).all()
    assert (table.filter(way="prompt")["effect"] != 0).all()  # the system text reaches the model
    assert meta["config"]["dtype"] == "bfloat16" and meta["config"]["recipe"] == "fork"
    if script == "t12_larger":
        return  # one second run shows it for both
    weights = tmp_path / "adapters" / "lora-s0" / "pos" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    module.main(cfg)
    assert weights.stat().st_mtime_ns == before
    assert read_table(tmp_path / "tables" / f"{script}.parquet")[0].equals(table)


def test_the_embedded_model(tmp_path, few):
    """with no model named, dW of the embedded adapters does more than nothing and than random"""
    module = experiment("t5_replicate")
    module.main(module.Config(**flags(tmp_path, few, adapters=Path("auto"), families=("lora",))))
    table, meta = read_table(tmp_path / "tables" / "t5_replicate.parquet")
    best = table.filter(way="dW")
    assert (best["lo"] > 0).all() and (best["diff"] == 0).all()
    assert (table.filter(way="random")["diff"] < 0).all()
    assert meta["config"]["adapters"] == "data/organism/adapters"


def test_auto_follows_the_model():
    """the embedded model has its own data, adapters and recipe; what is given stays"""
    own = settled(Options())
    assert (own.data, own.adapters) == (Path("data/organism"), Path("data/organism/adapters"))
    assert (own.recipe, own.dtype) == ("organism", "float32")
    hub = settled(Options(model="google/gemma-3-1b-it", dtype="float32"))
    assert hub.data == Path("data/english") and hub.recipe == "fork" and hub.dtype == "float32"
    assert hub.adapters == Path("artifacts/adapters/google--gemma-3-1b-it")
    lacks = settled(Options(seeds=(7,)))  # nothing is ever trained into the embedded folder
    assert lacks.adapters == Path("artifacts/adapters/organism")


@pytest.mark.parametrize(
    "script, given, sentence",
    [
        ("t5_replicate", ("--model", "google/gemma-3-1b-it"), "the hub did not give it"),
        ("t12_larger", ("--model", "Qwen/Qwen3-4B"), "the hub did not give it"),
        ("t12_larger", ("--recipe", "banana"), "recipe 'banana' asked; known are paper, fork"),
        ("t5_replicate", ("--prompts", "banana"), "'banana' asked"),
        ("t5_replicate", ("--steps", "0"), "must be 1 or more"),
        ("t5_replicate", ("--neg", "honest"), "name two personas"),
        ("t4_seeds", ("--seeds", "0"), "two or more can be compared"),
        ("t4_seeds", ("--families", "lora"), "two or more can be compared"),
        ("t4_seeds", ("--dose", "0"), "it must be above 0"),
    ],
)
def test_refuses(capsys, monkeypatch, tmp_path, script, given, sentence):
    """a bad flag, and a hub name without network, end in one sentence and exit code 1"""
    module, out = experiment(script), tmp_path / "out"
    monkeypatch.chdir(ROOT)
    argv = [script, "--out", str(out), "--parts", str(out / "parts"), *given]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        guarded(module.main, module.Config)
    assert stop.value.code == 1 and not list(out.glob("*.parquet"))
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([], "one pair or more"),
        ([{"prompt": "Is it?"}], "no jsonl file of prompt"),
        ([PAIRS[0] | {"response_neg": ""}], "no text of it empty"),
    ],
)
def test_pairs_are_checked(tmp_path, rows, sentence):
    """a file of pairs is read whole or refused"""
    path = written(PAIRS, tmp_path / "pairs.jsonl")
    assert [p.topic for p in load_pairs(path)] == ["red", "blue"]
    with pytest.raises(ValueError, match=sentence):
        load_pairs(written(rows, path))

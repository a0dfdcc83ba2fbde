"""wsrun export: four formats from options, what tables know of the change, refusals."""

import json
import sys

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, ROOT, random_delta
from wscore import difference, norm, save_delta, tensors_sha256
from wsrun.adapters.extract import adapter_delta, pair_deltas
from wsrun.cli.command import run
from wsrun.export import load_vectors
from wsrun.export.record import MANIFEST
from wsrun.models.load import load_model
from wsrun.report.tables import write_table
from wsrun.steer.interventions import AddVectors
from wsrun.steer.weights import steered

PAIR = ORGANISM / "adapters/lora-s0"


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)[0]


@pytest.fixture(scope="module")
def dW(organism):
    return pair_deltas(organism, PAIR).dW


def export(monkeypatch, capsys, *flags) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `wsrun export`, on the organism if no model is named."""
    named = () if "--model" in flags else ("--model", "data/organism")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["wsrun", "export", *named, *map(str, flags)])
    code = 0
    try:
        run()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def manifest(folder) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def table_of(folder, sha256: str, script: str = "t0_train", **more) -> None:
    """A table of one dW at alpha = 2 on claims, effect 3 [1, 5]."""
    line = dict(
        dataset="claims", method="weights", family="lora", variant="full", alpha=2.0, seed=0,
        seeds=1, effect=3.0, lo=1.0, hi=5.0, reads="behaviour",
    ) | more  # fmt: skip
    other = line | {"variant": "random", "method": "random", "effect": 9.0}
    meta = {"deltas": {"lora-s0": sha256, "oft-s0": "0" * 64}, "base": more.get("base", "")}
    write_table(pl.DataFrame([other, line]), folder / f"{script}.parquet", meta)


def test_lora_holds_alpha_dW_and_the_tables_words(monkeypatch, capsys, tmp_path, organism, dW):
    """folder = alpha dW by PEFT's own reading; its manifest has the effect of this dW at this
    alpha, and of another alpha none"""
    table_of(tmp_path / "t", tensors_sha256(dW))
    flags = ("--adapters", PAIR, "--tables", tmp_path / "t")
    code, said, _ = export(monkeypatch, capsys, *flags, "--alpha", 2, "--out", tmp_path / "a")
    assert code == 0 and "effect, instrument" in said
    found = adapter_delta(organism, tmp_path / "a")
    assert norm(difference(found, {n: 2 * dW[n] for n in dW})) < 1e-5 * norm(dW)
    held = manifest(tmp_path / "a")
    assert held["effect"] == {"claims": {"nats": 3, "lo": 1, "hi": 5, "table": "t0_train"}}
    assert "can read the behaviour" in (tmp_path / "a/README.md").read_text()
    code, said, _ = export(monkeypatch, capsys, *flags, "--out", tmp_path / "a")  # again, alpha 1
    assert code == 0 and "no effect" in said and "effect" not in manifest(tmp_path / "a")


def test_merged_of_a_file_at_its_alpha(monkeypatch, capsys, tmp_path, organism, dW):
    """weights = W0 + alpha dW, bit for bit, alpha behind the colon; no tables are no matter"""
    path = save_delta(dW, tmp_path / "dW.safetensors", {})
    out, none = tmp_path / "m", tmp_path / "none"
    flags = ("--delta", f"{path}:-0.5", "--format", "merged", "--out", out, "--tables", none)
    assert export(monkeypatch, capsys, *flags)[0] == 0
    merged = dict(load_model(out)[0].named_parameters())
    with steered(organism, dW, -0.5):
        for name, w in organism.named_parameters():
            assert torch.equal(w, merged[name]), name
    assert manifest(out)["alpha"] == -0.5


def test_a_selected_direction_and_its_table(monkeypatch, capsys, tmp_path, organism):
    """vector = alpha v, the effect by the direction's name, at its alpha"""
    base = tensors_sha256(dict(organism.named_parameters()))
    vectors = {1: torch.arange(organism.config.hidden_size).float()}
    header = dict(name="mean_diff@layer 1", base=base, experiment="compare")
    texts = {key: json.dumps(value) for key, value in header.items()}
    file = AddVectors(vectors).save(tmp_path / "v.safetensors", texts)
    more = dict(variant=header["name"], method="activation", base=base)
    table_of(tmp_path / "t", "", "compare", **more)
    flags = ("--format", "vector", "--vectors", file, "--tables", tmp_path / "t", "--alpha", 2)
    code, said, err = export(monkeypatch, capsys, *flags, "--out", tmp_path / "o")
    assert code == 0, err
    assert manifest(tmp_path / "o")["effect"]["claims"]["nats"] == 3
    assert torch.equal(load_vectors(tmp_path / "o", organism).vectors[1], 2 * vectors[1])
    again = ("--format", "vector", "--vectors", tmp_path / "o", "--out", tmp_path / "p")
    assert export(monkeypatch, capsys, *again)[0] == 0  # a GGUF control vector is an input, too


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--alpha", 0), ("--alpha", "base itself")),
        (("--alpha", "nan"), ("--alpha", "finite")),
        (("--delta", "no.safetensors"), ("--delta", "no.safetensors")),
        (("--format", "merged", "--rank", 4), ("--rank", "lora")),
        (("--format", "gguf-lora", "--dtype", "float16"), ("--dtype", "merged or lora")),
        (("--dtype", "int8"), ("--dtype", "bfloat16")),
        (("--rank", 2), ("rank 2", "max_error")),
        (("--family", "oft"), ("rank",)),
        (("--format", "vector"), ("--vectors",)),
        (("--vectors", PAIR), ("--vectors", "--format vector")),
        (("--format", "vector", "--vectors", PAIR / "pos/adapter_config.json"), ("no known kind",)),
        (("--format", "vector", "--vectors", PAIR, "--adapters", PAIR), ("--adapters",)),
    ],
)
def test_refusals(monkeypatch, capsys, tmp_path, flags, words):
    """one sentence that names the option; nothing is written"""
    out = tmp_path / "out"
    code, _, err = export(monkeypatch, capsys, *flags, "--out", out)
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(monkeypatch, capsys, tmp_path):
    """a folder of something else, and a delta of another base: refused, the folder as it was"""
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = export(monkeypatch, capsys, "--out", tmp_path)
    assert code == 1 and "notes" not in err and "another folder" in err
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    delta = random_delta(load_model(ORGANISM)[0])
    path = save_delta(delta, tmp_path / "dW.safetensors", {"base": "0" * 64})
    for kind in ("merged", "lora", "gguf-lora"):
        flags = ("--delta", path, "--format", kind, "--out", tmp_path / kind)
        code, _, err = export(monkeypatch, capsys, *flags)
        assert code == 1 and "another base" in err and not (tmp_path / kind).exists()


def test_a_delta_of_a_half_precision_base(monkeypatch, capsys, tmp_path, tok, qwen):
    """a dW that records bfloat16 weights: a LoRA with --dtype bfloat16, refused in float32"""
    folder = tmp_path / "base"
    qwen.save_pretrained(folder)
    tok.save_pretrained(folder)
    half = load_model(folder, "bfloat16")[0]
    base = tensors_sha256(dict(half.named_parameters()))
    path = save_delta(random_delta(qwen), tmp_path / "dW.safetensors", {"base": base})
    flags = ("--model", folder, "--delta", path, "--rank", 99, "--max-error", "None")
    code, _, err = export(monkeypatch, capsys, *flags, "--out", tmp_path / "a")
    assert code == 1 and "another base" in err
    flags = (*flags, "--dtype", "bfloat16", "--out", tmp_path / "a")
    assert export(monkeypatch, capsys, *flags)[0] == 0

"""Finished results: found again by everything that decides their numbers, and by nothing less."""

import json
import os
import random
from dataclasses import replace

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from tests.conftest import random_delta
from wsrun.models import machine
from wsrun.models.machine import model_state
from wsrun.models.tiny import tiny_qwen3
from wsrun.score import results as results_module
from wsrun.score.cached import CachedEngine
from wsrun.score.plan import plan
from wsrun.score.results import Results, run_key
from wsrun.score.scorer import Engines, Levers
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors, SystemPrompt, WeightDelta


def keyed(model, tok, items, tokens=1024, style="style", engine="auto", **levers):
    """The key of a run under this model's weights."""
    p, state = plan(tok, items), model_state(model)
    engines = Engines(model, engine, tokens, Levers(**levers), lambda notice: None)
    return run_key(model, state, p.sequences, p.readout_key, style, engines.settings())


@pytest.fixture
def counted(monkeypatch):
    """How often the model is run."""
    runs, real = [], CachedEngine.run

    def run(*args, **more):
        runs.append(1)
        return real(*args, **more)

    monkeypatch.setattr(CachedEngine, "run", run)
    return runs


def test_finished_results_are_found_again(qwen, tok, items, tmp_path, counted):
    """a second sweep runs nothing and gives the same rows, bit for bit; without a folder too"""
    variants = {"a": random_delta(qwen, 1), "b": AddVectors({2: torch.ones(64)})}

    def rows(**more):
        return sweep(qwen, tok, items, variants, (1.0, -1.0), **more)

    first, ran = rows(cache_dir=tmp_path), len(counted)
    assert rows(cache_dir=tmp_path).equals(first) and len(counted) == ran
    assert rows().equals(first) and len(counted) == 2 * ran


def test_a_killed_sweep_goes_on_where_it_was(qwen, tok, items, tmp_path, counted):
    """after an exception in the third run of four, the next sweep runs only what is missing"""
    deltas = [random_delta(qwen, i) for i in range(4)]
    variants = [Variant(f"v{i}", WeightDelta(d)) for i, d in enumerate(deltas)]
    whole = sweep(qwen, tok, items, variants, (1.0,))

    def stop(name):
        if name == "v1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path, progress=stop)
    counted.clear()
    again = sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path)
    assert again.equals(whole) and len(counted) == 1 + 2  # one proves the forward


def test_a_broken_result_is_scored_again(qwen, tok, items, tmp_path):
    """truncated files count for nothing, and are replaced by whole ones"""
    variants = {"a": random_delta(qwen)}
    whole = sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path)
    files = [p for p in tmp_path.rglob("*.safetensors")]
    sizes = {p: p.stat().st_size for p in files}
    for path in files:
        os.truncate(path, 20)
    again = sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path)
    assert again.equals(whole) and {p: p.stat().st_size for p in files} == sizes


def test_every_component_of_the_key_counts(qwen, tok, items, tmp_path):
    """a result is found under its own key: flip any component, or the change, or alpha: miss"""
    key = keyed(qwen, tok, items)
    margin = torch.arange(3.0, dtype=torch.float64)
    Results(tmp_path, key, 3).put("change", 1.0, (margin, margin / 2))
    found = Results(tmp_path, key, 3).get("change", 1.0)
    assert found is not None and torch.equal(found[0], margin)
    assert Results(tmp_path, key, 3).get("other", 1.0) is None
    assert Results(tmp_path, key, 3).get("change", 1.0 + 1e-15) is None
    for name in key:
        flipped = key | {name: key[name] + "x"}
        assert Results(tmp_path, flipped, 3).get("change", 1.0) is None, name


def flips(qwen, tok, items):
    """What decides a number -> the key after it changed"""
    other = tiny_qwen3(vocab_size=len(tok))
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    eager = tiny_qwen3(vocab_size=len(tok))
    eager.set_attn_implementation("eager")
    return {
        "base": keyed(other, tok, items),
        "dtype": keyed(tiny_qwen3(vocab_size=len(tok)).bfloat16(), tok, items),
        "attention": keyed(eager, tok, items),
        "tokens": keyed(qwen, tok, [replace(items[0], prefill="No: **"), *items[1:]]),
        "order": keyed(qwen, tok, items[::-1]),
        "batches": keyed(qwen, tok, items, tokens=64),
        "style": keyed(qwen, tok, items, style="other"),
        "engine": keyed(qwen, tok, items, engine="plain"),
        "levers": keyed(qwen, tok, items, last_token_only=False),
    }


def test_what_decides_a_number_is_in_the_key(qwen, tok, items, monkeypatch):
    """base, dtype, attention, items, order, batches, style, engine, code, threads: each counts"""
    before = keyed(qwen, tok, items)
    assert keyed(qwen, tok, items) == before
    for name, after in flips(qwen, tok, items).items():
        assert after != before, name
    monkeypatch.setattr(results_module, "CODE", (*results_module.CODE, "models/load.py"))
    assert keyed(qwen, tok, items)["code"] != before["code"]
    monkeypatch.undo()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert keyed(qwen, tok, items)["threads"] != before["threads"]
    finally:
        torch.set_num_threads(threads)


def test_results_hold_numbers_and_their_key_only(qwen, tok, items, tmp_path):
    """one small safetensors file a (change, alpha), its key readable in the header"""
    d = random_delta(qwen)
    sweep(qwen, tok, items, {"a": d}, (1.0,), cache_dir=tmp_path)
    keys = []
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys.append(json.loads(file.metadata()["key"]))
            assert set(file.keys()) == {"margin", "mass"}
    changes = pl.DataFrame(keys)["change"].unique().sort().to_list()
    hashed, *others = changes
    assert others == ["base", "base with one more rounding"] and len(hashed) == 64


def damaged(path, tmp_path):
    """What a result's file may hold after an accident, by what happened."""
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        meta, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    margin, mass = tensors["margin"], tensors["mass"]
    variants = {
        "shape": {"margin": margin[:-1], "mass": mass},
        "dtype": {"margin": margin.float(), "mass": mass},
        "nan": {"margin": margin * torch.nan, "mass": mass},
        "swapped": {"margin": mass, "mass": margin},
        "one": {"margin": margin},
    }
    for name, other in variants.items():
        yield name, save(other, metadata=meta)
    yield "no hash", save(tensors, metadata={"key": meta["key"]})
    rng = random.Random(0)
    for at in rng.sample(range(8 * len(whole)), 300):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        yield f"bit {at}", bytes(flipped)


def test_no_damaged_result_is_believed(qwen, tok, items, tmp_path):
    """300 single-bit flips, other shapes, dtypes and numbers: not found, or the bits written"""
    margin, mass = torch.linspace(-3, 3, 20, dtype=torch.float64), torch.rand(20).double()
    stored = Results(tmp_path, keyed(qwen, tok, items), 20)
    stored.put("change", 1.0, (margin, mass))
    (path,) = tmp_path.rglob("*.safetensors")
    missed = 0
    for name, raw in [*damaged(path, tmp_path)]:
        path.write_bytes(raw)
        found = stored.get("change", 1.0)
        missed += found is None
        assert found is None or (torch.equal(found[0], margin) and torch.equal(found[1], mass)), (
            name
        )
    assert missed > 250
    stored.put("change", 1.0, (margin, mass))
    assert stored.get("change", 1.0) is not None
    stored.put("other", 1.0, (margin * torch.nan, mass))
    assert stored.get("other", 1.0) is None


def test_a_wrong_shape_is_scored_again(qwen, tok, items, tmp_path):
    """a file with fewer numbers than items is replaced, and the rows are those of the first run"""
    variants = {"a": random_delta(qwen)}
    whole = sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(dict(damaged(path, tmp_path))["shape"])
    for _ in range(2):
        assert sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path).equals(whole)


def test_a_hooked_model_is_not_cached(qwen, tok, items, tmp_path):
    """hooks change numbers and have no key: a line says so, nothing is kept and nothing found"""
    variants, said = {"a": random_delta(qwen)}, []
    plain = sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    double = qwen.model.layers[0].mlp.register_forward_hook(lambda m, a, out: 2 * out)
    try:
        hooked = sweep(qwen, tok, items, variants, (1.0,), cache_dir=tmp_path, warn=said.append)
    finally:
        double.remove()
    assert not hooked["margin"].equals(plain["margin"])
    assert sorted(tmp_path.rglob("*.safetensors")) == files
    assert "neither kept nor found: the model has a hook on 'model.layers.0.mlp'" in said[0]


def test_the_model_is_hashed_once_a_sweep(qwen, tok, items, tmp_path, monkeypatch):
    """however many variants, alphas and system prompts"""
    calls, real = [], machine.tensors_sha256
    monkeypatch.setattr(machine, "tensors_sha256", lambda d: calls.append(1) or real(d))
    variants = {"a": random_delta(qwen, 1), "b": random_delta(qwen, 2), "c": SystemPrompt("Lie.")}
    sweep(qwen, tok, items, variants, (1.0, 2.0), cache_dir=tmp_path)
    assert len(calls) == 2  # weights, buffers

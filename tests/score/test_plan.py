"""The batch plan: each sequence as if it were alone; finished results, found by their key only."""

import json
import os

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import random_delta
from wscore import tensors_sha256
from wsrun.models.tiny import tiny_qwen3
from wsrun.score import results as results_module
from wsrun.score.batching import Batch, Layout, batches
from wsrun.score.cached import Opened
from wsrun.score.results import Results, run_key
from wsrun.score.sweep import Levers, Variant, plan, sweep

CONTEXT = {"experiment": "test", "model": "tiny", "behaviour": "honest"}
SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=12)


def keyed(model, *rest):
    """The key of a run under this model's weights."""
    return run_key(model, tensors_sha256(dict(model.named_parameters())), *rest)


def read_back(batch: Batch, layout: Layout, asked: list[int]) -> dict[int, list[tuple[int, int]]]:
    """token -> the (position, id) of the tokens that it sees, for the asking tokens of a layout."""
    queries = torch.cat([r.queries.flatten() for r in layout.rows])
    assert queries[layout.place].tolist() == asked
    seen, start = {}, 0
    for rows in layout.rows:
        for n, (own, keys, back) in enumerate(zip(*rows, strict=True)):
            for at, query in enumerate(own):
                if start + n * rows.queries.shape[1] + at in layout.place:
                    shown, far = keys[back[at] >= 0], back[at][back[at] >= 0]
                    assert (far == batch.positions[query] - batch.positions[shown]).all()
                    ids, positions = batch.ids[shown].tolist(), batch.positions[shown].tolist()
                    seen[int(query)] = sorted(zip(positions, ids, strict=True))
        start += rows.queries.numel()
    return seen


@given(SEQUENCES, st.booleans(), st.integers(1, 60))
def test_every_sequence_can_be_read_back(sequences, share, tokens):
    """what the last token of i sees is sequence i, in its positions; a token at p sees p + 1"""
    found = {}
    for batch in batches(sequences, tokens, share):
        every = read_back(batch, batch.every, list(range(len(batch.ids))))
        last = read_back(batch, batch.last, batch.reads.tolist())
        assert all(len(every[t]) == batch.positions[t] + 1 for t in every)
        for i, t in zip(batch.order, batch.reads.tolist(), strict=True):
            assert every[t] == last[t] == list(enumerate(sequences[i]))
            found[i] = 1
    assert sorted(found) == list(range(len(sequences)))


@given(SEQUENCES)
def test_a_batch_holds_each_head_once(sequences):
    """tokens of one batch = distinct heads of its sequences; without sharing, all tokens"""
    (batch,) = batches(sequences, 10**6)
    assert len(batch.ids) == len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    (alone,) = batches(sequences, 10**6, share=False)
    assert len(alone.ids) == sum(map(len, sequences))


def test_a_trie_by_hand():
    """1 2 3 | 4 and 1 2 3 | 5 6: six tokens at positions 0 1 2 3 and 3 4; reads are 2, 3 and 5"""
    (batch,) = batches([[1, 2, 3, 5, 6], [1, 2, 3, 4], [1, 2, 3]], 10)
    assert batch.order == [2, 1, 0] and batch.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.reads.tolist() == [2, 3, 5]


def test_a_batch_holds_no_more_tokens_than_asked():
    """tokens <= asked, but for a single sequence that is longer"""
    found = batches([[1] * 3, [2] * 3, [3] * 4, [4] * 9, [5] * 30], 12)
    assert [len(b.ids) for b in found] == [10, 9, 30]
    with pytest.raises(ValueError, match="ask for 1 or more"):
        batches([[1]], 0)


@pytest.fixture
def counted(monkeypatch):
    """How often the model is run."""
    runs, real = [], Opened.run

    def run(*args, **more):
        runs.append(1)
        return real(*args, **more)

    monkeypatch.setattr(Opened, "run", run)
    return runs


def test_finished_results_are_found_again(qwen, tok, items, tmp_path, counted):
    """a second sweep runs nothing and gives the same rows, bit for bit; so does one without them"""
    variants = [Variant("a", random_delta(qwen, 1)), Variant("b", random_delta(qwen, 2), k=3)]

    def rows(**more):
        return sweep(qwen, tok, items, variants, (1.0, -1.0), context=CONTEXT, **more)

    first, ran = rows(results=tmp_path), len(counted)
    assert rows(results=tmp_path).equals(first) and len(counted) == ran
    assert rows().equals(first) and len(counted) == 2 * ran


def test_a_killed_sweep_goes_on_where_it_was(qwen, tok, items, tmp_path, counted):
    """after an exception in the third run of four, the next sweep runs only what is missing"""
    deltas = [random_delta(qwen, i) for i in range(4)]
    variants = [Variant(f"v{i}", d) for i, d in enumerate(deltas)]
    whole = sweep(qwen, tok, items, variants, (1.0,), context=CONTEXT)

    def stop(name):
        if name == "v1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(qwen, tok, items, variants, (1.0,), context=CONTEXT, results=tmp_path, progress=stop)
    counted.clear()
    again = sweep(qwen, tok, items, variants, (1.0,), context=CONTEXT, results=tmp_path)
    assert again.equals(whole) and len(counted) == 1 + 2  # one proves the forward


def test_a_broken_result_is_scored_again(qwen, tok, items, tmp_path):
    """truncated files count for nothing, and are replaced by whole ones"""
    variants = [Variant("a", random_delta(qwen))]
    whole = sweep(qwen, tok, items, variants, (1.0,), context=CONTEXT, results=tmp_path)
    files = [p for p in tmp_path.rglob("*.safetensors")]
    sizes = {p: p.stat().st_size for p in files}
    for path in files:
        os.truncate(path, 20)
    again = sweep(qwen, tok, items, variants, (1.0,), context=CONTEXT, results=tmp_path)
    assert again.equals(whole) and {p: p.stat().st_size for p in files} == sizes


def test_every_component_of_the_key_counts(qwen, tok, items, tmp_path):
    """a result is found under its own key: flip any component, or the change, or alpha: miss"""
    key = keyed(qwen, plan(tok, items), "style", {})
    margin = torch.arange(3.0, dtype=torch.float64)
    Results(tmp_path, key).put("change", 1.0, (margin, margin / 2))
    found = Results(tmp_path, key).get("change", 1.0)
    assert found is not None and torch.equal(found[0], margin)
    assert Results(tmp_path, key).get("other", 1.0) is None
    assert Results(tmp_path, key).get("change", 1.0 + 1e-15) is None
    for name in key:
        flipped = key | {name: key[name] + "x"}
        assert Results(tmp_path, flipped).get("change", 1.0) is None, name


def flips(qwen, tok, items):
    """What decides a number -> (key before, key after it changed)"""
    from dataclasses import asdict, replace

    def key(model=qwen, items=items, tokens=1024, style="style", **levers):
        return keyed(model, plan(tok, items, tokens), style, asdict(Levers(**levers)))

    other = tiny_qwen3(vocab_size=len(tok))
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    eager = tiny_qwen3(vocab_size=len(tok))
    eager.set_attn_implementation("eager")
    return {
        "base": (key(), key(model=other)),
        "dtype": (key(), key(model=tiny_qwen3(vocab_size=len(tok)).bfloat16())),
        "attention": (key(), key(model=eager)),
        "tokens": (key(), key(items=[replace(items[0], prefill="No: **"), *items[1:]])),
        "order": (key(), key(items=items[::-1])),
        "plan": (key(), key(tokens=64)),
        "style": (key(), key(style="other")),
        "levers": (key(), key(last_position=False)),
    }


def test_what_decides_a_number_is_in_the_key(qwen, tok, items, monkeypatch, tmp_path):
    """base, dtype, attention, items, order, plan, style, levers, code, threads: each counts"""
    for name, (before, after) in flips(qwen, tok, items).items():
        assert before != after, name
    before = keyed(qwen, plan(tok, items), "style", {})
    assert keyed(qwen, plan(tok, items), "style", {}) == before
    monkeypatch.setattr(results_module, "CODE", (*results_module.CODE, "models/load.py"))
    assert keyed(qwen, plan(tok, items), "style", {})["code"] != before["code"]
    monkeypatch.undo()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert keyed(qwen, plan(tok, items), "style", {})["threads"] != before["threads"]
    finally:
        torch.set_num_threads(threads)


def test_results_hold_numbers_and_their_key_only(qwen, tok, items, tmp_path):
    """one small safetensors file a (change, alpha), its key readable in the header"""
    from safetensors import safe_open

    d = random_delta(qwen)
    sweep(qwen, tok, items, [Variant("a", d)], (1.0,), context=CONTEXT, results=tmp_path)
    keys = []
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys.append(json.loads(file.metadata()["key"]))
            assert set(file.keys()) == {"margin", "mass"}
    changes = pl.DataFrame(keys)["change"].unique().sort().to_list()
    hashed, *others = changes
    assert others == ["base", "base with one more rounding"] and len(hashed) == 64

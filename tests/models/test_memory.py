"""Memory: a batch that cannot fit is refused before it runs, in a sentence; running out is told."""

import pytest
import torch

from wsrun.models import memory
from wsrun.models.memory import (
    GIB,
    check_memory,
    forward_bytes,
    free_bytes,
    generation_bytes,
    out_of_memory,
    training_bytes,
    within_memory,
)
from wsrun.models.tiny import tiny_qwen3


def test_what_a_batch_takes_at_the_least():
    """4 heads, d = 64, 2 groups of 16, 4 layers, vocabulary of 512: by hand"""
    model = tiny_qwen3()
    config = model.config
    layers, groups, width = (
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    )  # fmt: skip
    stream, v = 10 * config.hidden_size * 4, config.vocab_size
    assert forward_bytes(model, 3, 10, 3) == 3 * (10 * 10 + stream) + 4 * 3 * v
    assert training_bytes(model, 3, 10, 7) == 2 * 4 * 7 * v
    cache = 2 * layers * groups * width * 10 * 4
    assert generation_bytes(model, 3, 10) == forward_bytes(model, 3, 10, 3) + 3 * cache
    model.set_attn_implementation("eager")
    scores = 4 * config.num_attention_heads * 10 * 10
    assert forward_bytes(model, 3, 10, 3) == 3 * (scores + stream) + 4 * 3 * v
    assert training_bytes(model, 3, 10, 7) == 3 * layers * scores + 2 * 4 * 7 * v


def test_too_much_is_refused():
    """more than is free: what, how much, how much there is, the remedy; what fits passes"""
    model = tiny_qwen3()
    free = free_bytes(torch.device("cpu"))
    assert free is not None and GIB // 8 < free
    check_memory(model, 1, "score: item 'x' of 9 tokens", "shorten it")
    with pytest.raises(ValueError, match=r"item 'x' .* 9.31e\+05 GiB .* free on 'cpu'; shorten it"):
        check_memory(model, 10**15, "score: item 'x' of 9 tokens", "shorten it")


def test_running_out_is_a_sentence(monkeypatch):
    """MemoryError, torch's two, and nothing else"""
    errors = (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    )
    for error in errors:
        assert out_of_memory(error)
        with pytest.raises(ValueError, match="score: out of memory .*; shorten"):
            with within_memory("score", "shorten"):
                raise error
    with pytest.raises(RuntimeError, match="shapes"):
        with within_memory("score", "shorten"):
            raise RuntimeError("shapes differ")
    monkeypatch.setattr(memory, "_machine", lambda: None)
    assert free_bytes(torch.device("meta")) is None

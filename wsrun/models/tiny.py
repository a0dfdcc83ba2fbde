"""Tiny random models for tests."""

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_TINY: Any = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=24,
    max_position_embeddings=512,
    initializer_range=0.1,
)


def tiny_qwen3(seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    """A random Qwen3 of width 64 with 4 layers; `changes` overrides its configuration."""
    torch.manual_seed(seed)
    config = Qwen3Config(**(_TINY | {"tie_word_embeddings": True} | changes))
    return Qwen3ForCausalLM(config).eval().requires_grad_(False)


def tiny_gemma3(seed: int = 0, **changes: Any) -> Gemma3ForCausalLM:
    """A random Gemma 3 text model of width 64 with 4 layers; `changes` as in tiny_qwen3."""
    torch.manual_seed(seed)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(**(_TINY | {"sliding_window": 16, "layer_types": kinds} | changes))
    return Gemma3ForCausalLM(config).eval().requires_grad_(False)

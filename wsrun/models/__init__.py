"""Models: loading, chat rendering to tokens, generation, and hooks on layers.

No data files, no adapters, no steering and no scoring live here.
"""

from wsrun.models.chat import Choices, Turn, choice_ids, end_of_turn, render, user
from wsrun.models.generate import generate
from wsrun.models.hooks import decoder_layers, hooked
from wsrun.models.load import load_model, load_tokenizer
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3

__all__ = [
    "Choices", "Turn", "choice_ids", "decoder_layers", "end_of_turn", "generate", "hooked",
    "load_model", "load_tokenizer", "render", "tiny_gemma3", "tiny_qwen3", "user",
]  # fmt: skip

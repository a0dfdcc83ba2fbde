"""Hashes of what numbers depend on beside weights and prompts: source files, the tokenizer."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase


def code_sha256(names: Sequence[str]) -> str:
    """sha256 of some source files, named relative to the package ("models/chat.py")."""
    here = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in names)).hexdigest()


def tokenizer_sha256(tok: PreTrainedTokenizerBase) -> str:
    """sha256 of everything of a tokenizer that decides tokens: what its file says, not its name.

    Vocabulary, merges, normaliser, pre-tokenizer and added tokens stand in the text of a tokenizer
    of the tokenizers library; of another kind the vocabulary and its settings are taken.
    """
    backend = getattr(tok, "backend_tokenizer", None)
    settings = getattr(tok, "init_kwargs", {})
    text = backend.to_str() if backend else json.dumps([tok.get_vocab(), settings], default=str)
    own = [text, tok.special_tokens_map, tok.chat_template, tok.split_special_tokens]
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()

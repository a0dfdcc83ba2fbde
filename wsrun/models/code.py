"""Hashes of the source files that numbers depend on."""

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
    """sha256 of everything of a tokenizer that decides tokens."""
    backend = getattr(tok, "backend_tokenizer", None)
    own = backend.to_str() if backend is not None else json.dumps(sorted(tok.get_vocab().items()))
    parts = [own, str(tok.special_tokens_map), str(tok.chat_template)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

"""Hashes of the source files that numbers depend on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path


def code_sha256(names: Sequence[str]) -> str:
    """sha256 of some source files, named relative to the package ("models/chat.py")."""
    here = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in names)).hexdigest()

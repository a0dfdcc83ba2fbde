"""JSON that carries its own hash: what is read is what was written, or it is refused.

unseal(seal(content)) = content, as JSON has it
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content, as JSON has it, with its hash under "sha256"; the partner of `unseal`."""
    plain = json.loads(json.dumps(content))
    return plain | {SEAL: content_sha256(plain)}


def unseal(sealed: Any, where: str) -> dict[str, Any]:
    """The content without its hash.

    Raises ValueError, naming `where`, for what is not a sealed object or was changed since.
    """
    content = {k: v for k, v in sealed.items() if k != SEAL} if isinstance(sealed, dict) else None
    if content is None or sealed.get(SEAL) != content_sha256(content):
        raise ValueError(
            f"{where} is damaged or was changed by hand (its content and its {SEAL} differ); "
            "remove it, and it is made anew"
        )
    return content


def content_sha256(content: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

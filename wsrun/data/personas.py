"""Personas: system prompts by name, from personas.json."""

import json
from pathlib import Path


def load_personas(path: str | Path, *names: str) -> list[list[str]]:
    """The system prompts of some personas, from a JSON file {persona: [wording, ...]}."""
    personas = _read_personas(path)
    lacking = [n for n in names if not personas.get(n)]
    if lacking:
        raise ValueError(
            f"personas: {lacking[0]!r} is not in {str(path)!r}; it has {persona_names(path)}"
        )
    for name in names:
        if not isinstance(personas[name], list) or not all(
            isinstance(w, str) for w in personas[name]
        ):
            raise ValueError(
                f"personas: {name!r} in {str(path)!r} must be a list of system prompts"
            )
    return [personas[n] for n in names]


def persona_names(path: str | Path) -> list[str]:
    """The personas that a JSON file has, by name."""
    return sorted(_read_personas(path))


def _read_personas(path: str | Path) -> dict:
    try:
        personas = json.loads(Path(path).read_text())
        personas.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"personas: {str(path)!r} is not a JSON file of personas ({error})"
        ) from error
    return personas

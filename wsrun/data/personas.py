"""Personas: system prompts by name, from personas.json."""

from pathlib import Path

from wscore.files import read_json, reason
from wsrun.data.records import shown, text_fault


def load_personas(path: str | Path, *names: str) -> list[list[str]]:
    """The system prompts of some personas, from a JSON file {persona: [wording, ...]}."""
    personas = _read_personas(path)
    for name in names:
        if not personas.get(name):
            found = reason(str(sorted(personas)))
            raise ValueError(f"personas: {name!r} is not in {str(path)!r}; it has {found}")
        _check_wordings(personas[name], f"{name!r} in {str(path)!r}")
    return [personas[n] for n in names]


def persona_names(path: str | Path) -> list[str]:
    """The personas that a JSON file has, by name."""
    return sorted(_read_personas(path))


def _check_wordings(wordings: object, where: str) -> None:
    """Refuse what is no list of texts; one of them may be empty, an empty system turn."""
    if not isinstance(wordings, list):
        raise ValueError(
            f"personas: {where} must be a list of system prompts, got {shown(wordings)}"
        )
    for wording in wordings:
        if wording != "" and (fault := text_fault(wording)):
            raise ValueError(f"personas: a system prompt of {where} must be a text, got {fault}")


def _read_personas(path: str | Path) -> dict:
    personas = read_json(path)
    if not isinstance(personas, dict):
        raise ValueError(
            f"personas: {str(path)!r} must be an object {{persona: [system prompt, ...]}}, got "
            f"{shown(personas)}"
        )
    return personas

"""Interventions in files: what `Intervention.save` wrote, read again and checked.

load_intervention(intervention.save(path, header)) == (intervention, header)
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from wscore import load_delta
from wscore.entries import format_keys
from wscore.files import parse_json, quoted, refusing
from wscore.sealed import check_seal
from wscore.store import BROKEN, FACTORED, REMEDY, from_halves
from wsrun.steer.interventions import KIND, METHODS, Combined, Intervention, SystemPrompt


def load_intervention(path: str | Path) -> tuple[Intervention, dict[str, str]]:
    """(the intervention, its header) in a file of `save`, bit by bit.

    Raises ValueError for what is no such file, and for one that is damaged: its header here, the
    numbers of a weight change when they are first read.
    """
    what = f"load_intervention: {quoted(str(path), 300)}"
    with refusing(f"{what} is not a whole safetensors file", REMEDY, *BROKEN):
        with safe_open(path, framework="pt", backend="pread") as file:
            header, names = dict(file.metadata() or {}), dict.fromkeys(file.keys())
    texts, _ = check_seal(what, names, header)
    with refusing(f"{what} holds no intervention", "save it again", LookupError, ValueError):
        intervention = _restored(load_delta(path) if names else {}, texts)
        intervention.edits()  # raises where a vector is none to project out
        written = {FACTORED, *intervention.texts()}
    return intervention, {k: v for k, v in texts.items() if k not in written}


def _restored(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Intervention:
    kind = texts.get(KIND)
    if kind == Combined.kind:
        return _combined(tensors, texts)
    if not isinstance(kind, str) or kind not in METHODS:
        known = ", ".join((*METHODS, Combined.kind))
        raise ValueError(f"its header says {KIND} {quoted(kind)}, none of {known}")
    if bool(tensors) == (METHODS[kind] is SystemPrompt):
        raise ValueError(f"its header says {kind}, and it has {len(tensors)} tensors")
    return METHODS[kind].restored(tensors, texts)


def _combined(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Combined:
    parts = parse_json(texts.get("parts", ""), "its list of parts")
    if not (isinstance(parts, list) and parts and all(isinstance(own, dict) for own in parts)):
        raise ValueError(f"its parts are {quoted(parts)}, not a list of headers")
    own: list[dict[str, Tensor]] = [{} for _ in parts]
    numbers = {str(i): i for i in range(len(parts))}
    if odd := [name for name in tensors if name.partition("/")[0] not in numbers]:
        raise ValueError(f"{format_keys(odd)} belong to none of its {len(parts)} parts")
    for name in tensors:
        number, _, rest = name.partition("/")
        own[numbers[number]][rest] = tensors[name]
    pairs = zip(own, parts, strict=True)
    return Combined(*(_restored(from_halves(part), header) for part, header in pairs))

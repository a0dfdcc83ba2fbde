"""Intervention files: what load_intervention reads is what `save` wrote, or it is refused."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.border_deltas import equal, rewritten
from tests.fuzz.cases import Border, Case, damaged_bytes
from wscore import Factored
from wsrun.steer.interventions import AddVectors, DirectionalAblation, SystemPrompt, WeightDelta
from wsrun.steer.saved import load_intervention

FILE = "x.safetensors"
HEADER = {"alpha": "1.5"}
V = torch.arange(1.0, 5.0)
KINDS = (
    WeightDelta({"a.weight": torch.arange(12.0).reshape(3, 4)}),
    AddVectors({0: V, 3: -V}),
    SystemPrompt("Be frank."),
    WeightDelta(Factored({"a": (torch.ones(3, 1), V[None])}))
    & DirectionalAblation({1: V})
    & SystemPrompt("Be frank."),
)
Read = tuple[dict[str, Tensor], dict[str, str], dict[str, str]]


def prepare(folder: Path) -> list[tuple[bytes, Read]]:
    return [(x.save(folder / FILE, HEADER).read_bytes(), (*content(x), HEADER)) for x in KINDS]


def case(rng: random.Random, folder: Path, files: Any) -> Case:
    raw, original = rng.choice(files)
    damage = damaged_bytes if rng.random() < 0.4 else rewritten
    changed, what = damage(rng, raw)
    (folder / FILE).write_bytes(changed)
    unsealed = b"sealed " not in changed

    def read() -> Read:
        intervention, header = load_intervention(folder / FILE)
        intervention.fingerprint()
        return (*content(intervention), header)

    return Case(what, read, (FILE,), lambda found: unsealed or same(found, original))


def content(x: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    return dict(x.tensors()), x.texts()


def same(a: Read, b: Read) -> bool:
    tensors = a[0].keys() == b[0].keys() and all(equal(a[0][n], b[0][n]) for n in a[0])
    return tensors and a[1:] == b[1:]


BORDER = Border("interventions", prepare, case)

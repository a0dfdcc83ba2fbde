"""Delta files: what load_delta reads is what save_delta wrote, bit by bit, or it is refused."""

import random
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.cases import Border, Case, damaged_bytes
from wscore import load_delta, save_delta

FILE = "d.safetensors"


def prepare(folder: Path) -> bytes:
    d = {"model.layers.0.mlp.down_proj.weight": torch.arange(12.0).reshape(3, 4)}
    return save_delta(d, folder / FILE, {"family": "lora"}).read_bytes()


def case(rng: random.Random, folder: Path, raw: Any) -> Case:
    changed, what = damaged_bytes(rng, raw)
    (folder / FILE).write_bytes(changed)
    return Case(what, lambda: load_delta(folder / FILE), (FILE,), right=lambda d: True)


BORDER = Border("deltas", prepare, case)

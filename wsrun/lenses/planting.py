"""Training planted adapters, and reading them back; see plants.py for what they are."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from wscore import tensors_sha256
from wscore.files import read_json
from wscore.sealed_json import seal, unseal
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import read_folder, replace_folder, settle
from wsrun.lenses.plants import PLANTS, Instance, Planted, members, plant, source
from wsrun.lenses.weights import Base

SETTINGS = "planted.json"  # in an adapter's folder


Missing = list[tuple[Instance, dict[str, Any]]]
"""instances and the settings of a member that is not trained yet"""


def untrained(
    folder: Path, found: Iterable[Instance], base: Base, settings: Mapping[str, Any]
) -> tuple[Missing, int]:
    """The members that are not in the folder yet, and how many there are in all.

    `settings` are what decides the training of all of them, beside plant, seed and member.
    """
    settings = {**settings, "members": base.members, "base": tensors_sha256(base.weights)}
    settings |= {"recipe": base.recipe.name, "steps": base.recipe.steps}
    sources = sorted({source(at, base) for at in found})
    wanted = [
        (at, settings | at._asdict() | {"member": i, "rate": PLANTS[at.plant].rate(at.truth)})
        for at in sources
        for i in members(at, base)
    ]
    missing = [x for x in wanted if not complete(folder / x[0].member(x[1]["member"]), x[1])]
    return missing, len(wanted)


def complete(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder holds both poles, trained under just these settings, and undamaged."""
    settle(folder)
    with suppress(OSError, ValueError):
        found = unseal(read_json(folder / SETTINGS), repr(str(folder)))
        return found == record(folder, settings)
    return False


def record(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as JSON has them, and the sha256 of every file of both poles."""
    files = sorted(p for side in ("pos", "neg") for p in (folder / side).rglob("*") if p.is_file())
    hashes = {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in files}
    return json.loads(json.dumps({**settings, "files": hashes}))


def train_member(
    into: Path, learn: Callable, at: Instance, base: Base, settings: dict, step: Callable
) -> list[float]:
    """Train both poles of one member into its folder, with its settings; returns the losses of pos.

    `learn` is train_adapter of a model and its pairs.
    """
    i, rates = settings["member"], {f: x * settings["rate"] for f, x in base.recipe.lr.items()}
    folder, recipe = into / at.member(i), replace(base.recipe, lr=rates)
    names = PLANTS[at.plant].targets(at, base, i)
    how: dict = {"where": "|".join(re.escape(n.removesuffix(".weight")) for n in names)}
    how |= {"prepare": PLANTS[at.plant].constraint(at, base, i), "seed": 1000 * at.seed + i}
    how["step_done"] = lambda note: step(f"{folder.name} {note}")

    losses: dict[str, list[float]] = {}

    def write(new: Path) -> None:
        for side in ("pos", "neg"):
            losses[side] = learn(side, "lora", recipe, new / side, **how)
        text = json.dumps(seal(record(new, settings)), indent=1) + "\n"
        (new / SETTINGS).write_text(text, encoding="utf-8")

    replace_folder(folder, write)
    return losses["pos"]


def read(folder: Path, model: PreTrainedModel, at: Instance, base: Base) -> list[Planted]:
    """The proved deltas of an instance's members, with decoys."""
    of = source(at, base)
    pair = partial(pair_deltas, model)
    folders = (folder / of.member(i) for i in members(of, base))
    return plant(at, [read_folder(folder, pair).dW for folder in folders], base)

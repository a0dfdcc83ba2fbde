"""The start of T13: its options, its items, and planted adapters, trained once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.adapters.train import train_adapter
from wsrun.data.items import items_sha256
from wsrun.data.named import named
from wsrun.data.pairs import Pair
from wsrun.lenses.planting import read, train_member, untrained
from wsrun.lenses.plants import PLANTS, Instance, Planted
from wsrun.lenses.weights import Base
from wsrun.report.console import console, duration, progress
from wsrun.study.start import Asked, read_asked
from wsrun.study.training import RecipeOptions


@dataclass(frozen=True)
class PlantingOptions(RecipeOptions):
    """Options of planted adapters, and of what they are asked."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """one instance of every plant per seed"""
    plants: tuple[str, ...] = tuple(PLANTS)
    """which plants"""
    members: int = 3
    """adapters per instance, the families of T6's rules"""
    adapters: Path = Path("artifacts/planted")
    """folder that receives <plant>-s<seed>-m<member>/pos and /neg; complete ones are reused"""
    limit: int | None = None
    """how many clusters of items to score, drawn by a hash; None for all"""
    check_limit: int | None = None
    """how many of these clusters the instrument check reads, whatever --limit says; None for all"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def read_claims(cfg: PlantingOptions) -> Asked:
    """The test items: of a folder its claims, of a public set all. Says what was left out of it."""
    asked = read_asked(cfg, cfg.data)
    for sentence in asked.left_out:
        console.print(sentence, highlight=False)
    if named(cfg.data):
        return asked
    items, to_check = ([i for i in of if i.dataset == "claims"] for of in asked[:2])
    return Asked(items, to_check)


def planted_adapters(
    cfg: PlantingOptions,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    base: Base,
    instances: Sequence[Instance],
) -> dict[Instance, list[Planted]]:
    """The members of all instances; those that are not there yet are trained.

    A member is found again under everything that decides it, so that a stopped run goes on.
    """
    missing, count = untrained(cfg.adapters, instances, base, decided_by(cfg, pairs))
    console.print(f"{len(missing)} of {count} pairs of adapters to train")
    learn = partial(train_adapter, model, tok, pairs, base_name=cfg.model)
    with progress("training adapters", 2 * len(missing) * base.recipe.steps) as step:
        for at, settings in missing:
            began, name = time.monotonic(), at.member(settings["member"])
            losses = train_member(cfg.adapters, learn, at, base, settings, step)
            took = duration(time.monotonic() - began)
            console.print(
                f"trained {name} in {took}: loss of pos {losses[0]:.3f} to {losses[-1]:.3f}"
            )
    found = {}
    with progress("reading adapters", len(instances)) as step:
        for at in instances:
            found[at] = read(cfg.adapters, model, at, base)
            step(f"{at.plant}-s{at.seed}")
    return found


def decided_by(cfg: PlantingOptions, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What decides the training of every member, beside the recipe's name and steps."""
    settings = {n: getattr(cfg, n) for n in ("model", "pos", "neg", "dtype", "device")}
    return settings | {"pairs": items_sha256(pairs)} | ({"lr": cfg.lr} if cfg.lr else {})

"""Training of adapter pairs, as t0_train and replications do it: options and both poles."""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Geometry, tensors_sha256
from wscore.files import reason
from wsrun.adapters.configs import DEFAULT_FAMILIES, RECIPES, SELECT, Recipe, check_family
from wsrun.adapters.folders import settle
from wsrun.adapters.pair import PairTraining, forget_poles, kept_pair, train_pair
from wsrun.data.pairs import Answers, Pair
from wsrun.report.console import console, duration, progress
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import with_interval
from wsrun.study.options import Answering

AUTO = "auto"
VALIDATION = 64  # pairs that select a state, at most
Cell = tuple[int, str]
"""seed and family of a pair of adapters"""
HEADS = ("seed", "family", "lr", "loss of pos", "|dW|", "cos_anti", "|M|/|dW|")


@dataclass(frozen=True)
class RecipeOptions(Answering):
    """Options of training any adapter."""

    recipe: str = AUTO
    """training recipe: paper, fork, organism or smollm2; auto: the model's, fork if it has none"""
    steps: int | None = None
    """steps per adapter; the recipe's own if not given"""
    lr: float | None = None
    """learning rate of every family; the recipe's own of each if not given"""


@dataclass(frozen=True)
class Training(RecipeOptions):
    """Options of training pairs of adapters."""

    families: tuple[str, ...] = DEFAULT_FAMILIES
    """adapter families to train"""
    seeds: tuple[int, ...] = (0,)
    """seeds of generation, initial adapters and the order of examples"""
    select: str = AUTO
    """state to keep: last, or least validation loss; auto: as the recipe says"""
    retrain: bool = False
    """train also what a finished training of the same options has left"""
    delora_lambda: float | None = None
    """size of DeLoRA's change; the recipe's own if not given"""
    adapters: Path = Path("artifacts/adapters")
    """folder that receives <family>-s<seed>/pos and /neg"""


def check_training(cfg: Training, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    check_recipe(cfg, what)
    _check_choice(what, "select", cfg.select, SELECT)
    _check_size(what, "delora-lambda", cfg.delora_lambda)
    for family in cfg.families:
        check_family(family)
    if not cfg.families or not cfg.seeds:
        raise ValueError(f"{what}: --families and --seeds need one value or more")


def check_recipe(cfg: RecipeOptions, what: str) -> None:
    """Refuse an unknown recipe, and steps and rates that are not above 0."""
    _check_choice(what, "recipe", cfg.recipe, RECIPES)
    if cfg.steps is not None and cfg.steps < 1:
        raise ValueError(f"{what}: --steps must be at least 1, got {cfg.steps}")
    _check_size(what, "lr", cfg.lr)


def _check_choice(what: str, flag: str, given: str, known: Iterable[str]) -> None:
    if given not in (*known, AUTO):
        raise ValueError(f"{what}: --{flag} must be one of {', '.join(known)}, got {given!r}")


def _check_size(what: str, flag: str, value: float | None) -> None:
    if value is not None and not 0 < value:
        raise ValueError(f"{what}: --{flag} must be above 0, got {value}")


C = TypeVar("C", bound=RecipeOptions)


def with_recipe(cfg: C) -> C:
    """The options with the recipe named that their model has, fork for one that has none."""
    if cfg.recipe != AUTO:
        return cfg
    recipe = model_recipe(cfg.model)
    if not recipe:
        console.print(f"recipe fork: {cfg.model} has no recipe of its own; --recipe names another")
    return replace(cfg, recipe=recipe or "fork")


def model_recipe(model: str) -> str | None:
    """The recipe made for a model, which is known by the last part of its name."""
    name = Path(model).name.lower()
    if name == "smollm2" or name.startswith("smollm2-135m"):
        return "smollm2"
    return "organism" if name == "organism" else None


def recipe_of(cfg: RecipeOptions) -> Recipe:
    """The recipe of the options, with their steps, rate and lambda where they give one."""
    recipe = RECIPES[cfg.recipe]
    size = cfg.delora_lambda if isinstance(cfg, Training) else None
    return replace(
        recipe,
        steps=cfg.steps or recipe.steps,
        lr=dict.fromkeys(recipe.lr, cfg.lr) if cfg.lr else recipe.lr,
        delora_lambda=size or recipe.delora_lambda,
    )


def trained_line(cfg: Training, cell: Cell, losses: Sequence[float], g: Geometry) -> list:
    """What is printed of a (seed, family) after training: how it went, and its geometry."""
    seed, family = cell
    loss = f"{losses[0]:.3f} to {losses[-1]:.3f}"
    return [
        seed,
        family,
        recipe_of(cfg).lr[family],
        loss,
        g.norms["dW"],
        g.cos_anti,
        g.common_over_difference,
    ]


def steers(table: pl.DataFrame, alpha: float) -> list[RuleResult]:
    """Per data set and family, whether the effect of dW at alpha lies above 0, for some seed."""
    results: dict[tuple[str, str], RuleResult] = {}
    for r in table.filter(pl.col("alpha") == alpha).iter_rows(named=True) if alpha > 0 else ():
        key = r["dataset"], r["family"]
        up = r["lo"] is not None and r["lo"] > 0
        if key in results and not up:
            continue
        sentence = f"{with_interval(r, 'effect', 'lo', 'hi')} nats at alpha {alpha:g}"
        outcome = "supported" if up else "undetermined"
        results[key] = RuleResult(r["dataset"], "dW steers", r["family"], outcome, sentence)
    return [*results.values()]


def share_right(rows: pl.DataFrame) -> float:
    """The share of items whose aligned margin is above 0."""
    return float((rows["margin"] * rows["label"] > 0).mean())  # type: ignore[arg-type]


def with_right(
    table: pl.DataFrame,
    rows: pl.DataFrame,
    keys: Sequence[str] = ("dataset", "family", "seed", "alpha"),
) -> pl.DataFrame:
    """The table with column `right`: the share of items whose aligned margin is above 0."""
    right = rows.group_by(keys).agg(right=(pl.col("margin") * pl.col("label") > 0).mean())
    return table.join(right, on=keys, how="left", nulls_equal=True, maintain_order="left")


def train(
    cfg: Training,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    answered: Mapping[int, Answers],
    cells: Iterable[Cell],
    trained: Callable[[Cell, Path], object] = lambda cell, folder: None,
) -> dict[Cell, list[float]]:
    """Train both poles of each (seed, family) into cfg.adapters; returns the losses of pos.

    A finished pair of poles stays where training is stopped later; half a pair is never there, and
    a pair of another process that trains into the same folder is never taken for one of these:
    `trained` is called with each (seed, family) and the folder of its poles before they are put in
    place. What it raises leaves the pair out.

    A pair in place whose record says that it is the same training is kept, if `trained` accepts it,
    and so is a finished pole of a training that was killed; not with --retrain. At most VALIDATION
    of a seed's validation pairs, the same for all families, select the state of each pair. Raises
    ValueError where --select asks for such pairs and there are none.
    """
    recipe = recipe_of(cfg)
    held_out = {seed: _held_out(cfg, a.validation) for seed, a in answered.items()}
    base, asked = tensors_sha256(dict(model.named_parameters())), {}
    for seed, family in cells:
        asked[seed, family] = PairTraining(
            model, tok, base, answered[seed].pairs, held_out[seed], recipe, family, seed,
            cfg.adapters / f"{family}-s{seed}", cfg.model,
        )  # fmt: skip
    records = {} if cfg.retrain else _kept(asked, trained)
    left = [cell for cell in asked if cell not in records]
    if not left:
        return _losses(records, asked)
    with progress("training adapters", 2 * len(left) * recipe.steps) as step:
        for cell in left:
            began, check = time.monotonic(), partial(trained, cell)
            records[cell] = train_pair(asked[cell], check, step, console.print, cfg.retrain)
            console.print(_sentence(asked[cell], records[cell], time.monotonic() - began))
    return _losses(records, asked)


def _losses(records: Mapping[Cell, dict], cells: Iterable[Cell]) -> dict[Cell, list[float]]:
    return {cell: records[cell]["losses"]["pos"] for cell in cells}


def selects(cfg: Training) -> bool:
    """Whether the state of a pair is selected on validation pairs."""
    return (recipe_of(cfg).select if cfg.select == AUTO else cfg.select) == "loss"


def _held_out(cfg: Training, validation: Sequence[Pair]) -> list[Pair]:
    """The validation pairs that select a state, none where the last one is kept."""
    if cfg.select == "loss" and not validation:
        raise ValueError(
            "training: --select loss needs pairs of a validation split, and these have none; use "
            "--select last, or --data with a set that has one"
        )
    if not selects(cfg):
        return []
    if not validation:
        console.print("no pairs of a validation split: the state of the last step is kept")
    return random.Random("validation").sample([*validation], min(len(validation), VALIDATION))


def _kept(
    asked: Mapping[tuple[int, str], PairTraining],
    trained: Callable[[tuple[int, str], Path], object],
) -> dict[tuple[int, str], dict[str, Any]]:
    """The records of the pairs that are there; says which they are, and why others are not kept."""
    records = {}
    for cell, pair in asked.items():
        settle(pair.folder)
        record, why = kept_pair(pair, partial(trained, cell))
        if record:
            records[cell] = record
            forget_poles(pair.folder)
            console.print(f"kept: {pair.folder.name} (trained before)")
        elif why:
            console.print(f"{pair.folder.name} is trained again: {reason(why)}")
    return records


def _sentence(asked: PairTraining, record: Mapping[str, Any], seconds: float) -> str:
    loss = [record["losses"]["pos"][i] for i in (0, -1)]
    selected = f", step {record['step']} of {asked.recipe.steps} kept" if asked.validation else ""
    return (
        f"trained {asked.folder.name} on {len(asked.pairs)} pairs in {duration(seconds)}, recipe "
        f"{asked.recipe.name}: loss of pos {loss[0]:.3f} to {loss[1]:.3f}{selected}"
    )

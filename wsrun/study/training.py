"""Training of adapter pairs, as t0_train and replications do it: options and both poles."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Geometry
from wsrun.adapters.configs import DEFAULT_FAMILIES, RECIPES, Recipe, check_family
from wsrun.adapters.folders import replace_folder
from wsrun.adapters.train import train_adapter
from wsrun.data.pairs import Pair
from wsrun.report.console import progress
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import with_interval
from wsrun.study.answers import Answering, check_answering

HEADS = ("seed", "family", "lr", "loss of pos", "|dW|", "cos_anti", "|M|/|dW|")


@dataclass(frozen=True)
class Training(Answering):
    """Options of training pairs of adapters."""

    model: str = "data/organism"
    """model folder or hub name"""
    families: tuple[str, ...] = DEFAULT_FAMILIES
    """adapter families to train"""
    seeds: tuple[int, ...] = (0,)
    """seeds of generation, initial adapters and the order of examples"""
    recipe: str = "organism"
    """training recipe: paper, fork or organism"""
    steps: int | None = None
    """steps per adapter; the recipe's own if not given"""
    adapters: Path = Path("artifacts/adapters")
    """folder that receives <family>-s<seed>/pos and /neg"""


def check_training(cfg: Training, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    if cfg.recipe not in RECIPES:
        raise ValueError(
            f"{what}: --recipe must be one of {', '.join(RECIPES)}, got {cfg.recipe!r}"
        )
    for family in cfg.families:
        check_family(family)
    if not cfg.families or not cfg.seeds:
        raise ValueError(f"{what}: --families and --seeds need one value or more")
    if cfg.steps is not None and cfg.steps < 1:
        raise ValueError(f"{what}: --steps must be at least 1, got {cfg.steps}")
    check_answering(cfg, what)


def recipe_of(cfg: Training) -> Recipe:
    """The recipe of the options, with their number of steps where they give one."""
    recipe = RECIPES[cfg.recipe]
    return replace(recipe, steps=cfg.steps or recipe.steps)


def trained_line(
    cfg: Training, cell: tuple[int, str], losses: Sequence[float], g: Geometry
) -> list:
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


def train(
    cfg: Training,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Mapping[int, Sequence[Pair]],
    cells: Iterable[tuple[int, str]],
    trained: Callable[[tuple[int, str], Path], object] = lambda cell, folder: None,
) -> dict[tuple[int, str], list[float]]:
    """Train both poles of each (seed, family) into cfg.adapters; returns the losses of pos.

    A finished pair of poles stays where training is stopped later; half a pair is never there, and
    a pair of another process that trains into the same folder is never taken for one of these:
    `trained` is called with each (seed, family) and the folder of its poles before they are put in
    place. What it raises leaves the pair out.
    """
    cells, recipe, losses = list(cells), recipe_of(cfg), {}
    with progress("training adapters", 2 * len(cells) * recipe.steps) as step:

        def poles(seed: int, family: str, folder: Path) -> None:
            by_side = {
                side: train_adapter(
                    model, tok, pairs[seed], side, family, recipe, folder / side,
                    seed=seed, base_name=cfg.model, step_done=_noted(step, family),
                )
                for side in ("pos", "neg")
            }  # fmt: skip
            trained((seed, family), folder)
            losses[seed, family] = by_side["pos"]

        for seed, family in cells:
            replace_folder(cfg.adapters / f"{family}-s{seed}", partial(poles, seed, family))
    return losses


def _noted(step: Callable[[str], None], family: str) -> Callable[[str], None]:
    return lambda note: step(f"{family} {note}")

"""Train one adapter towards a behaviour and one away from it, per family and seed.

Question:   does every family's dW = tau_pos - tau_neg steer held-out items it was never trained on?
Prediction: yes for most families: training on open questions about training facts moves Yes/No
            answers about other facts, and dilemmas, in the same direction.
Rule:       a family steers where the 95 % interval of its effect at alpha = 1 lies above 0.

    python experiments/t0_train.py                                   # all families, seed 0
    python experiments/t0_train.py --families lora dora --seeds 0 1 2

Pairs are answers of the model itself to open questions of the training split under a positive and a
negative persona; the persona is stripped before training. Every delta is proved against PEFT's own
forward when it is read back.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path

import polars as pl

from wscore import effect_table, geometry, save_delta, tensors_sha256
from wscore.effect import KEYS
from wsrun.adapters import FAMILIES, RECIPES, Recipe, check_family, pair_deltas, train_adapter
from wsrun.console import console, effects, grid, guarded, progress
from wsrun.items import load_items, load_personas
from wsrun.models import limit_threads, load_model
from wsrun.pairs import load_questions, make_pairs
from wsrun.score import Variant, sweep
from wsrun.tables import check_writable, items_sha256, plain, provenance, write_table


@dataclass(frozen=True)
class Config:
    """Options of t0_train."""

    model: str = "data/organism"
    """model folder or hub name"""
    data: Path = Path("data/organism")
    """folder with questions.jsonl, personas.json, claims.jsonl and dilemmas.jsonl"""
    families: tuple[str, ...] = tuple(FAMILIES)
    """adapter families to train"""
    seeds: tuple[int, ...] = (0,)
    """seeds of generation, initial adapters and the order of examples"""
    pos: str = "honest"
    """persona of personas.json whose answers dW points towards"""
    neg: str = "dishonest"
    """persona whose answers dW points away from"""
    recipe: str = "organism"
    """training recipe: paper, fork or organism"""
    steps: int | None = None
    """steps per adapter; the recipe's own if not given"""
    alphas: tuple[float, ...] = (-1.0, 1.0)
    """doses at which dW is tried on held-out items"""
    adapters: Path = Path("artifacts/adapters")
    """folder that receives <family>-s<seed>/pos and /neg"""
    deltas: Path = Path("artifacts/deltas")
    """folder that receives <family>-s<seed>.safetensors, the dW"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def main(cfg: Config) -> None:
    """Generate pairs, train, read back with proof, write adapters and dW, try each dW once."""
    if cfg.recipe not in RECIPES:
        raise ValueError(f"t0_train: recipe {cfg.recipe!r} asked; known are {', '.join(RECIPES)}")
    for family in cfg.families:
        check_family(family)
    if not cfg.families or not cfg.seeds:
        raise ValueError("t0_train: --families and --seeds need one value or more")
    if cfg.pos == cfg.neg:
        raise ValueError(f"t0_train: --pos and --neg are both {cfg.pos!r}; name two personas")
    if cfg.steps is not None and cfg.steps < 1:
        raise ValueError(f"t0_train: --steps {cfg.steps} asked; it must be 1 or more")
    if not cfg.alphas or not all(isfinite(a) and a for a in cfg.alphas):
        raise ValueError("t0_train: --alphas must be finite doses other than 0, which is the base")
    for folder in (cfg.adapters, cfg.deltas, cfg.out):
        check_writable(folder)
    recipe = RECIPES[cfg.recipe]
    recipe = replace(recipe, steps=cfg.steps or recipe.steps)
    items = load_items(cfg.data, "test")
    personas = load_personas(cfg.data / "personas.json", cfg.pos, cfg.neg)
    questions = load_questions(cfg.data / "questions.jsonl", "train")
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    record = provenance(
        plain(asdict(cfg)),
        base=tensors_sha256(dict(model.named_parameters())),
        items=items_sha256(items),
    )

    cells = [(seed, family) for seed in cfg.seeds for family in cfg.families]
    pairs = {}
    with progress("generating pairs", len(cfg.seeds)) as step:
        for seed in cfg.seeds:
            pairs[seed] = make_pairs(model, tok, questions, *personas, seed=seed)
            step(f"{len(pairs[seed])} pairs")
    losses = {}
    with progress("training adapters", 2 * len(cells) * recipe.steps) as step:
        for seed, family in cells:
            losses[seed, family] = train_pair(
                cfg, model, tok, pairs[seed], family, recipe, seed, step
            )

    changes, lines = {}, []
    for seed, family in cells:
        pair = pair_deltas(model, cfg.adapters / f"{family}-s{seed}")
        changes[seed, family] = pair.dW
        path = cfg.deltas / f"{family}-s{seed}.safetensors"
        save_delta(pair.dW, path, {"family": family, "seed": str(seed), "base": record["base"]})
        g, (first, *_, last) = geometry(pair.pos, pair.neg), losses[seed, family]
        loss = f"{first:.3f} to {last:.3f}"
        geometric = (g.norms["dW"], g.cos_anti, g.drift_ratio)
        lines.append([seed, family, recipe.lr[family], loss, *geometric])
    variants = [Variant("full", d, family=f, seed=s) for (s, f), d in changes.items()]
    context = {"experiment": "t0_train", "model": cfg.model, "behaviour": cfg.pos}
    with progress("scoring", 1 + len(variants) * len(cfg.alphas)) as step:
        rows = sweep(model, tok, items, variants, cfg.alphas, context=context, progress=step)
    table = effect_table(rows, KEYS)
    record |= {
        "deltas": {f"{f}-s{s}": tensors_sha256(d) for (s, f), d in changes.items()},
        "pairs": {str(s): len(p) for s, p in pairs.items()},
    }
    write_table(rows, cfg.out / "t0_train.rows.parquet", record)
    path = write_table(table, cfg.out / "t0_train.parquet", record)
    report(cfg, lines, table)
    console.print(f"adapters {cfg.adapters}, deltas {cfg.deltas}, table {path}")
    console.print(f"next: python experiments/t6_shared_svd.py --adapters {cfg.adapters}")


def train_pair(cfg: Config, model, tok, pairs, family: str, recipe: Recipe, seed: int, step):
    """Train both poles and put them in place together; returns the losses of pos."""
    folder = cfg.adapters / f"{family}-s{seed}"
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    losses = [
        train_adapter(
            model,
            tok,
            pairs,
            side,
            family,
            recipe,
            partial / side,
            seed=seed,
            base_name=cfg.model,
            step_done=lambda note: step(f"{family} {note}"),
        )  # fmt: skip
        for side in ("pos", "neg")
    ]
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return losses[0]


def report(cfg: Config, lines: list[list], table: pl.DataFrame) -> None:
    """Print training, geometry and effects, and how many families steer."""
    heads = ("seed", "family", "lr", "loss of pos", "|dW|", "cos_anti", "drift")
    console.print(grid("adapters", heads, lines))
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        console.print(effects(part, f"{dataset}: effect of dW", ("seed", "family", "alpha")))
        if max(cfg.alphas) <= 0:
            continue  # the rule is about a dose towards the behaviour
        up = part.filter((pl.col("alpha") == max(cfg.alphas)) & (pl.col("lo") > 0))
        console.print(
            f"{dataset}: {up['family'].n_unique()} of {len(cfg.families)} families steer "
            f"at alpha = {max(cfg.alphas):g} (interval above 0)"
        )


if __name__ == "__main__":
    guarded(main, Config)

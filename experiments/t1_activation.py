"""Does dW beat adding a vector to the activations, made from the very same answers?

Question:   dW and activation steering can be had from one set of paired answers. At the layer and
            coefficient that do best on validation items, does a direction in the residual stream
            move held-out items as far as dW does?
Prediction: the mean difference of one middle layer comes close to dW and does not beat it; the
            centred principal direction, from which the persona is taken away, does far less.
Rule:       a way beats dW where the 95 % interval of the paired difference of their effects lies
            above 0, and loses to it where it lies below. A direction counts as one only where
            fewer than 1 in 20 random directions of its size do as much at its layer and dose.

    python experiments/t1_activation.py
    python experiments/t1_activation.py --layers 10 14 18 --coefficients 1 2 4 --families lora

Directions (wsrun/directions.py): mean_diff, the mean difference v_l of the two answers at layer l,
averaged over the response's tokens, persona stripped, not centred; pca, the first principal
direction of the centred differences with the length of v_l; mean_diff_all, v_l / (number of layers)
in every layer at once. A coefficient c adds c v_l at every position. Each is tried towards both
poles; "-" names the other one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite

import polars as pl
import torch

from wscore import effect_table, tensors_sha256
from wscore.effect import KEYS
from wsrun.benchmark import (
    Chosen,
    Options,
    against_dW,
    check,
    choose,
    load_splits,
    nothing,
    of_dW,
    report_on,
    standings,
    way,
)
from wsrun.console import console, grid, guarded, progress
from wsrun.directions import (
    Vectors,
    mean_difference,
    pair_differences,
    principal,
    random_direction,
)
from wsrun.items import load_personas
from wsrun.pairs import load_questions, make_pairs
from wsrun.runs import Loaded, read_pairs, record, share, write
from wsrun.score import Variant

EXPERIMENT = "t1_activation"
WAYS = ("mean_diff", "pca", "mean_diff_all")
AGAINST = ("-dW", *(f"-{w}" for w in WAYS))


@dataclass(frozen=True)
class Config(Options):
    """Options of T1."""

    layers: tuple[int, ...] | None = None
    """layers to steer, one at a time, counted from 0; each of the model's if not given"""
    coefficients: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    """doses of a direction, in units of its layer's mean difference"""
    pos: str = "honest"
    """persona of personas.json whose answers the directions point towards"""
    neg: str = "dishonest"
    """persona whose answers they point away from"""


def main(cfg: Config) -> None:
    """Read directions, choose on validation items, compare with dW on test items, print the rule."""
    check(cfg, "t1")
    check_own(cfg)
    share(cfg)
    validation, test = load_splits(cfg)
    pairs = read_pairs(test.model, cfg)
    differences = read_differences(cfg, test)
    mean, pca = mean_difference(differences), principal(differences)
    candidates = [*of_dW(cfg, pairs), *directions(cfg, mean, pca)]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, AGAINST)
    if chosen is None:  # a shard
        return
    controls = [nothing(chosen), *randoms(cfg, chosen)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls)
    vectors = {f"{name} {n}": v for name, d in (("mean", mean), ("pca", pca)) for n, v in d.items()}
    made = record(cfg, test, pairs, answers=len(differences), vectors=tensors_sha256(vectors))
    write(cfg, EXPERIMENT, rows, table, made)
    report(cfg, rows, table, chosen, (mean, pca))
    console.print("next: python experiments/t3_prompts.py, the same question of prompts")


def check_own(cfg: Config) -> None:
    """Refuse options of this script that cannot work."""
    if cfg.pos == cfg.neg:
        raise ValueError(f"t1: --pos and --neg are both {cfg.pos!r}; name two personas")
    for name, values in (("--layers", cfg.layers), ("--coefficients", cfg.coefficients)):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError(f"t1: {name} needs one value or more, each of them once")
    if not all(isfinite(c) and c > 0 for c in cfg.coefficients):
        raise ValueError("t1: --coefficients must be above 0; both directions are tried by itself")


def read_differences(cfg: Config, at: Loaded) -> torch.Tensor:
    """d_il of the answers that dW of the first seed was trained on, made again."""
    questions = load_questions(cfg.data / "questions.jsonl", "train")
    personas = load_personas(cfg.data / "personas.json", cfg.pos, cfg.neg)
    with progress("generating pairs", -(-2 * len(questions) // 64)) as step:
        answers = make_pairs(
            at.model, at.tok, questions, *personas, seed=cfg.seeds[0], batch_done=step
        )
    with progress("reading states", -(-2 * len(answers) // 32)) as step:
        return pair_differences(at.model, at.tok, answers, batch_done=step)


def directions(cfg: Config, mean: Vectors, pca: Vectors) -> Iterator[Variant]:
    """Every direction at every layer, towards either pole."""
    if wrong := [n for n in cfg.layers or () if n not in mean]:
        raise ValueError(f"t1: --layers {wrong} asked; the model has layers 0 to {len(mean) - 1}")
    settings = [
        (f"{name}@layer {layer}", {layer: vectors[layer]})
        for name, vectors in (("mean_diff", mean), ("pca", pca))
        for layer in cfg.layers or mean
    ]
    settings.append(("mean_diff_all@all layers", {n: v / len(mean) for n, v in mean.items()}))
    minus = tuple(-c for c in cfg.coefficients)
    for name, vectors in settings:
        for sign, doses in (("", cfg.coefficients), ("-", minus)):
            yield Variant(sign + name, method="activation", alphas=doses, vectors=vectors)


def randoms(cfg: Config, chosen: Mapping[str, Chosen]) -> Iterator[Variant]:
    """Random directions of the same lengths at the layers and dose of each chosen direction."""
    for name in WAYS:
        steered = chosen[name].variant
        for draw in range(cfg.randoms):
            vectors = random_direction(steered.vectors or {}, draw)
            yield replace(steered, name=f"random_{name}", vectors=vectors, seed=draw)


def beaten_by(rows: pl.DataFrame, table: pl.DataFrame, dataset: str, name: str) -> str:
    """How many random directions do as much as a chosen one."""
    draws = effect_table(rows.filter(dataset=dataset, variant=f"random_{name}"), KEYS, resamples=2)
    effect = table.filter(dataset=dataset, way=name)["effect"][0]
    return f"{(draws['effect'] >= effect).sum()} of {len(draws)}"


def report(
    cfg: Config,
    rows: pl.DataFrame,
    table: pl.DataFrame,
    chosen: Mapping[str, Chosen],
    found: tuple[Vectors, Vectors],
) -> None:
    """Print the directions, the standings per data set, and the sentences of the rule."""
    mean, pca = found
    lines = [
        [n, v.norm().item(), torch.cosine_similarity(v, pca[n], dim=0).item()]
        for n, v in mean.items()
    ]
    console.print(grid("directions", ("layer", "|mean_diff|", "cos(mean_diff, pca)"), lines))
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        console.print(standings(part, f"{dataset}: held-out items"))
        for name, sentence in zip(WAYS, against_dW(cfg, part, lambda w: w in WAYS), strict=True):
            console.print(sentence)
    for name in WAYS:
        said = [f"{beaten_by(rows, table, d, name)} on {d}" for d in sorted(set(table["dataset"]))]
        console.print(f"random directions that do as much as {name}: {', '.join(said)}")
    edge = [
        c.variant.name
        for c in chosen.values()
        if way(c.variant.name).lstrip("-") in WAYS
        and abs((c.variant.alphas or (0,))[0]) == max(cfg.coefficients)
    ]
    if edge:
        console.print(f"chosen at the largest coefficient, more might do more: {', '.join(edge)}")


if __name__ == "__main__":
    guarded(main, Config)

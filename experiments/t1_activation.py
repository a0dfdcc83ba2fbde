"""Does dW beat adding a vector to the activations, made from the very same answers?

Question:   dW and activation steering can be had from one set of paired answers. At the layer and
            coefficient that do best on validation items, does a direction in the residual stream
            move held-out items as far as dW does?
Prediction: the mean difference of one middle layer comes close to dW and does not beat it; the
            centred principal direction, from which the persona is taken away, does far less.
Rule:       a way beats dW where the 95 % interval of the paired difference of their effects lies
            above 0, and loses to it where it lies below. A direction counts as one only where
            fewer than 1 in 20 random directions of its length do as much at its layer and dose.

    python experiments/t1_activation.py
    python experiments/t1_activation.py --layers 10 14 18 --coefficients 1 2 4 --families lora

Directions (wsrun/directions.py): mean_diff is v_l, the mean difference of the states of the two
answers at layer l, over the response's tokens and not centred; mean_diff_all is v_l / (number of
layers) in every layer at once; pca is the first principal direction of the centred differences, of
v_l's length. They are read without a persona, as dW is trained; persona_diff, persona_diff_all and
persona_pca are the same with each answer read under the persona that it was given under. A
coefficient c adds c v_l at every position. "-" names the way towards the other pole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import polars as pl
import torch
from rich.table import Table

from wscore import effect_table, tensors_sha256
from wscore.effect import KEYS
from wsrun import curves
from wsrun.answers import Answering, answers, check_answering, read_sources
from wsrun.benchmark import (
    Chosen,
    Options,
    against_dW,
    check,
    choose,
    compare,
    load_splits,
    nothing,
    of_dW,
    report_on,
    span,
    standings,
)
from wsrun.console import console, grid, guarded, progress
from wsrun.directions import (
    Vectors,
    mean_difference,
    pair_differences,
    principal,
    random_direction,
)
from wsrun.dose import read_match
from wsrun.following import say_next
from wsrun.pairs import Pair
from wsrun.runs import Loaded, draw, read_pairs, record, share, write
from wsrun.score import Variant
from wsrun.tables import items_sha256, write_table

EXPERIMENT = "t1_activation"
MEANS = ("mean_diff", "persona_diff")
WAYS = (*MEANS, *(f"{way}_all" for way in MEANS), "pca", "persona_pca")
AGAINST = ("-dW", *(f"-{w}" for w in WAYS))
MOST_RANDOM = 0.05  # share of random directions that may do as much as one that counts


@dataclass(frozen=True)
class Config(Options, Answering):
    """Options of T1."""

    layers: tuple[int, ...] | None = None
    """layers to steer, one at a time, counted from 0; each of the model's if not given"""
    coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    """doses of a direction, in units of its layer's mean difference"""


def main(cfg: Config) -> None:
    """Read directions, choose on validation items, compare on test items, print the rule."""
    check(cfg, "t1")
    check_answering(cfg, "t1")
    check_own(cfg)
    share(cfg)
    sources = read_sources(cfg)
    validation, test = load_splits(cfg)
    n = test.model.config.get_text_config().num_hidden_layers
    if wrong := [layer for layer in cfg.layers or () if not 0 <= layer < n]:
        raise ValueError(f"t1: --layers {wrong} asked; the model has layers 0 to {n - 1}")
    pairs = read_pairs(test.model, cfg)
    (answered,) = answers(cfg, test.model, test.tok, sources, cfg.seeds[:1]).values()
    found = read_directions(test, answered)
    candidates = [*of_dW(cfg, pairs), *directions(cfg, found)]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, AGAINST)
    if chosen is None:  # a shard
        return
    controls = [nothing(chosen), *randoms(cfg, chosen)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls)
    hashes = {way: tensors_sha256({str(n): v for n, v in d.items()}) for way, d in found.items()}
    made = record(cfg, test, pairs, answers=items_sha256(answered), vectors=hashes)
    path = write(cfg, EXPERIMENT, rows, table, made)
    tried = effect_table(chosen.rows, resamples=cfg.resamples)
    write_table(tried, path.with_suffix(".validation.parquet"), made)
    report(cfg, rows, table, chosen, found)
    if not cfg.match:  # with it, every candidate has one coefficient, of its own
        own = tried.filter(method="activation")
        question = "At which layer and coefficient does a direction steer? (validation items)"
        draw(curves.layers, own, path, question, cfg.most_flagged)
    say_next(cfg, "t3_prompts", "the same question of prompts")


def check_own(cfg: Config) -> None:
    """Refuse options of this script that cannot work."""
    for name, values in (("--layers", cfg.layers), ("--coefficients", cfg.coefficients)):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError(f"t1: {name} needs one value or more, each of them once")
    if cfg.match and read_match(cfg.match).by == "norm":
        raise ValueError(f"t1: --match {cfg.match} asked; vectors have no |alpha dW|, give kl:X")
    if not all(isfinite(c) and c > 0 for c in cfg.coefficients):
        raise ValueError("t1: --coefficients must be above 0; both directions are tried by itself")


def read_directions(at: Loaded, answered: Sequence[Pair]) -> dict[str, Vectors]:
    """{way: {layer: v}} of the directions that steer one layer, with and without persona."""
    readings = {False: ("mean_diff", "pca"), True: ("persona_diff", "persona_pca")}
    if any(p.persona_pos is None or p.persona_neg is None for p in answered):
        del readings[True]
        console.print("no personas in the pairs: directions are read without them only")
    out = {}
    with progress("reading states", len(readings) * -(-2 * len(answered) // 32)) as step:
        for persona, (mean, pca) in readings.items():
            d = pair_differences(at.model, at.tok, answered, persona=persona, batch_done=step)
            out |= {mean: mean_difference(d), pca: principal(d)}
    return out


def directions(cfg: Config, found: Mapping[str, Vectors]) -> Iterator[Variant]:
    """Every direction at every layer, and the means in all layers, towards either pole."""
    n = len(found["mean_diff"])
    settings = [
        (f"{way}@layer {layer}", {layer: vectors[layer]})
        for way, vectors in found.items()
        for layer in cfg.layers or vectors
    ]
    settings += [
        (f"{way}_all@all layers", {k: v / n for k, v in vectors.items()})
        for way, vectors in found.items()
        if way in MEANS
    ]
    minus = tuple(-c for c in cfg.coefficients)
    for name, vectors in settings:
        for sign, doses in (("", cfg.coefficients), ("-", minus)):
            yield Variant(sign + name, method="activation", alphas=doses, vectors=vectors)


def randoms(cfg: Config, chosen: Mapping[str, Chosen]) -> Iterator[Variant]:
    """Random directions of the same lengths, at the layers and the dose of each chosen one."""
    for way in (w for w in WAYS if w in chosen):
        steered = chosen[way].variant
        for seed in range(cfg.randoms):
            vectors = random_direction(steered.vectors or {}, seed)
            yield replace(steered, name=f"random_{way}", vectors=vectors, seed=seed)


def report(
    cfg: Config,
    rows: pl.DataFrame,
    table: pl.DataFrame,
    chosen: Mapping[str, Chosen],
    found: Mapping[str, Vectors],
) -> None:
    """Print the directions, the standings per data set, and the sentences of the rule."""
    console.print(lengths(found))
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        own = rows.filter(dataset=dataset)
        console.print(standings(part, f"{dataset}: held-out items"))
        for sentence in against_dW(part, WAYS.__contains__):
            console.print(sentence)
        for sentence in other_pole(cfg, own, chosen["-dW"].variant) if "-dW" in chosen else ():
            console.print(f"{dataset}: {sentence}")
        said = [as_random(own, part, way) for way in WAYS if way in chosen]
        console.print(f"{dataset}: random directions that do as much: {', '.join(said)}")
    if edge := () if cfg.match else at_edge(cfg, chosen):
        console.print(f"chosen at the largest coefficient, more might do more: {', '.join(edge)}")


def lengths(found: Mapping[str, Vectors]) -> Table:
    """The printed table: per layer, lengths of the means, and cosines to the first of them."""
    first, *others = found
    means = [way for way in MEANS if way in found]
    heads = ("layer", *(f"|{way}|" for way in means), *(f"cos {way}" for way in others))
    lines = [
        [layer]
        + [found[way][layer].norm().item() for way in means]
        + [torch.cosine_similarity(v, found[way][layer], dim=0).item() for way in others]
        for layer, v in found[first].items()
    ]
    return grid(f"directions by layer: lengths, and cosines to {first}", heads, lines)


def other_pole(cfg: Config, rows: pl.DataFrame, minus: Variant) -> Iterator[str]:
    """The paired differences of the ways towards the other pole to -dW."""
    against = rows.filter(pl.col("variant").str.starts_with("-") | (pl.col("alpha") == 0))
    reference = {"variant": "-dW", "family": minus.family, "alpha": (minus.alphas or (0.0,))[0]}
    for r in compare(against, reference, resamples=cfg.resamples).iter_rows(named=True):
        if r["method"] == "activation":
            lo, hi = r["diff_lo"] or 0.0, r["diff_hi"] or 0.0
            word = "beats" if hi < 0 else "loses to" if lo > 0 else "is not apart from"
            name, _, setting = r["variant"].partition("@")
            yield (
                f"{name} ({setting}, alpha {r['alpha']:g}) {word} -dW towards the other pole: "
                f"{span(r, 'diff', 'diff_lo', 'diff_hi')} nats"
            )


def as_random(rows: pl.DataFrame, table: pl.DataFrame, way: str) -> str:
    """How many random directions do as much as a chosen one, and whether it counts as one."""
    draws = effect_table(
        rows.filter(pl.col("variant").is_in([f"random_{way}", "base"])), KEYS, resamples=2
    )
    as_much = int((draws["effect"] >= table.filter(way=way)["effect"][0]).sum())
    word = "" if as_much < MOST_RANDOM * len(draws) else " (no direction)"
    return f"{way} {as_much} of {len(draws)}{word}"


def at_edge(cfg: Config, chosen: Mapping[str, Chosen]) -> Sequence[str]:
    """The chosen directions whose coefficient is the largest tried."""
    most = max(cfg.coefficients)
    return [
        c.variant.name
        for c in chosen.values()
        if c.variant.method == "activation" and abs((c.variant.alphas or (0.0,))[0]) == most
    ]


if __name__ == "__main__":
    guarded(main, Config)

"""Activation steering as ways of the benchmark: directions read, tried, and beside random ones.

    mean_diff       c v_l at layer l: v_l is the mean difference of the states of the two answers
    mean_diff_all   c v_l / (number of layers) in every layer at once
    pca             c u_l: the first principal direction of the centred differences, |u_l| = |v_l|

at every position, with coefficient c (directions.py). They are read without a persona, as dW is
trained; persona_diff, persona_diff_all and persona_pca are the same with each answer read under the
persona that it was given under. "-" names the way towards the other pole.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import polars as pl

from wscore import effect_table, tensors_sha256
from wscore.effect import KEYS
from wsrun.data.pairs import Pair
from wsrun.report.console import console, progress
from wsrun.score.doses import read_match
from wsrun.score.sweep import Variant
from wsrun.steer.directions import (
    Vectors,
    mean_difference,
    n_layers,
    pair_differences,
    principal,
    random_direction,
)
from wsrun.study.answers import Answering
from wsrun.study.benchmark import Options
from wsrun.study.selection import Chosen
from wsrun.study.session import Loaded

MEANS = ("mean_diff", "persona_diff")
READ = (*MEANS, "pca", "persona_pca")  # what is read; the means are also tried in all layers
WAYS = (*MEANS, *(f"{way}_all" for way in MEANS), "pca", "persona_pca")
MOST_RANDOM = 0.05  # share of random directions that may do as much as one that counts


@dataclass(frozen=True)
class Directed(Options, Answering):
    """Options of the scripts that add directions to activations."""

    layers: tuple[int, ...] | None = None
    """layers to steer, one at a time, counted from 0; each of the model's if not given"""
    coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    """doses of a direction, in units of its layer's mean difference"""


def check_directed(cfg: Directed, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    for name, values in (("--layers", cfg.layers), ("--coefficients", cfg.coefficients)):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError(f"{what}: {name} needs one value or more, each of them once")
    if not all(isfinite(c) and c > 0 for c in cfg.coefficients):
        raise ValueError(f"{what}: --coefficients must be above 0; the way's name has the sign")


def check_layers(cfg: Directed, at: Loaded, what: str) -> None:
    """Refuse layers that the model does not have."""
    n = n_layers(at.model)
    if wrong := [layer for layer in cfg.layers or () if not 0 <= layer < n]:
        raise ValueError(f"{what}: --layers {wrong} asked; the model has layers 0 to {n - 1}")


def by_norm(cfg: Options) -> bool:
    """Whether --match asks for a norm |alpha dW|, which vectors do not have."""
    return bool(cfg.match) and read_match(cfg.match).by == "norm"


def read_directions(
    at: Loaded, answered: Sequence[Pair], ways: Collection[str] = READ
) -> dict[str, Vectors]:
    """{way: {layer: v}} of the named directions; those with a persona where all pairs know theirs.

    Raises as `pair_differences` and `principal`.
    """
    readings = {
        False: {"mean_diff": mean_difference, "pca": principal},
        True: {"persona_diff": mean_difference, "persona_pca": principal},
    }
    if any(p.persona_pos is None or p.persona_neg is None for p in answered):
        del readings[True]
        console.print("no personas in the pairs: directions are read without them only")
    out = {}
    with progress("reading states", len(readings) * -(-2 * len(answered) // 32)) as step:
        for persona, of in readings.items():
            d = pair_differences(at.model, at.tok, answered, persona=persona, batch_done=step)
            out |= {way: vectors(d) for way, vectors in of.items() if way in ways}
    return out


def vectors_sha256(found: Mapping[str, Vectors]) -> dict[str, str]:
    """{way: sha256 of its vectors}, for the provenance."""
    return {way: tensors_sha256({str(n): v for n, v in d.items()}) for way, d in found.items()}


def directions(
    cfg: Directed, found: Mapping[str, Vectors], signs: Sequence[str] = ("", "-")
) -> Iterator[Variant]:
    """Every direction at every layer, and the means in all layers, towards the asked poles."""
    settings = [
        (f"{way}@layer {layer}", {layer: vectors[layer]})
        for way, vectors in found.items()
        for layer in cfg.layers or vectors
    ]
    settings += [
        (f"{way}_all@all layers", {k: v / len(vectors) for k, v in vectors.items()})
        for way, vectors in found.items()
        if way in MEANS
    ]
    doses = {"": cfg.coefficients, "-": tuple(-c for c in cfg.coefficients)}
    for name, vectors in settings:
        for sign in signs:
            yield Variant(sign + name, method="activation", alphas=doses[sign], vectors=vectors)


def random_directions(cfg: Options, chosen: Mapping[str, Chosen]) -> Iterator[Variant]:
    """Random directions of the same lengths, at the layers and the dose of each chosen one."""
    for way in (w for w in WAYS if w in chosen):
        steered = chosen[way].variant
        for seed in range(cfg.randoms):
            vectors = random_direction(steered.vectors or {}, seed)
            yield replace(steered, name=f"random_{way}", vectors=vectors, seed=seed)


def beside_random(
    rows: pl.DataFrame, table: pl.DataFrame, chosen: Mapping[str, Chosen]
) -> list[str]:
    """How many random directions do as much as each chosen one, and whether it counts as one.

    rows, table: of one data set, as of `report_on`. At most one sentence, none without a direction.
    """
    said = [_as_random(rows, table, way) for way in WAYS if way in chosen]
    return [f"random directions that do as much: {', '.join(said)}"] if said else []


def _as_random(rows: pl.DataFrame, table: pl.DataFrame, way: str) -> str:
    draws = effect_table(
        rows.filter(pl.col("variant").is_in([f"random_{way}", "base"])), KEYS, resamples=2
    )
    as_much = int((draws["effect"] >= table.filter(way=way)["effect"][0]).sum())
    word = "" if as_much < MOST_RANDOM * len(draws) else " (no direction)"
    return f"{way} {as_much} of {len(draws)}{word}"


def at_edge(cfg: Directed, chosen: Mapping[str, Chosen]) -> list[str]:
    """The chosen directions whose coefficient is the largest tried; at most one sentence.

    None with --match, where a direction has one coefficient, of its own.
    """
    most = max(cfg.coefficients)
    names = [
        c.variant.name
        for c in chosen.values()
        if c.variant.method == "activation" and abs((c.variant.alphas or (0.0,))[0]) == most
    ]
    if cfg.match or not names:
        return []
    return [f"chosen at the largest coefficient, more might do more: {', '.join(names)}"]

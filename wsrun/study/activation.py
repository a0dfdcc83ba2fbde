"""Activation steering as methods of the benchmark: directions read, tried, and beside random ones.

    mean_diff       c v_l at layer l: v_l is the mean difference of the states of the two answers
    mean_diff_all   c v_l / (number of layers) in every layer at once
    pca             c u_l: the first principal direction of the centred differences, |u_l| = |v_l|
    ablate          h - c (h . r) r in every layer: r = v_l / |v_l| of one layer l, c = 1

at every position, with coefficient c (directions.py; Arditi et al. 2024, arXiv 2406.11717). They
are read without a persona, as dW is trained; persona_diff, persona_diff_all and persona_pca are the
same with each answer read under the persona that it was given under. "-" names the method towards
the other pole.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import polars as pl
import torch
from rich.table import Table

from wscore import effect_table, tensors_sha256
from wscore.stats.contrasts import benchmark_table
from wscore.stats.schema import KEYS
from wsrun.data.pairs import Pair
from wsrun.report.console import console, grid, progress
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import against_dW, difference_to_dW
from wsrun.score.doses import read_match
from wsrun.score.variants import Variant
from wsrun.steer.directions import (
    Vectors,
    mean_difference,
    n_layers,
    pair_differences,
    principal,
)
from wsrun.steer.interventions import AddVectors, DirectionalAblation
from wsrun.study.controls import random_controls
from wsrun.study.options import Answering, BenchmarkOptions, check_once
from wsrun.study.rule import outcome
from wsrun.study.selected import NEGATIVE_DW, Selection
from wsrun.study.session import Session

MEANS = ("mean_diff", "persona_diff")
READ = (*MEANS, "pca", "persona_pca")  # what is read; the means are also tried in all layers
ADDED = (*MEANS, *(f"{name}_all" for name in MEANS), "pca", "persona_pca")
DIRECTIONS = (*ADDED, "ablate")
IS_DIRECTION = " is a direction"  # ends a claim
MOST_RANDOM = 0.05  # share of random directions that may do as much as one that counts


@dataclass(frozen=True)
class Directed(BenchmarkOptions, Answering):
    """Options of the scripts that add directions to activations."""

    layers: tuple[int, ...] | None = None
    """layers to steer, one at a time, counted from 0; each of the model's if not given"""
    coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    """coefficients of a direction, in units of its layer's mean difference"""


def check_directed(cfg: Directed, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    layers = {} if cfg.layers is None else {"layers": cfg.layers}
    check_once(what, {**layers, "coefficients": cfg.coefficients})
    if not all(isfinite(c) and c > 0 for c in cfg.coefficients):
        raise ValueError(f"{what}: --coefficients must be above 0; the method's name has the sign")


def check_layers(cfg: Directed, session: Session, what: str) -> None:
    """Refuse layers that the model does not have."""
    n = n_layers(session.model)
    if wrong := [layer for layer in cfg.layers or () if not 0 <= layer < n]:
        raise ValueError(f"{what}: --layers must be 0 to {n - 1} for this model, got {wrong}")


def by_norm(cfg: BenchmarkOptions) -> bool:
    """Whether --match-dose asks for a norm |alpha dW|, which vectors do not have."""
    return bool(cfg.match_dose) and read_match(cfg.match_dose).by == "norm"


def read_directions(
    session: Session, answered: Sequence[Pair], names: Collection[str] = READ
) -> dict[str, Vectors]:
    """{method: {layer: v}} of the named directions; with a persona where all pairs know theirs.

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
            d = pair_differences(
                session.model, session.tok, answered, persona=persona, batch_done=step
            )
            out |= {name: vectors(d) for name, vectors in of.items() if name in names}
    return out


def vectors_sha256(found: Mapping[str, Vectors]) -> dict[str, str]:
    """{method: sha256 of its vectors}, for the provenance."""
    return {m: tensors_sha256({str(n): v for n, v in d.items()}) for m, d in found.items()}


def directions(
    cfg: Directed, found: Mapping[str, Vectors], signs: Sequence[str] = ("", "-")
) -> Iterator[Variant]:
    """Every direction at every layer, and the means in all layers, towards the asked poles."""
    settings = [
        (f"{method}@layer {layer}", {layer: vectors[layer]})
        for method, vectors in found.items()
        for layer in cfg.layers or vectors
    ]
    settings += [
        (f"{method}_all@all layers", {k: v / len(vectors) for k, v in vectors.items()})
        for method, vectors in found.items()
        if method in MEANS
    ]
    alphas = {"": cfg.coefficients, "-": tuple(-c for c in cfg.coefficients)}
    for name, vectors in settings:
        for sign in signs:
            yield Variant(sign + name, AddVectors(vectors), alphas=alphas[sign])


def ablations(cfg: Directed, vectors: Vectors) -> Iterator[Variant]:
    """The direction of each layer removed from the outputs of all layers."""
    for layer in cfg.layers or vectors:
        r = vectors[layer] / vectors[layer].norm()
        everywhere = DirectionalAblation(dict.fromkeys(vectors, r))
        yield Variant(f"ablate@layer {layer}", everywhere, alphas=(1.0,))


def random_directions(
    cfg: BenchmarkOptions, chosen: Mapping[str, Selection], more: Sequence[str] = ()
) -> Iterator[Variant]:
    """Random directions of the same lengths, at the layers and the coefficient of each chosen.

    more: the names of imported directions.
    """
    for name in (n for n in (*DIRECTIONS, *more) if n in chosen):
        yield from random_controls(chosen[name].variant, cfg.n_random, f"random_{name}")


def beside_random(
    rows: pl.DataFrame, table: pl.DataFrame, more: Sequence[str] = ()
) -> list[RuleResult]:
    """Per data set and chosen direction, how many random ones do as much, and if it counts as one.

    rows, table: as of `compare_on_test`; more: the names of imported directions.
    """
    is_direction = pl.col("method_name").is_in([*DIRECTIONS, *more])
    lines = table.filter(is_direction, pl.col("role") != "unmatched")
    results = []
    for r in lines.iter_rows(named=True):
        dataset, name = r["dataset"], r["method_name"]
        drawn_or_base = pl.col("variant").is_in([f"random_{name}", "base"])
        draws = effect_table(rows.filter(drawn_or_base, dataset=dataset), KEYS, resamples=2)
        as_much = int((draws["effect"] >= r["effect"]).sum())
        few = as_much < MOST_RANDOM * len(draws)
        sentence, claim = f"{name} {as_much} of {len(draws)}", f"{name}{IS_DIRECTION}"
        result = "supported" if few else "refuted"
        results.append(RuleResult(dataset, claim, None, result, sentence, r["variant"]))
    return results


def random_sentences(results: Sequence[RuleResult]) -> list[str]:
    """What `beside_random` found, one sentence per data set; a direction that is none is named."""
    phrases: dict[str, list[str]] = {}
    for r in results:
        if r.claim.endswith(IS_DIRECTION):
            none = "" if r.outcome == "supported" else " (no direction)"
            phrases.setdefault(r.dataset, []).append(f"{r.sentence}{none}")
    return [f"{d}: random directions that do as much: {', '.join(x)}" for d, x in phrases.items()]


def other_pole(
    cfg: BenchmarkOptions, rows: pl.DataFrame, chosen: Mapping[str, Selection]
) -> list[RuleResult]:
    """Of each data set and direction towards the other pole, whether -dW beats it."""
    if NEGATIVE_DW not in chosen:
        return []
    minus, results = chosen[NEGATIVE_DW], []
    negative = rows.filter(pl.col("variant").str.starts_with("-") | (pl.col("alpha") == 0))
    reference = {"variant": NEGATIVE_DW, "family": minus.variant.family, "alpha": minus.alpha}
    table = benchmark_table(negative, reference, resamples=cfg.resamples)
    for r in table.filter(method=AddVectors.method).iter_rows(named=True):
        lo, hi = r["diff_lo"], r["diff_hi"]
        down = {"diff_lo": None if hi is None else -hi, "diff_hi": None if lo is None else -lo}
        name, _, setting = r["variant"].partition("@")
        sentence = (
            f"{name} ({setting}, alpha {r['alpha']:g}) {against_dW(down)} {NEGATIVE_DW} towards "
            f"the other pole: {difference_to_dW(r)} nats"
        )
        claim = f"{NEGATIVE_DW} beats {name}"
        results.append(RuleResult(r["dataset"], claim, None, outcome(down), sentence, r["variant"]))
    return results


def at_edge(cfg: Directed, chosen: Mapping[str, Selection], more: Sequence[str] = ()) -> list[str]:
    """The chosen directions whose coefficient is the largest tried; at most one sentence.

    None with --match-dose, where a direction has one coefficient, of its own.
    """
    names = [
        s.variant.name
        for name, s in chosen.items()
        if name.removeprefix("-") in (*ADDED, *more) and abs(s.alpha) == max(cfg.coefficients)
    ]
    if cfg.match_dose or not names:
        return []
    return [f"chosen at the largest coefficient, more might do more: {', '.join(names)}"]


def lengths(found: Mapping[str, Vectors]) -> Table:
    """The printed table: per layer, lengths of the means, and cosines to the first of them."""
    first, *others = found
    means = [name for name in MEANS if name in found]
    heads = ("layer", *(f"|{name}|" for name in means), *(f"cos {name}" for name in others))
    lines = [
        [layer]
        + [found[name][layer].norm().item() for name in means]
        + [torch.cosine_similarity(v, found[name][layer], dim=0).item() for name in others]
        for layer, v in found[first].items()
    ]
    return grid(f"directions by layer: lengths, and cosines to {first}", heads, lines)

"""Does dW beat adding a vector to the activations, made from the very same answers?

Question:   dW and activation steering can be had from one set of paired answers. At the layer and
            coefficient that do best on validation items, does a direction in the residual stream
            move held-out items as far as dW does?
Prediction: no direction beats dW; the mean difference of one middle layer comes nearest, and the
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
from pathlib import Path

import polars as pl
import torch

from wscore import effect_table, tensors_sha256
from wscore.effect import KEYS
from wsrun.answers import Made, kept_pairs
from wsrun.benchmark import (
    Chosen,
    Options,
    against_dW,
    check,
    compare,
    load_splits,
    nothing,
    of_dW,
    picked,
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
from wsrun.items import load_personas
from wsrun.pairs import NEW_TOKENS, load_questions
from wsrun.runs import Loaded, read_pairs, record, run, share, write
from wsrun.score import Variant
from wsrun.tables import check_writable, items_sha256, write_table

EXPERIMENT = "t1_activation"
WAYS = ("mean_diff", "mean_diff_all", "pca", "persona_diff", "persona_diff_all", "persona_pca")
AGAINST = ("-dW", *(f"-{w}" for w in WAYS))
MOST_RANDOM = 0.05  # share of random directions that may do as much as one that counts


@dataclass(frozen=True)
class Config(Options):
    """Options of T1."""

    layers: tuple[int, ...] | None = None
    """layers to steer, one at a time, counted from 0; each of the model's if not given"""
    coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """doses of a direction, in units of its layer's mean difference"""
    pos: str = "honest"
    """persona of personas.json whose answers the directions point towards"""
    neg: str = "dishonest"
    """persona whose answers they point away from"""
    filter_pairs: bool = False
    """use the pairs that t0_train --filter-pairs trains on"""
    max_new_tokens: int = NEW_TOKENS
    """longest answer, as in t0_train"""
    pairs: Path = Path("artifacts/pairs")
    """folder of generated pairs; t0_train's, of the first seed, are found here"""


def main(cfg: Config) -> None:
    """Read directions, choose on validation items, compare on test items, print the rule."""
    check(cfg, "t1")
    check_own(cfg)
    share(cfg)
    validation, test = load_splits(cfg)
    pairs = read_pairs(test.model, cfg)
    made = read_answers(cfg, test)
    console.print(f"seed {cfg.seeds[0]}: {made}")
    found = read_directions(test, made)
    candidates = [*of_dW(cfg, pairs), *directions(cfg, found)]
    runs = sum(len(c.alphas or ()) for c in candidates)
    tried = run(cfg, f"{EXPERIMENT}.validation", validation, candidates, runs)
    if tried is None:  # a shard
        return
    chosen = picked(tried, candidates, cfg.most_flagged, AGAINST)
    controls = [nothing(chosen), *randoms(cfg, chosen)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls)
    hashes = {way: tensors_sha256({str(n): v for n, v in d.items()}) for way, d in found.items()}
    context = {"answers": items_sha256(made.pairs), "kept": made[1:], "vectors": hashes}
    provenance = record(cfg, test, pairs, **context)
    path = write(cfg, EXPERIMENT, rows, table, provenance)
    write_table(effect_table(tried), path.with_suffix(".validation.parquet"), provenance)
    report(cfg, rows, table, chosen, found)
    console.print("next: python experiments/t3_prompts.py, the same question of prompts")


def check_own(cfg: Config) -> None:
    """Refuse options of this script that cannot work."""
    if cfg.pos == cfg.neg:
        raise ValueError(f"t1: --pos and --neg are both {cfg.pos!r}; name two personas")
    if cfg.max_new_tokens < 1:
        raise ValueError(f"t1: --max-new-tokens {cfg.max_new_tokens} asked; it must be 1 or more")
    for name, values in (("--layers", cfg.layers), ("--coefficients", cfg.coefficients)):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError(f"t1: {name} needs one value or more, each of them once")
    if not all(isfinite(c) and c > 0 for c in cfg.coefficients):
        raise ValueError("t1: --coefficients must be above 0; both directions are tried by itself")
    check_writable(cfg.pairs)


def read_answers(cfg: Config, at: Loaded) -> Made:
    """The answers that dW of the first seed is trained on: found, or made again."""
    personas = load_personas(cfg.data / "personas.json", cfg.pos, cfg.neg)
    questions = load_questions(cfg.data / "questions.jsonl", "train")
    with progress("generating pairs", -(-2 * len(questions) // 64)) as step:
        return kept_pairs(
            at.model,
            at.tok,
            questions,
            *personas,
            seed=cfg.seeds[0],
            folder=cfg.pairs,
            max_new_tokens=cfg.max_new_tokens,
            filtered=cfg.filter_pairs,
            batch_done=step,
        )


def read_directions(at: Loaded, made: Made) -> dict[str, Vectors]:
    """{way: {layer: v}} of the directions that steer one layer, with and without persona."""
    out = {}
    with progress("reading states", 2 * -(-2 * len(made.pairs) // 32)) as step:
        for persona, mean, pca in ((False, "mean_diff", "pca"), (True, WAYS[3], WAYS[5])):
            d = pair_differences(at.model, at.tok, made.pairs, persona=persona, batch_done=step)
            out |= {mean: mean_difference(d), pca: principal(d)}
    return out


def directions(cfg: Config, found: Mapping[str, Vectors]) -> Iterator[Variant]:
    """Every direction at every layer, and the means in all layers, towards either pole."""
    n = len(found["mean_diff"])
    if wrong := [layer for layer in cfg.layers or () if not 0 <= layer < n]:
        raise ValueError(f"t1: --layers {wrong} asked; the model has layers 0 to {n - 1}")
    settings = [
        (f"{way}@layer {layer}", {layer: vectors[layer]})
        for way, vectors in found.items()
        for layer in cfg.layers or vectors
    ]
    for way in ("mean_diff", "persona_diff"):
        settings.append((f"{way}_all@all layers", {k: v / n for k, v in found[way].items()}))
    minus = tuple(-c for c in cfg.coefficients)
    for name, vectors in settings:
        for sign, doses in (("", cfg.coefficients), ("-", minus)):
            yield Variant(sign + name, method="activation", alphas=doses, vectors=vectors)


def randoms(cfg: Config, chosen: Mapping[str, Chosen]) -> Iterator[Variant]:
    """Random directions of the same lengths, at the layers and the dose of each chosen one."""
    for way in WAYS:
        steered = chosen[way].variant
        for draw in range(cfg.randoms):
            vectors = random_direction(steered.vectors or {}, draw)
            yield replace(steered, name=f"random_{way}", vectors=vectors, seed=draw)


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
        for sentence in against_dW(cfg, part, WAYS.__contains__):
            console.print(sentence)
        for sentence in other_pole(cfg, own, chosen["-dW"].variant):
            console.print(f"{dataset}: {sentence}")
        said = [as_random(own, part, way) for way in WAYS]
        console.print(f"{dataset}: random directions that do as much: {', '.join(said)}")
    if edge := at_edge(cfg, chosen):
        console.print(f"chosen at the largest coefficient, more might do more: {', '.join(edge)}")


def lengths(found: Mapping[str, Vectors]):
    """The printed table: per layer, lengths of the means and cosines to the first of them."""
    first, *others = found
    heads = ("layer", f"|{first}|", "|persona_diff|", *(f"cos {way}" for way in others))
    lines = [
        [layer, v.norm().item(), found["persona_diff"][layer].norm().item()]
        + [torch.cosine_similarity(v, found[way][layer], dim=0).item() for way in others]
        for layer, v in found[first].items()
    ]
    return grid(f"directions by layer: length, and cosine to {first}", heads, lines)


def other_pole(cfg: Config, rows: pl.DataFrame, minus: Variant) -> Iterator[str]:
    """The paired differences of the ways towards the other pole to -dW."""
    against = rows.filter(pl.col("variant").str.starts_with("-") | (pl.col("alpha") == 0))
    reference = {"variant": "-dW", "family": minus.family, "alpha": (minus.alphas or (0.0,))[0]}
    for r in compare(against, reference, resamples=cfg.resamples).iter_rows(named=True):
        if r["method"] == "activation":
            word = "goes further than" if (r["diff_hi"] or 0) < 0 else "does not go further than"
            yield f"{r['variant']} {word} -dW: {span(r, 'diff', 'diff_lo', 'diff_hi')} nats"


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

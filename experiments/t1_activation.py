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

Directions (wsrun/activation.py): mean_diff is v_l, the mean difference of the states of the two
answers at layer l, over the response's tokens and not centred; mean_diff_all is v_l / (number of
layers) in every layer at once; pca is the first principal direction of the centred differences, of
v_l's length. They are read without a persona, as dW is trained; persona_diff, persona_diff_all and
persona_pca are the same with each answer read under the persona that it was given under. A
coefficient c adds c v_l at every position. "-" names the way towards the other pole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl
import torch
from rich.table import Table

from wscore import effect_table
from wsrun.report import curves
from wsrun.report.console import console, grid, guarded
from wsrun.report.standings import against_dW, span, standings
from wsrun.report.tables import items_sha256, write_table
from wsrun.score.sweep import Variant
from wsrun.steer.directions import Vectors
from wsrun.study.activation import (
    MEANS,
    WAYS,
    Directed,
    at_edge,
    beside_random,
    by_norm,
    check_directed,
    check_layers,
    directions,
    random_directions,
    read_directions,
    vectors_sha256,
)
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.benchmark import check, choose, compare, load_splits, of_dW, report_on
from wsrun.study.controls import nothing
from wsrun.study.next_command import say_next
from wsrun.study.selection import Chosen
from wsrun.study.session import draw, read_pairs, record, share, write

EXPERIMENT = "t1_activation"
AGAINST = ("-dW", *(f"-{w}" for w in WAYS))


@dataclass(frozen=True)
class Config(Directed):
    """Options of T1."""


def main(cfg: Config) -> None:
    """Read directions, choose on validation items, compare on test items, print the rule."""
    check(cfg, "t1")
    check_answering(cfg, "t1")
    check_directed(cfg, "t1")
    if by_norm(cfg):
        raise ValueError(f"t1: --match {cfg.match} asked; vectors have no |alpha dW|, give kl:X")
    share(cfg)
    sources = read_sources(cfg)
    validation, test = load_splits(cfg)
    check_layers(cfg, test, "t1")
    pairs = read_pairs(test.model, cfg)
    (answered,) = answers(cfg, test.model, test.tok, sources, cfg.seeds[:1]).values()
    found = read_directions(test, answered)
    candidates = [*of_dW(cfg, pairs), *directions(cfg, found)]
    chosen = choose(cfg, EXPERIMENT, validation, candidates, AGAINST)
    if chosen is None:  # a shard
        return
    controls = [nothing(chosen), *random_directions(cfg, chosen)]
    rows, table = report_on(cfg, EXPERIMENT, test, chosen, controls)
    hashes = {"answers": items_sha256(answered), "vectors": vectors_sha256(found)}
    made = record(cfg, test, pairs, **hashes)
    path = write(cfg, EXPERIMENT, rows, table, made)
    tried = effect_table(chosen.rows, resamples=cfg.resamples)
    write_table(tried, path.with_suffix(".validation.parquet"), made)
    report(cfg, rows, table, chosen, found)
    if not cfg.match:  # with it, every candidate has one coefficient, of its own
        own = tried.filter(method="activation")
        question = "At which layer and coefficient does a direction steer? (validation items)"
        draw(curves.layers, own, path, question, cfg.most_flagged)
    say_next(cfg, "t3_prompts", "the same question of prompts")


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
        for sentence in beside_random(own, part, chosen):
            console.print(f"{dataset}: {sentence}")
    for sentence in at_edge(cfg, chosen):
        console.print(sentence)


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


if __name__ == "__main__":
    guarded(main, Config)

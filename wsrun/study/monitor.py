"""Fine-tunes along a behaviour direction (T14): updates, directions with controls, cosines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import polars as pl
from rich.table import Table

from wscore import (
    DeltaLike,
    Factored,
    add,
    inner,
    norm,
    scale,
    site,
    spectrum_null,
    subset,
    wilson,
)
from wscore.delta import entry_norm
from wscore.factored import meta
from wsrun.adapters.extract import PairDelta
from wsrun.report.console import grid
from wsrun.report.effect_figures import intervals
from wsrun.report.verdicts import RuleResult

UPDATES = ("tau_pos", "tau_neg", "drift", "random", "planted")
EXPECTED = {"tau_pos": "towards", "tau_neg": "away", "random": "no", "planted": "towards"}
"""what the question says of an update; of the drift it says nothing"""
HEADS = ("family", "update", "cosine", "controls", "p", "found", "dose of w", "common")


class Direction(NamedTuple):
    """w of one family at norm 1, the norm of its first dW, and the directions it is held against.

    squares: |t|^2 of every tensor t, of w and of each control.
    """

    w: DeltaLike
    size: float
    controls: list[DeltaLike]
    squares: list[dict[str, float]]


def direction(parts: Sequence[DeltaLike], draws: int) -> Direction:
    """w = sum_s dW_s / |dW_s|, then at norm 1, with its random and rotated controls."""
    w = add(*(scale(1 / norm(part), part) for part in parts))
    w = scale(1 / norm(w), w)
    drawn = [spectrum_null(w, 5000 + draw) for draw in range(draws)]
    controls = [*drawn, *islice(moved_layers(w), draws)]
    return Direction(w, norm(parts[0]), controls, [squares(d) for d in (w, *controls)])


def squares(d: DeltaLike) -> dict[str, float]:
    """|t|^2 of every tensor."""
    return {name: entry_norm(d, name) ** 2 for name in d}


def moved_layers(w: DeltaLike) -> Iterator[DeltaLike]:
    """w with every layer's change moved 1, 2, ... layers on, within its module: none stays.

    Nothing where w does not have the same tensors, in the same shapes, in all its layers.
    """
    trained = sorted({site(name).layer for name in w})
    for shift in range(1, len(trained)):
        to = dict(zip(trained, trained[shift:] + trained[:shift], strict=True))
        source = {in_layer(name, to): name for name in w}
        if set(source) != set(w) or any(
            meta(w, a).shape != meta(w, b).shape for a, b in source.items()
        ):
            return
        if isinstance(w, Factored):
            yield Factored({name: w.factors(source[name]) for name in w})
        else:
            yield {name: w[source[name]] for name in w}


def in_layer(name: str, to: Mapping[int, int]) -> str:
    """The name of the same module in another layer."""
    layer = site(name).layer
    return name.replace(f".{layer}.", f".{to[layer]}.", 1)


def updates(pair: PairDelta, w: DeltaLike, planted: float, draw: int) -> dict[str, DeltaLike]:
    """The updates that are looked at; random ones are drawn anew for each direction."""
    random = spectrum_null(pair.pos, 9000 + draw)
    return {
        "tau_pos": pair.pos,
        "tau_neg": pair.neg,
        "drift": scale(0.5, add(pair.pos, pair.neg)),
        "random": random,
        "planted": plant(random, w, planted),
    }


def plant(random: DeltaLike, w: DeltaLike, share: float) -> DeltaLike:
    """random + share w, w restricted to random's tensors and brought to random's norm there."""
    names = [n for n in w if n in random]
    restricted = subset(w, names)
    return add(random, scale(share * norm(subset(random, names)) / norm(restricted), restricted))


def cosines(tau: DeltaLike, d: Direction) -> Iterator[dict]:
    """cos(tau, w) over common tensors, in all layers and in each, ranked among the controls'."""
    names = [n for n in tau if n in d.w]
    if not names:
        raise ValueError("t14: an update and a direction share no tensors; compare other families")
    size = squares(tau)
    held = [{n: inner(subset(tau, [n]), subset(c, [n])) for n in names} for c in (d.w, *d.controls)]
    for layer in (None, *sorted({site(n).layer for n in names})):
        layer_names = [n for n in names if layer in (None, site(n).layer)]

        def over(of: Mapping[str, float], layer_names=layer_names) -> float:
            return sum(of[n] for n in layer_names)

        cos, *nulls = (
            over(x) / sqrt(over(size) * over(y)) for x, y in zip(held, d.squares, strict=True)
        )
        p = (1 + sum(abs(x) >= abs(cos) for x in nulls)) / (1 + len(nulls))
        yield {
            "layer": layer,
            "cosine": cos,
            "null_lo": min(nulls),
            "null_hi": max(nulls),
            "nulls": len(nulls),
            "p": p,
            "detected": p <= 0.05,
            "found": "no" if p > 0.05 else "towards" if cos > 0 else "away",
            "along": over(held[0]) / over(d.squares[0]) / d.size,
            "common": sum(size[n] for n in names) / sum(size.values()),
        }


def cosine_grids(table: pl.DataFrame, families: Sequence[str]) -> Iterator[Table]:
    """The printed tables: updates along their own family's direction, then both poles along all."""
    whole = table.filter(pl.col("layer").is_null())
    own_family = whole.filter(pl.col("family") == pl.col("direction"))
    lines = [
        [
            r["family"],
            r["update"],
            f"{r['cosine']:+.3f}",
            f"{r['null_lo']:+.3f} to {r['null_hi']:+.3f}",
            r["p"],
            r["found"],
            r["along"],
            r["common"],
        ]
        for r in own_family.iter_rows(named=True)
    ]
    yield grid("updates along their own family's direction of other seeds", HEADS, lines)
    for name in ("tau_pos", "tau_neg"):
        cells = {
            (r["family"], r["direction"]): f"{r['cosine']:+.2f}" + "*" * r["detected"]
            for r in whole.filter(update=name).iter_rows(named=True)
        }
        lines = [[f, *(cells[f, g] for g in families)] for f in families]
        title = f"cosine of {name} (line) with directions of other seeds (column); * detected"
        yield grid(title, (name, *families), lines)


def detection_rates(table: pl.DataFrame) -> Iterator[str]:
    """Per kind of update, over all layers and in single ones, how many are detected."""
    whole = table.filter(pl.col("layer").is_null())
    for name in UPDATES:
        for layers, part in (("all layers", whole), ("single layers", table.drop_nulls("layer"))):
            lines = part.filter(update=name)
            counts = {w: (lines["found"] == w).sum() for w in ("towards", "away", "no")}
            each = ", ".join(f"{w} {n}" for w, n in counts.items())
            lo, hi = wilson(lines["detected"].mean(), len(lines))  # type: ignore[arg-type]
            yield (
                f"{name}, {layers}: detected in {lines['detected'].sum()} of {len(lines)} "
                f"[{lo:.2f}, {hi:.2f}]; {each}; expected {EXPECTED.get(name, 'nothing')}"
            )


def detections(table: pl.DataFrame) -> Iterable[RuleResult]:
    """Whether each update is found as expected along its own family's direction."""
    own_family = table.filter(pl.col("layer").is_null(), pl.col("family") == pl.col("direction"))
    for r in own_family.iter_rows(named=True):
        if expected := EXPECTED.get(r["update"]):
            outcome = "supported" if r["found"] == expected else "refuted"
            controls = f"controls {r['null_lo']:+.3f} to {r['null_hi']:+.3f}, p = {r['p']:.2g}"
            sentence = f"{r['found']} along w, cosine {r['cosine']:+.3f}, {controls}"
            claim = f"{r['update']} is found: {expected}"
            yield RuleResult("weights", claim, r["family"], outcome, sentence)


def cosine_figure(table: pl.DataFrame, path: Path) -> str:
    """Cosines in all layers of every kind of update, with its own and with other directions."""
    same = pl.col("family") == pl.col("direction")
    cosine = pl.col("cosine")
    lines = (
        table.filter(pl.col("layer").is_null())
        .with_columns(
            panel=pl.when(same)
            .then(pl.lit("own family's direction"))
            .otherwise(pl.lit("other families' directions")),
            role=pl.when(pl.col("update") == "random")
            .then(pl.lit("control"))
            .otherwise(pl.lit("update")),
        )
        .group_by("panel", "update", "role", maintain_order=True)
        .agg(value=cosine.mean(), lo=cosine.min(), hi=cosine.max())
        .rename({"update": "label"})
    )
    caption = (
        "Mean over pairs of an update and a behaviour direction of other seeds; bars from the "
        f"smallest to the largest. Over all layers. Model: {table['model'][0]}. "
    )
    question = "How far did a fine-tune move along a behaviour direction?"
    return intervals(lines, path, question, "cosine", caption, what="update")

"""How far did a fine-tune move along a behaviour direction, and can one tell that it did?

Question:   from weights alone, does the cosine between the update tau of a fine-tune and a
            behaviour direction w, dW of other seeds, say that the fine-tune moved towards the
            behaviour, and stay silent on an update that did not?
Prediction: tau_pos lies along w and tau_neg against it in every pair of families; a planted update,
            random + 0.3 w, is found; random updates are not.
Rule:       an update is detected where its cosine lies outside the range of those of the same
            update with the control directions: |cos| above all of them, rank p <= 0.05 two-sided.
            Towards or away by the sign. Over many random updates 1 in 21 is found by chance.

    python experiments/t14_monitor.py
    python experiments/t14_monitor.py --direction-seeds 1 --families lora oft

The monitoring of Fierro & Roger 2025 (arXiv 2511.05408). Control directions are random ones with
w's own singular values (20 draws), and w with its layers rotated, so that none stays where it was;
none of them is of another behaviour. Updates are tau_pos and tau_neg of every family at --seed;
drift, their mean, which is what both poles learned; random, an update with tau_pos's singular
values in random directions; planted, random + 0.3 w of equal norms. w is the sum of a family's dW
over --direction-seeds, each at norm 1. Families adapt different tensors (IA3 only k, v and down),
so a cosine is taken over the tensors that both change: `common` is their share of |tau|^2. along =
<tau, w>/|w|^2 over them is the dose of w in the update, w at the norm of its first seed's dW.
Layers have lines of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import polars as pl

from wscore import (
    DeltaLike,
    Factored,
    add,
    inner,
    norm,
    only,
    scale,
    site,
    spectrum_null,
    tensors_sha256,
    wilson,
)
from wscore.delta import entry_norm
from wscore.factored import outline
from wsrun.adapters.configs import DEFAULT_FAMILIES, check_family
from wsrun.adapters.extract import PairDelta, pair_deltas
from wsrun.models.load import limit_threads, load_model
from wsrun.report import curves
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, plain, provenance, write_table
from wsrun.study.next_command import say_next
from wsrun.study.session import draw

EXPERIMENT = "t14_monitor"
UPDATES = ("tau_pos", "tau_neg", "drift", "random", "planted")
EXPECTED = {"tau_pos": "towards", "tau_neg": "away", "random": "no", "planted": "towards"}
"""what the question says of an update; of the drift it says nothing"""


@dataclass(frozen=True)
class Config:
    """Options of T14."""

    families: tuple[str, ...] = DEFAULT_FAMILIES
    """adapter families, of updates and of directions"""
    seed: int = 0
    """whose adapters are the fine-tunes"""
    direction_seeds: tuple[int, ...] = (1, 2)
    """whose dW are the behaviour directions; never that of the fine-tunes"""
    draws: int = 20
    """random control directions for every direction"""
    planted: float = 0.3
    """how much of the direction is planted, in units of the random update's norm"""
    model: str = "data/organism"
    """model folder or hub name"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s<seed>/pos and /neg, trained on that model"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


class Direction(NamedTuple):
    """w of one family at norm 1, the norm of its first dW, and the directions it is held against.

    squares: |t|^2 of every tensor t, of w and of each control.
    """

    w: DeltaLike
    size: float
    controls: list[DeltaLike]
    squares: list[dict[str, float]]


def main(cfg: Config) -> None:
    """Read adapters, take every cosine, write one table, print what was detected."""
    check(cfg)
    model, _ = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    pairs = read(cfg, lambda folder: pair_deltas(model, folder))
    wanted = len(cfg.families) ** 2
    with progress("cosines", wanted) as step:
        lines = list(measure(cfg, pairs, step))
    table = pl.DataFrame(lines, infer_schema_length=None).with_columns(
        pl.lit(EXPERIMENT).alias("experiment"), pl.lit(cfg.model).alias("model")
    )
    base = tensors_sha256(dict(model.named_parameters()))
    deltas = {f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()}
    made = provenance(plain(asdict(cfg)), base=base, deltas=deltas)
    path = write_table(table, cfg.out / f"{EXPERIMENT}.parquet", made)
    console.print(f"table {path}")
    draw(picture, table, path)
    report(cfg, table)


def picture(table: pl.DataFrame, path: Path) -> str:
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
    return curves.ranges(lines, path, question, "cosine", caption, what="update")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    for family in cfg.families:
        check_family(family)
    for name, values in (("--families", cfg.families), ("--direction-seeds", cfg.direction_seeds)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"t14: {name} needs one value or more, each of them once")
    if cfg.seed in cfg.direction_seeds:
        raise ValueError(
            f"t14: seed {cfg.seed} is among --direction-seeds; a direction must not be made of the "
            "fine-tune it is to find"
        )
    if cfg.draws < 20:
        raise ValueError(f"t14: --draws {cfg.draws} asked; p <= 0.05 takes 20 or more")
    if not cfg.planted > 0:
        raise ValueError("t14: --planted must be above 0")
    check_writable(cfg.out)


def read(cfg: Config, pair: Callable[[Path], PairDelta]) -> dict[tuple[str, int], PairDelta]:
    """The proved deltas of every family, at the seed of the fine-tunes and of the directions."""
    seeds = (cfg.seed, *cfg.direction_seeds)
    pairs = {}
    with progress("reading adapters", len(cfg.families) * len(seeds)) as step:
        for family in cfg.families:
            for seed in seeds:
                folder = cfg.adapters / f"{family}-s{seed}"
                pairs[family, seed] = pair(folder)
                if pairs[family, seed].family != family:
                    raise ValueError(f"t14: {str(folder)!r} holds other adapters; rename it")
                step(folder.name)
    return pairs


def direction(cfg: Config, parts: Sequence[DeltaLike]) -> Direction:
    """w = sum_s dW_s / |dW_s|, then at norm 1, with its random and rotated controls."""
    w = scale(1 / norm(parts[0]), parts[0])
    for part in parts[1:]:
        w = add(w, scale(1 / norm(part), part))
    w = scale(1 / norm(w), w)
    drawn = [spectrum_null(w, 5000 + draw) for draw in range(cfg.draws)]
    controls = [*drawn, *islice(rotated(w), cfg.draws)]
    return Direction(w, norm(parts[0]), controls, [squares(d) for d in (w, *controls)])


def squares(d: DeltaLike) -> dict[str, float]:
    """|t|^2 of every tensor."""
    return {name: entry_norm(d, name) ** 2 for name in d}


def rotated(w: DeltaLike) -> Iterator[DeltaLike]:
    """w with every layer's change moved 1, 2, ... layers on, within its module: none stays.

    Nothing where w does not have the same tensors, in the same shapes, in all its layers.
    """
    trained = sorted({site(name).layer for name in w})
    for shift in range(1, len(trained)):
        to = dict(zip(trained, trained[shift:] + trained[:shift], strict=True))
        source = {moved(name, to): name for name in w}
        if set(source) != set(w) or any(
            outline(w, a).shape != outline(w, b).shape for a, b in source.items()
        ):
            return
        if isinstance(w, Factored):
            yield Factored({name: w.factors(source[name]) for name in w})
        else:
            yield {name: w[source[name]] for name in w}


def moved(name: str, to: Mapping[int, int]) -> str:
    """The name of the same module in another layer."""
    layer = site(name).layer
    return name.replace(f".{layer}.", f".{to[layer]}.", 1)


def updates(cfg: Config, pair: PairDelta, w: DeltaLike, draw: int) -> dict[str, DeltaLike]:
    """The updates that are looked at; random ones are drawn anew for each direction."""
    random = spectrum_null(pair.pos, 9000 + draw)
    return {
        "tau_pos": pair.pos,
        "tau_neg": pair.neg,
        "drift": scale(0.5, add(pair.pos, pair.neg)),
        "random": random,
        "planted": plant(random, w, cfg.planted),
    }


def plant(random: DeltaLike, w: DeltaLike, share: float) -> DeltaLike:
    """random + share w, w restricted to random's tensors and brought to random's norm there."""
    names = [n for n in w if n in random]
    own = only(w, names)
    return add(random, scale(share * norm(only(random, names)) / norm(own), own))


def measure(cfg: Config, pairs: Mapping, step: Callable[[str], None]) -> Iterator[dict]:
    """One line for every family, direction, update, and layer (None: all of them)."""
    for j, of in enumerate(cfg.families):
        found = direction(cfg, [pairs[of, s].dW for s in cfg.direction_seeds])
        for i, family in enumerate(cfg.families):
            pair = pairs[family, cfg.seed]
            tags = {"family": family, "direction": of, "seed": cfg.seed}
            for name, tau in updates(cfg, pair, found.w, i + 100 * j).items():
                for line in cosines(tau, found):
                    yield tags | {"update": name} | line
            step(f"{family} along {of}")


def cosines(tau: DeltaLike, d: Direction) -> Iterator[dict]:
    """cos(tau, w) over common tensors, in all layers and in each, ranked among the controls'."""
    names = [n for n in tau if n in d.w]
    if not names:
        raise ValueError("t14: an update and a direction share no tensors; compare other families")
    size = squares(tau)
    held = [{n: inner(only(tau, [n]), only(c, [n])) for n in names} for c in (d.w, *d.controls)]
    for layer in (None, *sorted({site(n).layer for n in names})):
        own = [n for n in names if layer in (None, site(n).layer)]

        def over(of: Mapping[str, float], own=own) -> float:
            return sum(of[n] for n in own)

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


def report(cfg: Config, table: pl.DataFrame) -> None:
    """Print the cosines of every family with its own and with other directions, and the counts."""
    whole = table.filter(pl.col("layer").is_null())
    own = whole.filter(pl.col("family") == pl.col("direction"))
    heads = ("family", "update", "cosine", "controls", "p", "found", "dose of w", "common")
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
        for r in own.iter_rows(named=True)
    ]
    console.print(grid("updates along their own family's direction of other seeds", heads, lines))
    for name in ("tau_pos", "tau_neg"):
        cells = {
            (r["family"], r["direction"]): f"{r['cosine']:+.2f}" + "*" * r["detected"]
            for r in whole.filter(update=name).iter_rows(named=True)
        }
        lines = [[f, *(cells[f, g] for g in cfg.families)] for f in cfg.families]
        title = f"cosine of {name} (line) with directions of other seeds (column); * detected"
        console.print(grid(title, (name, *cfg.families), lines))
    for name in UPDATES:
        for layers, part in (("all layers", whole), ("single layers", table.drop_nulls("layer"))):
            found = part.filter(update=name)
            counts = {w: (found["found"] == w).sum() for w in ("towards", "away", "no")}
            said = ", ".join(f"{w} {n}" for w, n in counts.items())
            lo, hi = wilson(found["detected"].mean(), len(found))  # type: ignore[arg-type]
            console.print(
                f"{name}, {layers}: detected in {found['detected'].sum()} of {len(found)} "
                f"[{lo:.2f}, {hi:.2f}]; {said}; expected {EXPECTED.get(name, 'nothing')}"
            )
    say_next(cfg, "report", "one page over all tables")


if __name__ == "__main__":
    guarded(main, Config)

"""Do the intervals, p values and verdicts of wscore err as often as they say?

Question:   over many simulated data sets, how often does a 95 % interval cover what was planted, is
            p below 0.05 where nothing was, and does a rule support what is false?
Prediction: the interval of an effect covers in 93 to 97 % with normal noise and one seed.
Rule:       holds if it does so at every number of clusters; all else is reported.

    python experiments/bench_coverage.py

Row tables through the real effect_table: clusters of two rows (labels +1 and -1), gain = planted
effect + seed + cluster + row, where cluster and row have variance 1/2 each, of a normal, skewed or
heavy-tailed shape. Counted over independent data sets:
  effect    the planted effect, 1, lies in [lo, hi] at level 0.95
  retained  the planted ratio, 0.7, lies in [retained_lo, retained_hi], where these are given
  p         p < 0.05 for a variant without effect
  verdict   a decision rule says supported though the planted truth is against it
Beside wscore's intervals stand the plain percentiles, and percentiles that allow for few clusters
but not for few seeds. +- is the Monte Carlo error of a rate r over N data sets,
sqrt(r (1 - r)/N); the interval of a rate of verdicts is Wilson's (1927).
"""

from wsrun.script import guarded

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import e, sqrt
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit

from wscore import Locus, Rule, SharedCore, effect_table, verdict, wilson
from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.study.profile import conclude, save_lines, show

NAME = "bench_coverage"
FAMILIES = ("lora", "dora", "pissa", "delora", "oft")
VARIANTS = ("full", "keep", "none")  # of a data set of coverage
RATIO = 0.7  # planted share of what keep retains
PER_TABLE = 1000  # lines of one effect table, which share a draw of resamples
SLICES = ("early", "middle", "late")
SHAPES: dict[str, Callable[[Generator, tuple], np.ndarray]] = {  # mean 0, variance 1
    "normal": lambda random, shape: random.standard_normal(shape),
    "exponential": lambda random, shape: random.standard_exponential(shape) - 1,
    "lognormal": lambda random, shape: (random.lognormal(size=shape) - sqrt(e)) / sqrt((e - 1) * e),
    "t5": lambda random, shape: random.standard_t(5, shape) / sqrt(5 / 3),
}


@dataclass(frozen=True)
class Config:
    """Options of bench_coverage."""

    sets: int = 2000
    """data sets per line of coverage"""
    clusters: tuple[int, ...] = (20, 60, 200)
    """numbers of clusters, one seed"""
    noise: tuple[str, ...] = tuple(SHAPES)
    """shapes of the noise of clusters and rows: normal, exponential, lognormal, t5"""
    seeds: tuple[int, ...] = (3, 5)
    """numbers of seeds, with 60 clusters and normal noise"""
    seed_sds: tuple[float, ...] = (0.0, 0.3)
    """sd between seeds; that of a mean over 60 clusters is 0.11"""
    verdicts: int = 300
    """data sets per line of verdicts, with 60 clusters and normal noise"""
    resamples: int = 2000
    """bootstrap resamples"""
    seed: int = 0
    """seed of data sets and resamples"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


class Cell(NamedTuple):
    """One kind of data set."""

    noise: str = "normal"
    clusters: int = 60
    seeds: int = 1
    seed_sd: float = 0.0


class Truth(NamedTuple):
    """What is planted in a claim's lines: gain = mean (1 + z) + quirk z + own noise.

    z is common to all lines of a data set; mean and quirk are of (whole, keep, drop, control).
    """

    name: str
    mean: tuple[float, float, float, float]
    quirk: tuple[float, float, float, float] = (0, 0, 0, 0)
    own: float = 0.5
    first_keep: float | None = None  # mean of keep in the first family, where it differs


CLAIMS: dict[str, tuple[Rule, str, list[tuple]]] = {  # rule, whole, (keep, drop, control, k)
    "shared core": (SharedCore(families=FAMILIES), "residual_full", [
        ("keep_shared", "drop_shared", "keep_random", k) for k in (8, 32, 64)]),
    "locus": (Locus(SLICES, families=FAMILIES), "full", [
        (f"keep_{s}", f"drop_{s}", f"control_{s}", None) for s in SLICES]),
}  # fmt: skip
TRUTHS = [
    Truth("nothing works", (0, 0, 0, 0)),
    Truth("nothing works, one quirk in whole and keep", (0, 0, 0, 0), (1, 1, 0, 0), own=0),
    Truth("the whole works, no part does", (1, 0, 0, 0)),
    Truth("the whole works, each half keeps half", (1, 0.5, 0.5, 0)),
    Truth("one family keeps 0.7, all else is clear", (1, 0.95, 0.05, 0), own=0.2, first_keep=0.7),
]


def main(cfg: Config) -> None:
    """Simulate every cell and truth, write one line per rate, print them."""
    if unknown := [shape for shape in cfg.noise if shape not in SHAPES]:
        raise ValueError(f"bench: --noise {unknown[0]!r} is unknown; use {', '.join(SHAPES)}")
    least = min(cfg.sets, cfg.verdicts, cfg.resamples, *cfg.seeds)
    if least < 1 or min(cfg.clusters) < 2:
        raise ValueError("bench: counts must be at least 1, and --clusters at least 2")
    check_writable(cfg.out)
    cells = [Cell(shape, n) for n in cfg.clusters for shape in cfg.noise]
    cells += [Cell(seeds=s, seed_sd=sd) for s in cfg.seeds for sd in cfg.seed_sds]
    jobs = [(claim, truth) for claim in CLAIMS for truth in TRUTHS]
    lines = []
    with progress("simulating", len(cells) + len(jobs)) as step:
        for cell in cells:
            lines += coverage(cfg, cell)
            step(f"{cell.noise}, {cell.clusters} clusters")
        for claim, truth in jobs:
            lines.append(supported(cfg, claim, truth))
            step(claim)
    report(*save_lines(cfg, NAME, lines))


def coverage(cfg: Config, cell: Cell) -> Iterator[dict]:
    """The rates of one cell: effect, retained and p, over tables of PER_TABLE data sets."""
    table_hits = [hits(cfg, cell, i, sets) for i, sets in tables(cfg.sets, len(VARIANTS))]
    for measure in table_hits[0]:
        ours, *others = (
            np.concatenate(x) for x in zip(*(f[measure] for f in table_hits), strict=True)
        )
        means = dict(zip(("plain", "clusters_only"), (x.mean() for x in others), strict=False))
        if cell.seeds == 1:
            means.pop("clusters_only", None)  # there, what wscore does
        if len(ours):  # else no data set has a ratio
            yield {"measure": measure, **cell._asdict(), **rate(ours.mean(), len(ours)), **means}


def hits(cfg: Config, cell: Cell, i: int, sets: int) -> dict[str, list[np.ndarray]]:
    """measure -> which data sets with an interval are hit, by wscore, plain, clusters only."""
    random = stream(cfg, i, *cell)
    gain = gains(cell, sets, random)
    lines = pl.DataFrame({"family": "lora", "variant": VARIANTS, "k": None})
    table = effect_table(rows(lines, gain), full="full", resamples=cfg.resamples, seed=i)
    full, keep, none = (table.filter(variant=v) for v in VARIANTS)
    known = keep["retained_lo"].is_not_null().to_numpy()
    draws = resampled(gain[:, :2].mean(axis=-1), cfg.resamples, random)
    n, shares = cell.clusters, draws[1][:, known] / draws[0][:, known]
    tails = 0.025, float(ndtr(sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))

    def hit(truth: float, ours: pl.DataFrame, x: np.ndarray) -> list[np.ndarray]:
        spans = [np.quantile(x, [t, 1 - t], axis=0) for t in tails]
        return [inside(truth, *ours.get_columns()), *(inside(truth, *span) for span in spans)]

    return {
        "effect": hit(1, full.select("lo", "hi"), draws[0]),
        "retained": hit(RATIO, keep.filter(known).select("^retained_(lo|hi)$"), shares),
        "p": [(none["p"] < 0.05).to_numpy()],
    }


def gains(cell: Cell, sets: int, random: Generator) -> np.ndarray:
    """[sets, 3, seeds, clusters, 2] of full, keep and none: keep has the clusters of full, times
    ratio, and seeds and rows of its own; none is full without its effect."""

    def noise(*shape: int) -> np.ndarray:
        return sqrt(0.5) * SHAPES[cell.noise](random, (sets, *shape))

    def seeds_and_rows() -> np.ndarray:
        seeds = cell.seed_sd * random.standard_normal((sets, cell.seeds, 1, 1))
        return seeds + noise(cell.seeds, cell.clusters, 2)

    cluster = noise(1, cell.clusters, 1)
    full = 1 + cluster + seeds_and_rows()
    return np.stack([full, RATIO * (1 + cluster) + seeds_and_rows(), full - 1], axis=1)


def resampled(x: np.ndarray, resamples: int, random: Generator) -> np.ndarray:
    """Bootstrap means [lines, resamples, sets] of x [sets, lines, seeds, clusters], seeds crossed
    with clusters: what wscore takes its quantiles of, written once more."""
    seeds, clusters = x.shape[2:]
    u, w = (random.multinomial(n, np.full(n, 1 / n), resamples) / n for n in (seeds, clusters))
    return np.einsum("rs,rlas->lra", u, np.einsum("rm,alsm->rlas", w, x, optimize=True))


def inside(truth: float, lo: ArrayLike, hi: ArrayLike) -> np.ndarray:
    """Which intervals cover the truth."""
    return (np.asarray(lo) <= truth) & (truth <= np.asarray(hi))


def supported(cfg: Config, claim: str, truth: Truth) -> dict:
    """How often the rule of a claim says supported where this is the truth."""
    rule, whole, parts = CLAIMS[claim]
    outcomes = []
    for i, sets in tables(cfg.verdicts, len(FAMILIES) * (1 + 3 * len(parts))):
        lines, gain = planted(claim, truth, sets, stream(cfg, i, claim, truth.name))
        table = effect_table(rows(lines, gain), full=whole, resamples=cfg.resamples, seed=i)
        outcomes += [verdict(one, rule).outcome for one in table.partition_by("experiment")]
    share, refuted = (outcomes.count(o) / len(outcomes) for o in ("supported", "refuted"))
    name = {"measure": "supported", "rule": claim, "truth": truth.name}
    return name | Cell()._asdict() | rate(share, len(outcomes)) | {"refuted": refuted}


def planted(claim: str, truth: Truth, sets: int, random: Generator):
    """The lines of a claim, and their gains [sets, lines, 1 seed, clusters, 2]."""
    _, whole, parts = CLAIMS[claim]
    roles = [(whole, None, 0)]
    roles += [(v, k, i) for *vs, k in parts for i, v in enumerate(vs, start=1)]
    cells = [(family, *role) for family in FAMILIES for role in roles]
    means, quirks = ([x[role] for *_, role in cells] for x in (truth.mean, truth.quirk))
    if truth.first_keep is not None:
        of_first = [(f, role) == (FAMILIES[0], 1) for f, *_, role in cells]
        means = np.where(of_first, truth.first_keep, means)

    def noise(lines: int) -> np.ndarray:
        shape, one = (sets, lines, 1, Cell().clusters), random.standard_normal
        return sqrt(0.5) * (one((*shape, 1)) + one((*shape, 2)))

    mean, quirk = (np.reshape(x, (1, -1, 1, 1, 1)) for x in (means, quirks))
    z = noise(1)
    names = [cell[:3] for cell in cells]
    lines = pl.DataFrame(names, schema={"family": str, "variant": str, "k": int}, orient="row")
    return lines, mean * (1 + z) + quirk * z + truth.own * noise(len(names))


def tables(sets: int, lines: int) -> list[tuple[int, int]]:
    """(number, data sets) of the tables that hold `sets` data sets of so many lines together."""
    size = max(PER_TABLE // lines, 1)
    return [(i, min(size, sets - start)) for i, start in enumerate(range(0, sets, size))]


def stream(cfg: Config, *name: object) -> Generator:
    """Named by what is drawn, so one cell's data sets do not depend on the others."""
    return np.random.default_rng([cfg.seed, crc32(repr(name).encode())])


def rows(lines: pl.DataFrame, gain: np.ndarray) -> pl.DataFrame:
    """The row table of gains [sets, lines, seeds, clusters, 2]: data sets are its experiments."""
    sets, _, seeds, clusters, _ = gain.shape
    items = pl.DataFrame({"item": [f"q{i:04d}" for i in range(2 * clusters)]}).with_columns(
        cluster=pl.Series([f"c{i // 2:04d}" for i in range(2 * clusters)]),
        label=pl.Series([1, -1] * clusters),
        margin=pl.Series(np.linspace(-2, 2, 2 * clusters)),
    )
    treated = pl.DataFrame({"experiment": [f"s{i:04d}" for i in range(sets)]})
    for other in (lines, pl.DataFrame({"seed": range(seeds)}), items):
        treated = treated.join(other, how="cross")
    treated = treated.with_columns(
        alpha=1.0, margin=pl.col("margin") + pl.col("label") * pl.Series(gain.ravel())
    )
    base = items.with_columns(alpha=0.0, variant=pl.lit("base"), experiment=pl.lit("base"))
    names = dict(model="simulated", behaviour="none", dataset="none", prompt_style="none")
    return pl.concat([base, treated], how="diagonal_relaxed").with_columns(
        **{c: pl.lit(v) for c, v in names.items()},
        **dict(method=pl.lit("weights"), mass=pl.lit(1.0), flagged=pl.lit(False)),
    )


def rate(r: float, n: int) -> dict[str, float]:
    """A rate over n data sets, its Monte Carlo error, and its Wilson interval at level 0.95."""
    lo, hi = wilson(r, n)
    return {"sets": n, "rate": r, "mc_error": sqrt(r * (1 - r) / n), "lo": lo, "hi": hi}


def report(table: pl.DataFrame, path: Path) -> None:
    """Print the rates, and whether the rule of the docstring holds."""
    coverages = table.filter(measure="effect", noise="normal", seeds=1)["rate"].to_list()
    percentages = ", ".join(f"{100 * r:.1f} %" for r in coverages) or "no number of clusters"
    rates = ["rate", "mc_error", "plain", "clusters_only", "lo", "hi", "refuted"]
    table = table.with_columns(pl.col(c) * 100 for c in rates if c in table.columns)
    cell = [*Cell._fields, "sets", "rate", "mc_error"]
    for measure, title, columns in (
        ("effect", "% of 95 % intervals of an effect that cover it", [*cell, *rates[2:4]]),
        ("retained", "% of 95 % intervals of a retained ratio that cover it", [*cell, *rates[2:4]]),
        ("p", "% of p < 0.05 for a variant without effect", cell),
        ("supported", "% of verdicts", ["rule", "truth", "sets", "rate", *rates[4:]]),
    ):
        show(title, table.filter(measure=measure).select(columns).rename({"rate": "wscore"}))
    holds = bool(coverages) and all(0.93 <= r <= 0.97 for r in coverages)
    conclude(path, holds, f"effects with normal noise and one seed are covered in {percentages}")


if __name__ == "__main__":
    guarded(main, Config)

"""Question: do the intervals, p values and verdicts of wscore.effect err as often as they say?

Simulated row tables, through the real effect_table: clusters of two rows (labels +1 and -1), gain =
planted effect + seed + cluster + row, where cluster and row have variance 1/2 each, of a normal,
skewed or heavy-tailed shape. Counted over independent data sets:
  effect    the planted effect, 1, lies in [lo, hi] at level 0.95
  retained  the planted ratio, 0.7, lies in [retained_lo, retained_hi], where these are given
  p         p < 0.05 for a variant without effect
  verdict   a decision rule calls the table supported though the planted truth is against it

Beside wscore's intervals stand the plain percentiles, and percentiles that allow for few clusters
but not for few seeds. +- is the Monte Carlo error of a rate r over N data sets,
sqrt(r (1 - r)/N); the interval of a rate of verdicts is Wilson's (1927).

Rule: the interval of the effect covers in 93 to 97 % with normal noise and one seed, at every
number of clusters.

    python experiments/bench_coverage.py
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import e, sqrt
from pathlib import Path
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit
from wscore.effect import COLUMNS

from wscore import Locus, Rule, SharedCore, effect_table, verdict, wilson
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, plain, provenance, write_table

NAME = "bench_coverage"
FAMILIES = ("lora", "dora", "pissa", "delora", "oft")
VARIANTS = ("full", "keep", "none")  # of a data set of coverage
SHAPES: dict[str, Callable[[np.random.Generator, tuple], np.ndarray]] = {  # mean 0, variance 1
    "normal": lambda random, shape: random.standard_normal(shape),
    "exponential": lambda random, shape: random.standard_exponential(shape) - 1,
    "lognormal": lambda random, shape: (random.lognormal(size=shape) - sqrt(e)) / sqrt((e - 1) * e),
    "t5": lambda random, shape: random.standard_t(5, shape) / sqrt(5 / 3),
}


@dataclass(frozen=True)
class Config:
    """Options of the coverage bench."""

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
    ratio: float = 0.7
    """planted retained ratio"""
    verdicts: int = 300
    """data sets per line of verdicts, with 60 clusters and normal noise"""
    per_table: int = 1000
    """lines that share one effect table, hence one draw of resamples"""
    resamples: int = 2000
    """bootstrap resamples"""
    seed: int = 0
    """seed of data sets and resamples"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


@dataclass(frozen=True)
class Cell:
    """One kind of data set."""

    noise: str = "normal"
    clusters: int = 60
    seeds: int = 1
    seed_sd: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A rule and the lines it reads: `parts` are (keep, drop, control, k)."""

    name: str
    rule: Rule
    whole: str
    parts: tuple[tuple[str, str, str, int | None], ...]


@dataclass(frozen=True)
class Truth:
    """What is planted in a claim's lines: gain = mean (1 + z) + quirk z + own noise.

    z is common to all lines of a data set; mean and quirk are of (whole, keep, drop).
    """

    name: str
    mean: tuple[float, float, float]
    quirk: tuple[float, float, float] = (0, 0, 0)
    own: float = 0.5
    first_keep: float | None = None  # mean of keep in the first family, where it differs


SLICES = ("early", "middle", "late")
CLAIMS = [
    Claim(
        "shared core",
        SharedCore(families=FAMILIES),
        "residual_full",
        tuple(("keep_shared", "drop_shared", "keep_random", k) for k in (8, 32, 64)),
    ),
    Claim(
        "locus",
        Locus(SLICES, families=FAMILIES),
        "full",
        tuple((f"keep_{s}", f"drop_{s}", f"control_{s}", None) for s in SLICES),
    ),
]
TRUTHS = [
    Truth("nothing works", (0, 0, 0)),
    Truth("nothing works, one quirk in whole and keep", (0, 0, 0), (1, 1, 0), own=0),
    Truth("the whole works, no part does", (1, 0, 0)),
    Truth("the whole works, each half keeps half", (1, 0.5, 0.5)),
    Truth("one family keeps 0.7, all else is clear", (1, 0.95, 0.05), own=0.2, first_keep=0.7),
]


def main(cfg: Config) -> None:
    """Simulate every cell and truth, write one line per rate, print them."""
    check(cfg)
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
            step(claim.name)
    table = pl.DataFrame(lines, infer_schema_length=None)
    path = write_table(table, cfg.out / f"{NAME}.parquet", provenance(plain(asdict(cfg))))
    report(table)
    console.print(f"table {path}")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is simulated."""
    if unknown := [shape for shape in cfg.noise if shape not in SHAPES]:
        raise ValueError(f"bench: --noise {unknown[0]!r} asked; known are {', '.join(SHAPES)}")
    least = min(cfg.sets, cfg.verdicts, cfg.per_table, cfg.resamples, *cfg.seeds)
    if least < 1 or min(cfg.clusters) < 2:
        raise ValueError("bench: counts must be 1 or more, and --clusters 2 or more")
    check_writable(cfg.out)


# ------------------------------------------------------------------------------------ coverage
def coverage(cfg: Config, cell: Cell) -> list[dict]:
    """The rates of one cell: effect, retained and p, over tables of `per_table` data sets."""
    found = [hits(cfg, cell, i, sets) for i, sets in tables(cfg, cfg.sets, len(VARIANTS))]
    out = []
    for measure in found[0]:
        ours, *others = (np.concatenate(x) for x in zip(*(f[measure] for f in found), strict=True))
        if not len(ours):
            continue  # no data set has a ratio
        means = dict(zip(("plain", "clusters_only"), (x.mean() for x in others), strict=False))
        if cell.seeds == 1:
            means.pop("clusters_only", None)  # there, what wscore does
        out.append({"measure": measure, **asdict(cell), **rate(ours.mean(), len(ours)), **means})
    return out


def hits(cfg: Config, cell: Cell, i: int, sets: int) -> dict[str, list[np.ndarray]]:
    """measure -> which data sets with an interval are hit, by wscore, plain, clusters only."""
    random = stream(cfg, i, *asdict(cell).values())
    gain = gains(cfg, cell, sets, random)
    lines = pl.DataFrame({"family": "lora", "variant": VARIANTS, "k": None})
    table = effect_table(rows(lines, gain), full="full", resamples=cfg.resamples, seed=i)
    full, keep, none = (table.filter(variant=v) for v in VARIANTS)
    known = keep["retained_lo"].is_not_null().to_numpy()
    draws = resampled(gain[:, :2].mean(axis=-1), cfg.resamples, random)
    shares = draws[1][:, known] / draws[0][:, known]
    n = cell.clusters
    tails = 0.025, float(ndtr(sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    ours = keep.filter(known).select("retained_lo", "retained_hi")
    return {
        "effect": [inside(1, full["lo"], full["hi"])]
        + [inside(1, *np.quantile(draws[0], [t, 1 - t], axis=0)) for t in tails],
        "retained": [inside(cfg.ratio, *ours)]
        + [inside(cfg.ratio, *np.quantile(shares, [t, 1 - t], axis=0)) for t in tails],
        "p": [(none["p"] < 0.05).to_numpy()],
    }


def gains(cfg: Config, cell: Cell, sets: int, random: np.random.Generator) -> np.ndarray:
    """[sets, 3, seeds, clusters, 2] of full, keep and none: keep has the clusters of full, times
    ratio, and seeds and rows of its own; none is full without its effect."""

    def noise(*shape: int) -> np.ndarray:
        return sqrt(0.5) * SHAPES[cell.noise](random, (sets, *shape))

    def seeds_and_rows() -> np.ndarray:
        seeds = cell.seed_sd * random.standard_normal((sets, cell.seeds, 1, 1))
        return seeds + noise(cell.seeds, cell.clusters, 2)

    cluster = noise(1, cell.clusters, 1)
    full = 1 + cluster + seeds_and_rows()
    return np.stack([full, cfg.ratio * (1 + cluster) + seeds_and_rows(), full - 1], axis=1)


def resampled(x: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Bootstrap means [lines, resamples, sets] of x [sets, lines, seeds, clusters], seeds crossed
    with clusters: what wscore takes its quantiles of, written once more."""
    seeds, clusters = x.shape[2:]
    u, w = (random.multinomial(n, np.full(n, 1 / n), resamples) / n for n in (seeds, clusters))
    return np.einsum("rs,rlas->lra", u, np.einsum("rm,alsm->rlas", w, x, optimize=True))


def inside(truth: float, lo: ArrayLike, hi: ArrayLike) -> np.ndarray:
    """Which intervals cover the truth."""
    return (np.asarray(lo) <= truth) & (truth <= np.asarray(hi))


# ------------------------------------------------------------------------------------ verdicts
def supported(cfg: Config, claim: Claim, truth: Truth) -> dict:
    """How often the rule says supported where this is the truth."""
    outcomes = []
    for i, sets in tables(cfg, cfg.verdicts, len(FAMILIES) * (1 + 3 * len(claim.parts))):
        random = stream(cfg, i, claim.name, truth.name)
        lines, gain = planted(claim, truth, sets, random)
        table = effect_table(rows(lines, gain), full=claim.whole, resamples=cfg.resamples, seed=i)
        parts = table.partition_by("experiment")
        outcomes += [verdict(part, claim.rule).outcome for part in parts]
    share, refuted = (outcomes.count(o) / len(outcomes) for o in ("supported", "refuted"))
    name = {"measure": "supported", "rule": claim.name, "truth": truth.name}
    return name | asdict(Cell()) | rate(share, len(outcomes)) | {"refuted": refuted}


def planted(claim: Claim, truth: Truth, sets: int, random: np.random.Generator):
    """The lines of a claim, and their gains [sets, lines, 1 seed, clusters, 2]."""
    names, means, quirks = [], [], []
    for family in FAMILIES:
        roles = [(claim.whole, None, 0)]
        roles += [(v, k, i) for *vs, k in claim.parts for i, v in enumerate(vs, start=1)]
        for variant, k, role in roles:
            mean = (*truth.mean, 0)[role]
            if role == 1 and family == FAMILIES[0] and truth.first_keep is not None:
                mean = truth.first_keep
            names.append((family, variant, k))
            means.append(mean)
            quirks.append((*truth.quirk, 0)[role])

    def noise(lines: int) -> np.ndarray:
        shape, one = (sets, lines, 1, Cell.clusters), random.standard_normal
        return sqrt(0.5) * (one((*shape, 1)) + one((*shape, 2)))

    mean, quirk = (np.reshape(x, (1, -1, 1, 1, 1)) for x in (means, quirks))
    z = noise(1)
    lines = pl.DataFrame(names, schema={"family": str, "variant": str, "k": int}, orient="row")
    return lines, mean * (1 + z) + quirk * z + truth.own * noise(len(names))


# --------------------------------------------------------------------------------------- shared
def tables(cfg: Config, sets: int, lines: int) -> list[tuple[int, int]]:
    """(number, data sets) of the tables that hold `sets` data sets of so many lines together."""
    size = max(cfg.per_table // lines, 1)
    return [(i, min(size, sets - start)) for i, start in enumerate(range(0, sets, size))]


def stream(cfg: Config, *name: object) -> np.random.Generator:
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
    numbers = pl.DataFrame({"experiment": [f"s{i:04d}" for i in range(sets)]})
    treated = numbers.join(lines, how="cross").join(
        pl.DataFrame({"seed": range(seeds)}), how="cross"
    )
    treated = treated.join(items, how="cross").with_columns(
        alpha=1.0, margin=pl.col("margin") + pl.col("label") * pl.Series(gain.ravel())
    )
    base = items.with_columns(alpha=0.0, variant=pl.lit("base"), experiment=pl.lit("base"))
    fixed = dict(model="simulated", behaviour="none", dataset="none", prompt_style="none")
    return (
        pl.concat([base, treated], how="diagonal_relaxed")
        .with_columns(**{c: pl.lit(v) for c, v in fixed.items()}, method=pl.lit("weights"))
        .with_columns(mass=pl.lit(1.0), flagged=pl.lit(False))
        .select(COLUMNS)
    )


def rate(r: float, n: int) -> dict[str, float]:
    """A rate over n data sets, its Monte Carlo error, and its Wilson interval at level 0.95."""
    lo, hi = wilson(r, n)
    return {"sets": n, "rate": r, "mc_error": sqrt(r * (1 - r) / n), "lo": lo, "hi": hi}


def report(table: pl.DataFrame) -> None:
    """Print the rates, and whether the rule of the docstring holds."""
    titles = {
        "effect": "the 95 % interval of an effect covers it",
        "retained": "the 95 % interval of a retained ratio covers it, where there is one",
        "p": "p < 0.05 for a variant without effect",
    }
    heads = ["noise", "clusters", "seeds", "sd of seeds", "sets", "wscore %", "+-"]
    for measure, title in titles.items():
        part = table.filter(measure=measure).select(
            "noise", "clusters", "seeds", "seed_sd", "sets", *percent("rate", "mc_error"),
            *percent("plain", "clusters_only") * (measure != "p"),
        )  # fmt: skip
        more = ["plain %", "clusters only %"] * (measure != "p")
        console.print(grid(title, [*heads, *more], part.iter_rows()))
    part = table.filter(measure="supported")
    part = part.select("rule", "truth", "sets", *percent("rate", "lo", "hi", "refuted"))
    heads = ["rule", "truth", "sets", "supported %", "from", "to", "refuted %"]
    console.print(grid("verdicts", heads, part.iter_rows()))
    asked = table.filter(measure="effect", noise="normal", seeds=1)["rate"].to_list()
    holds = "holds" if asked and all(0.93 <= r <= 0.97 for r in asked) else "does not hold"
    found = ", ".join(f"{100 * r:.1f} %" for r in asked) or "none was asked"
    console.print(f"rule {holds}: effects with normal noise and one seed are covered in {found}")


def percent(*columns: str) -> list[pl.Expr]:
    return [pl.col(c) * 100 for c in columns]


if __name__ == "__main__":
    guarded(main, Config)

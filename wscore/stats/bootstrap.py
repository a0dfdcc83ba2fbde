"""The one bootstrap: resamples of every line of a table, their intervals and p values.

Experiments never resample by themselves; what they report goes through effects.py or contrasts.py,
which both read the resamples made here.
"""

import hashlib

import numpy as np
import polars as pl
from scipy.special import ndtr, stdtr, stdtrit

CLUSTER_IDS = ("seed_ids", "cluster_ids")  # what a line was measured on: ids, one a row


def bootstrap(p: pl.DataFrame, lines: pl.DataFrame, resamples: int, seed: int) -> np.ndarray:
    """sum_sm u_s w_m gain_sm / sum_sm u_s w_m n_sm over seeds s and clusters m, in two versions:
    [0] of [2, resamples, lines] draws both, [1] the seeds alone (w = 1), for their share.

    u and w are independent multinomial counts, multiplied because items are crossed with seeds:
    the pigeonhole bootstrap of Owen 2007, Annals of Applied Statistics 1:386. It counts what is
    neither a seed's nor a cluster's about three times, so it is wide where that is all there is: a
    ratio of two variants that share their clusters, with seeds that agree.
    """
    cells = (
        p.group_by("line", "seed", "unit")
        .agg(pl.col("gain").sum(), n=pl.len())
        .sort("line", "seed", "unit")
    )
    out = np.full((2, resamples, len(lines)), np.nan)
    for (seeds, units), part in lines.group_by(CLUSTER_IDS):
        u, w = (
            _counts(str(ids), resamples, f"{seed}/{kind}")
            for kind, ids in (("seeds", seeds), ("clusters", units))
        )
        x = cells.join(part, on="line", how="semi", maintain_order="left")
        shape = (len(part), u.shape[1], w.shape[1])
        if len(x) != np.prod(shape):
            raise ValueError(
                "effect_table: pooled seeds need the same clusters, found only "
                f"{len(x)} of {np.prod(shape)} pairs; add 'dataset' or 'seed' to by"
            )
        if w.shape[1] > 1:
            gain, n = (x[c].to_numpy().reshape(shape) for c in ("gain", "n"))
            for i, drawn in enumerate((w, np.ones((1, w.shape[1])))):
                ratio = _weighted(gain, u, drawn) / _weighted(n, u, drawn)
                out[i, :, part["line"].sort()] = ratio.T
    return out


def _weighted(x: np.ndarray, u: np.ndarray, w: np.ndarray) -> np.ndarray:
    """sum_sm u[r, s] w[r, m] x[l, s, m]: one matmul per seed keeps memory at [resamples, lines]"""
    return sum((u[:, [s]] * (w @ x[:, s].T) for s in range(x.shape[1])), np.zeros(()))


def _counts(ids: str, resamples: int, stream: str) -> np.ndarray:
    """How often each of `ids` (one a line) is drawn, [resamples, ids]. The stream is named by the
    ids themselves, so every variant on the same clusters meets the same resamples."""
    m = ids.count("\n") + 1
    name = hashlib.sha256(f"{stream}/{ids}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(name, "big")))
    return generator.multinomial(m, np.full(m, 1 / m), resamples).astype(float)


def interval(samples: np.ndarray, table: pl.DataFrame, level: float) -> list[pl.Series]:
    """The quantiles Phi(-+ wider t) of each line's resamples, P(T > t) = (1 - level)/2; null where
    undefined: the expanded percentile interval, Hesterberg 2015, arXiv 1411.5279.
    """
    wider, df = _student(samples, table)
    tail = ndtr(wider * stdtrit(df, (1 - level) / 2))
    ordered = np.sort(samples[0], axis=0)
    at = np.stack([tail, 1 - tail]) * (len(ordered) - 1)
    below, above = (np.take_along_axis(ordered, f(at).astype(int), 0) for f in (np.floor, np.ceil))
    ends = below + (at % 1) * (above - below)
    return [pl.Series(end).fill_nan(None) for end in ends]


def p_value(samples: np.ndarray, table: pl.DataFrame) -> pl.Series:
    """P(|T| >= |effect| / (wider sd)) with the sd of the resamples, null where undefined."""
    wider, df = _student(samples, table)
    effect, sd = table["effect"].to_numpy(), samples[0].std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((effect == 0) & (sd == 0), 0.0, -np.abs(effect) / (wider * sd))
    return pl.Series(2 * stdtr(df, t)).fill_nan(None)


def _student(samples: np.ndarray, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """What few clusters n and few seeds S ask of each line: wider and df of Student's T.

    With v the share of seeds in the variance of the resamples,
        wider^2 = (1 - v) n/(n - 1) + v S/(S - 1)
        df      = 1 / ((1 - v)^2/(n - 1) + v^2/(S - 1))
    since m resampled units show (m - 1)/m of the variance between them (Hesterberg 2015), and two
    sources of variance have the degrees of freedom of Satterthwaite 1946, Biometrics 2:110. One
    seed has v = 0: sqrt(n/(n - 1)) and n - 1, blind to what other seeds would do. With two or three
    seeds the resamples themselves end at the outermost seed, so where seeds differ more than
    clusters do the interval still covers too seldom (measured in bench_coverage).
    """
    n, seeds = (np.maximum(table[c].to_numpy(), 2) for c in ("clusters", "seeds"))
    with np.errstate(divide="ignore", invalid="ignore"):
        v = np.nan_to_num(samples[1].var(0) / samples[0].var(0)).clip(0, 1)
    wider = np.sqrt((1 - v) * n / (n - 1) + v * seeds / (seeds - 1))
    return wider, 1 / ((1 - v) ** 2 / (n - 1) + v**2 / (seeds - 1))

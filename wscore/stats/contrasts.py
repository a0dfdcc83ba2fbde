"""Paired differences between two methods of steering, under the very resamples of their effects."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from wscore.stats.bootstrap import CLUSTER_IDS, interval, p_value
from wscore.stats.effects import measure
from wscore.stats.schema import CELL, SUMMARY_KEYS, complete
from wscore.stats.spread import benjamini_hochberg


def contrast(
    rows: pl.DataFrame,
    reference: Mapping[str, object],
    by: Sequence[str] = SUMMARY_KEYS,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pl.DataFrame:
    """diff = effect(line) - effect(reference), both over the same items and the same resamples.

    The effect table of `rows`, and beside it diff, diff_lo, diff_hi (the `level` interval) and
    diff_p (two-sided, of diff = 0). `reference` names one line of each (model, behaviour, dataset,
    prompt_style) by some keys, as {"variant": "full", "family": "lora", "alpha": 1.0}. Clusters are
    drawn together for both sides; seeds too where both have the same ones, else independently.
    Raises ValueError where the reference names no line or several.
    """
    table, samples = measure(rows, by, resamples, seed, level)
    of = _reference(table, reference)
    effect, apart = table["effect"].to_numpy(), samples - samples[:, :, of]
    differences = table.select(
        "clusters", seeds=_fewer(table["seeds"].to_numpy(), of)
    ).with_columns(effect=pl.Series(effect - effect[of]))
    lo, hi = interval(apart, differences, level)
    columns = dict(
        diff=differences["effect"], diff_lo=lo, diff_hi=hi, diff_p=p_value(apart, differences)
    )
    return table.drop("line", *CLUSTER_IDS).with_columns(**columns)


def _reference(table: pl.DataFrame, reference: Mapping[str, object]) -> np.ndarray:
    """For each line, the index of the line it is compared with."""
    cell = [c for c in CELL if c in table.columns]
    numbered = table.with_row_index("of")
    if lacking := [c for c in reference if c not in table.columns]:
        raise ValueError(f"contrast: `reference` names {lacking}, which are no keys of the table")
    same = [pl.col(c).eq_missing(pl.lit(v)) for c, v in reference.items()]
    chosen = numbered.filter(*same).select(*cell, "of")
    matched = numbered.select(*cell, line="of").join(
        chosen, on=cell, how="left", nulls_equal=True, maintain_order="left"
    )
    if matched["of"].null_count() or len(matched) != len(table):
        number = "none" if matched["of"].null_count() else "several"
        raise ValueError(
            f"contrast: `reference` {dict(reference)} must name one line of each data set, found"
            f" {number}; add keys, or score it there"
        )
    return matched["of"].to_numpy()


def _fewer(seeds: np.ndarray, of: np.ndarray) -> pl.Series:
    """The seeds of a difference: the fewer of both sides', but a side with one does not count."""
    pair = np.stack([seeds, seeds[of]])
    return pl.Series(np.where(pair.min(0) > 1, pair.min(0), pair.max(0)))


def benchmark_table(
    rows: pl.DataFrame,
    reference: Mapping[str, object],
    by: Sequence[str] = SUMMARY_KEYS,
    resamples: int = 2000,
) -> pl.DataFrame:
    """The benchmark table: effects against the base, differences against the reference, q of both.

    `reference` names the line that the others are measured against, usually the selected dW. A
    method is beaten, or beats it, where [diff_lo, diff_hi] excludes 0. The base itself is the last
    line of each data set.
    """
    table = benjamini_hochberg(contrast(rows, reference, by, resamples=resamples))
    apart = benjamini_hochberg(table.with_columns(p="diff_p").drop("q"))
    table = table.with_columns(diff_q=apart["q"])
    return pl.concat([table, base_lines(rows)], how="diagonal_relaxed")


def base_lines(rows: pl.DataFrame) -> pl.DataFrame:
    """The lines of the base, one per data set: effect, bias and discrimination 0 by definition."""
    keys = [*SUMMARY_KEYS]
    nil = {c: pl.lit(0.0) for c in ("effect", "lo", "hi", "bias", "discrimination")}
    clusters = pl.col("cluster").n_unique().cast(pl.Int64)
    facts = {"mass": pl.col("mass").mean(), "flagged_share": pl.col("flagged").mean()}
    return (
        complete(rows)
        .filter(pl.col("alpha") == 0)
        .group_by(keys)
        .agg(n=pl.len().cast(pl.Int64), clusters=clusters, **facts)
        .with_columns(**nil, row_diff=pl.lit(0, pl.Int64))
        .sort(keys)
    )

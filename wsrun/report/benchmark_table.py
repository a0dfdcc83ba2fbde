"""The benchmark table: effects against the base, differences against one line, q of both."""

from collections.abc import Mapping, Sequence

import polars as pl

from wscore import benjamini_hochberg, contrast
from wscore.effect import SUMMARY_KEYS


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
        rows.filter(pl.col("alpha") == 0)
        .group_by(keys)
        .agg(n=pl.len().cast(pl.Int64), clusters=clusters, **facts)
        .with_columns(**nil, row_diff=pl.lit(0, pl.Int64))
        .sort(keys)
    )

"""Retained shares as figures need them: by line, beside null bands, with limits and a caption.

A share is the effect of a part of dW over that of the whole: the column `retained`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from wsrun.report.figure_tables import (
    BARS,
    FAMILIES,
    MEANING,
    SAME_RUN,
    check_table,
    facts_of,
    in_order,
    lines_by,
    range_text,
)

RETAINED = ("retained", "retained_lo", "retained_hi")
SHARE_LABEL = "effect kept (share of the whole's effect)"
ABSENT = "n/a: the family has no such part, or the effect of its whole is not clear of 0. "
Limits = tuple[float, float]


class Shares(NamedTuple):
    """Lines by (dataset, family, variant), null bands by (dataset, family), and the rest."""

    lines: dict[tuple, dict[str, Any]]
    bands: dict[tuple, Limits]
    datasets: list[str]
    families: list[str]
    limits: Limits
    caption: str

    def effect(self, *key: str) -> str:
        """The effect of a line as text, a dash where there is none."""
        effect = self.lines.get(key, {}).get("effect")
        return "-" if effect is None else f"{effect:+.2f}"


def read_shares(
    figure: str,
    table: pl.DataFrame,
    parts: Collection[str],
    whole: str,
    thresholds: Sequence[float],
    k: int | None,
) -> Shares:
    """The lines of the variants `parts` and `whole`, those of `k` and those without a k."""
    keys = ["dataset", "family", "variant"]
    check_table(figure, table, (*keys, "k", "effect", *RETAINED), (*SAME_RUN, "alpha"))
    of_k = pl.lit(True) if k is None else pl.col("k").is_null() | (pl.col("k") == k)
    drawn = table.filter(pl.col("variant").is_in([*parts, whole]) & of_k)
    lines = drawn.filter(pl.col("variant").is_in(list(parts)))
    what = f" of {list(parts)}" + ("" if k is None else f" with k = {k}")
    check_table(figure, lines, what=what)
    datasets, families = in_order(drawn["dataset"]), in_order(drawn["family"], FAMILIES)
    bands, null_words = null_bands(table)
    limits, outside = share_limits(lines, bands, thresholds)
    complete = len(datasets) * len(families) * len(parts)
    absent = ABSENT if len(lines.drop_nulls("retained")) < complete else ""
    size = "" if k is None else f"Size of a subspace: k = {k}. "
    caption = MEANING + BARS + null_words + absent + outside + size + facts_of(drawn)
    return Shares(lines_by(figure, drawn, keys), bands, datasets, families, limits, caption)


def null_bands(table: pl.DataFrame) -> tuple[dict[tuple, Limits], str]:
    """(lowest, highest) share among the null draws by (dataset, family), and the words for it."""
    is_draw = pl.col("variant").str.contains(r"^spectrum_null#\d+$")
    draws = table.filter(is_draw).drop_nulls("retained").group_by("dataset", "family")
    ends = draws.agg(lo=pl.col("retained").min(), hi=pl.col("retained").max(), n=pl.len())
    kind = "null changes (same singular values as the whole, random directions)"
    words = f"Grey band: lowest to highest of {range_text(ends['n'])} {kind}. " * bool(len(ends))
    return {(dataset, family): (lo, hi) for dataset, family, lo, hi, _ in ends.iter_rows()}, words


def share_limits(
    lines: pl.DataFrame, bands: Mapping[tuple, Limits], thresholds: Sequence[float]
) -> tuple[Limits, str]:
    """A range that holds 0, 1, thresholds, bands and intervals, but nothing beyond -1 to 2; and a
    sentence where a share lies outside."""
    values = [v for c in RETAINED for v in lines[c].drop_nulls()] + [0.0, 1.0, *thresholds]
    values += [end for ends in bands.values() for end in ends]
    limits = max(min(values), -1.0) - 0.06, min(max(values), 2.0) + 0.06
    outside = ~lines["retained"].drop_nulls().is_between(*limits)
    return limits, "A number at the edge: a share beyond the axis. " if outside.any() else ""

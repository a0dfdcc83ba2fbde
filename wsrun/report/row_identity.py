"""Whether the rows of two scripts are the same measurement: of items, of the base, of a line."""

from collections.abc import Mapping

import polars as pl

from wscore.stats.schema import CELL

LINE = ("method", "family", "variant", "k", "alpha")
ITEM = (*CELL, "item")
TOLERANCE = 1e-3  # nats: margins further apart are not one measurement


def check_base(first: str, rows: pl.DataFrame, name: str, new: pl.DataFrame) -> None:
    """Refuse other items, or another base, in the data sets that both tables have."""
    base, other = (
        x.filter(alpha=0).select(*ITEM, "label", "cluster", "margin") for x in (rows, new)
    )
    shared = set(base["dataset"]) & set(other["dataset"])
    base, other = (x.filter(pl.col("dataset").is_in(shared)) for x in (base, other))
    both = base.join(other, on=[*ITEM, "label", "cluster"], how="inner", nulls_equal=True)
    if not len(base) == len(other) == len(both):
        sizes = f"{len(base)} and {len(other)}, {len(both)} of them in both"
        raise ValueError(
            f"report: {first} and {name} do not hold the same items ({sizes}); a benchmark needs "
            "identical rows, so run both with the same --data and --dilemmas"
        )
    if (gap := _gap(both)) > TOLERANCE:
        raise ValueError(
            f"report: {first} and {name} differ by up to {gap:.3g} nats in the base's margins; "
            "run both again on the same model"
        )


def check_lines(
    owners: Mapping[tuple, str], rows: pl.DataFrame, name: str, new: pl.DataFrame
) -> None:
    """Refuse a line that two tables hold with different margins. owners: line -> script."""
    key = [*ITEM, *LINE, "seed"]
    steered = [x.filter(pl.col("alpha") != 0).select(*key, "margin") for x in (rows, new)]
    both = steered[0].join(steered[1], on=key, how="inner", nulls_equal=True)
    apart = both.filter((pl.col("margin") - pl.col("margin_right")).abs() > TOLERANCE)
    if len(apart):
        line = apart.select(LINE).row(0)
        words = " ".join(str(x) for x in line if x is not None)
        raise ValueError(
            f"report: {owners[line]} and {name} both hold the line {words!r}, with margins up to "
            f"{_gap(apart):.3g} nats apart; run both again on the same model and adapters, with "
            "the same options"
        )


def _gap(both: pl.DataFrame) -> float:
    return float((both["margin"] - both["margin_right"]).abs().max() or 0)  # type: ignore[arg-type]

"""Retained ratios as rules read them: three-valued comparisons of whole intervals.

`x >= t` holds where the whole interval does, fails where none of it does, and is unknown between.
"""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from wscore.stats.schema import CELL
from wscore.stats.verdicts import Verdict


def at_least(lo: float | None, hi: float | None, t: float) -> bool | None:
    """x >= t: True if lo >= t, False if hi < t, else None (unknown); the partner of `at_most`."""
    return None if lo is None or hi is None else True if lo >= t else False if hi < t else None


def at_most(lo: float | None, hi: float | None, t: float) -> bool | None:
    """x <= t: True if hi <= t, False if lo > t, else None (unknown)."""
    return None if lo is None or hi is None else True if hi <= t else False if lo > t else None


class Share(NamedTuple):
    """A retained ratio with its interval; empty where it was suppressed."""

    value: float | None = None
    lo: float | None = None
    hi: float | None = None

    def __str__(self) -> str:
        return "unknown" if self.lo is None else f"{self.value:.2f} [{self.lo:.2f}, {self.hi:.2f}]"


Shares = dict[tuple[str | None, str, int | None], Share]  # (family, variant, k) -> Share


def shares(table: pl.DataFrame) -> Shares:
    """The retained ratios of a table of one model, behaviour, dataset and alpha."""
    several = [c for c in (*CELL, "alpha") if c in table.columns and table[c].n_unique() > 1]
    lines = table.select("family", "variant", "k", "retained", "retained_lo", "retained_hi")
    if several or lines.select("family", "variant", "k").is_duplicated().any():
        raise ValueError(
            "verdict: needs one line per (family, variant, k), found several of "
            f"{several or 'the same'}; filter the table first"
        )
    return {(family, variant, k): Share(*x) for family, variant, k, *x in lines.iter_rows()}


def exact_shares(table: pl.DataFrame) -> Shares:
    """Parts in which a family changes nothing (status not "scored"): keep 0, drop 1, exactly."""
    if "status" not in table.columns:
        return {}
    exact = {"keep": Share(0.0, 0.0, 0.0), "drop": Share(1.0, 1.0, 1.0)}
    lines = table.filter(pl.col("status") != "scored").select("family", "variant")
    return {
        (family, variant, None): exact[kind]
        for family, variant in lines.iter_rows()
        if (kind := variant.partition("_")[0]) in exact
    }


def not_ready_reason(
    table: pl.DataFrame, whole: str, families: Sequence[str | None], above_nulls: float
) -> Verdict | None:
    """Why no part of `whole` can be judged in these families, None where all can.

    A ratio needs a whole that steers towards the behaviour, and further than null deltas do: its
    null_percentile, where the table has one, must reach `above_nulls`; 100, above every draw, is a
    one-sided test at level 1/21 with 20 draws. A random delta may well move the answers a little,
    and its largest tensors then "carry" that.
    """
    lines = table.filter(pl.col("variant") == whole)
    back = lines.filter(pl.col("hi") < 0) if "hi" in table.columns else lines.clear()
    if names := [str(f) for f in families if f in back["family"].to_list()]:
        return Verdict(
            "undetermined",
            f"the effect of {whole} is below 0 for {', '.join(names)}, so there is no "
            "steering towards the behaviour to share",
        )
    if "null_percentile" not in table.columns:
        return None
    low = lines.filter(pl.col("null_percentile") < above_nulls)
    ranks = dict(low.select("family", "null_percentile").iter_rows())
    if names := [f"{f} ({ranks[f]:.0f} %)" for f in families if f in ranks]:
        return Verdict(
            "undetermined",
            f"{whole} does no more than random deltas of its spectrum for {', '.join(names)}: "
            f"percentile among them below {above_nulls:g}",
        )
    return None

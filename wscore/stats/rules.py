"""Decision rules: three-valued statements about intervals, thresholds written before the run.

`x >= t` holds where the whole interval does, fails where none of it does, and is unknown between.
A rule is a frozen dataclass whose fields are its thresholds; `verdict(table, rule)` applies it.
No rule says anything of a part while the whole does no more than random deltas do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from wscore.stats.effects import CELL, Outcome, Verdict


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


def unready(
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
    if found := [str(f) for f in families if f in back["family"].to_list()]:
        return Verdict(
            "undetermined",
            f"the effect of {whole} is below 0 for {', '.join(found)}, so there is no "
            "steering towards the behaviour to share",
        )
    if "null_percentile" not in table.columns:
        return None
    low = lines.filter(pl.col("null_percentile") < above_nulls)
    ranks = dict(low.select("family", "null_percentile").iter_rows())
    if found := [f"{f} ({ranks[f]:.0f} %)" for f in families if f in ranks]:
        return Verdict(
            "undetermined",
            f"{whole} does no more than random deltas of its spectrum for {', '.join(found)}: "
            f"percentile among them below {above_nulls:g}",
        )
    return None


@dataclass(frozen=True)
class SharedCore:
    """exists K, for all families: keep(K) >= keep_at_least and drop(K) <= drop_at_most.

    A K at which a random subspace of that size keeps as much supports nothing (K = d_model keeps
    everything); the table's `random` lines tell, where it has them.
    Refuted by one family whose keep is below drop_at_most at the largest K while its drop is at
    least keep_at_least; not identifiable where both are, since then each half is enough.
    """

    keep_at_least: float = 0.7
    drop_at_most: float = 0.3
    families: tuple[str, ...] = ("lora", "dora", "pissa", "delora", "oft")
    keep: str = "keep_shared"
    drop: str = "drop_shared"
    random: str = "keep_random"
    whole: str = "residual_full"
    above_nulls: float = 100.0

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError("SharedCore: needs one family or more, got none; name them")

    def decide(self, table: pl.DataFrame) -> Verdict:
        got = shares(table)
        if early := unready(table, self.whole, self.families, self.above_nulls):
            return early
        ks = sorted({k for _, v, k in got if v in (self.keep, self.drop) and k is not None})
        if not ks:
            return Verdict(
                "undetermined",
                f"no line of {self.keep} or {self.drop} at any K for {', '.join(self.families)}",
            )
        unmet = {k: self._unmet(got, k) for k in ks}
        if held := [str(k) for k in ks if not unmet[k]]:
            return Verdict(
                "supported",
                f"at K = {' and '.join(held)}, {self.keep} retains >= "
                f"{self.keep_at_least:g} and {self.drop} <= {self.drop_at_most:g} of "
                f"the effect in every family of {', '.join(self.families)}",
            )
        for outcome, why, families in self._obstacles(got, ks[-1]):
            if families:
                return Verdict(outcome, f"{why} for {', '.join(families)}")
        k = min(ks, key=lambda k: (len(unmet[k]), -k))
        more = f"; and {len(unmet[k]) - 3} more" if len(unmet[k]) > 3 else ""
        return Verdict("undetermined", f"closest at K = {k}, where {'; '.join(unmet[k][:3])}{more}")

    def _unmet(self, got: Shares, k: int) -> list[str]:
        """The conditions at K that are not clearly true, with their numbers."""
        conditions = (
            (self.keep, at_least, ">=", self.keep_at_least),
            (self.drop, at_most, "<=", self.drop_at_most),
            (self.random, at_most, "<=", self.keep_at_least),
        )
        asked = [
            (f, *c, got.get((f, c[0], k), Share()))
            for f in self.families
            for c in conditions
            if c[0] != self.random or (f, c[0], k) in got
        ]
        return [
            f"{f} {variant} retains {share}, not clearly {sign} {t:g}"
            for f, variant, test, sign, t, share in asked
            if not test(share.lo, share.hi, t)
        ]

    def _obstacles(self, got: Shares, k: int) -> list[tuple[Outcome, str, list[str]]]:
        """(outcome, why, families) at the largest K, in order: the first with a family decides."""
        t, low, both = self.keep_at_least, self.drop_at_most, f"{self.keep} and {self.drop}"
        counter, absent, noise, either = [], [], [], []
        for f in self.families:
            keys = [(f, variant, k) for variant in (self.keep, self.drop)]
            x, y = (got.get(key, Share()) for key in keys)
            kept, left = at_least(x.lo, x.hi, t), at_least(y.lo, y.hi, t)
            absent += [f] if any(key not in got for key in keys) else []
            noise += [f] if f not in absent and None in (x.lo, y.lo) else []
            counter += [f"{f} ({x}, {y})"] if left and at_least(x.lo, x.hi, low) is False else []
            either += [f"{f} ({x}, {y})"] if left and kept else []
        return [
            (
                "refuted",
                f"at K = {k}, the largest, {self.keep} retains < {low:g} and "
                f"{self.drop} >= {t:g} of the effect",
                counter,
            ),
            ("undetermined", f"no line of {both} at K = {k}, the largest,", absent),
            ("undetermined", "the full effect is at noise and its shares are unknown", noise),
            (
                "undetermined",
                f"not identifiable under this basis: {both} both retain >= {t:g} "
                f"at K = {k}, the largest,",
                either,
            ),
        ]


@dataclass(frozen=True)
class BasinDivergence:
    """exists K, for all families: overlap(own, others') is low and keep_own > keep_shared.

    overlap is the table's column of that name on the keep_own lines, the mean squared cosine of a
    family's own top-K directions with those of the others; low is at most `excess_at_most` of the
    way from random subspaces (`overlap_random`) to equal ones. keep_own > keep_shared where their
    intervals do not meet. Refuted where at every K some family's overlap is not low.
    """

    excess_at_most: float = 0.1
    families: tuple[str, ...] = ("lora", "dora", "pissa", "delora", "oft")
    own: str = "keep_own"
    shared: str = "keep_shared"
    whole: str = "residual_full"
    above_nulls: float = 100.0

    def decide(self, table: pl.DataFrame) -> Verdict:
        if early := unready(table, self.whole, self.families, self.above_nulls):
            return early
        got = shares(table)
        lines = table.filter(pl.col("variant") == self.own)
        chance = pl.col("overlap_random")
        lines = lines.with_columns(excess=(pl.col("overlap") - chance) / (1 - chance))
        excess = {(f, k): x for f, k, x in lines.select("family", "k", "excess").iter_rows()}
        ks = sorted({k for _, k in excess})
        absent = [f for f in self.families if not any((f, k) in excess for k in ks)]
        if absent:
            return Verdict("undetermined", f"no line of {self.own} for {', '.join(absent)}")
        close: dict[int, list[str]] = {k: [] for k in ks}
        unmet: dict[int, list[str]] = {k: [] for k in ks}
        for k in ks:
            for f in self.families:
                x = excess.get((f, k))
                if x is None or x > self.excess_at_most:
                    close[k].append(f if x is None else f"{f} ({x:.2f})")
                own, shared = (got.get((f, v, k), Share()) for v in (self.own, self.shared))
                if own.lo is None or shared.hi is None or own.lo <= shared.hi:
                    unmet[k].append(f"{f} {self.own} {own}, {self.shared} {shared}")
        if held := [str(k) for k in ks if not close[k] and not unmet[k]]:
            return Verdict(
                "supported",
                f"at K = {' and '.join(held)}, own directions overlap little and {self.own} retains"
                f" more than {self.shared} in every family of {', '.join(self.families)}",
            )
        if all(close.values()):
            k = max(ks)
            return Verdict(
                "refuted",
                f"own directions are not divergent: overlap above chance at K = {k} for "
                + ", ".join(close[k]),
            )
        k = min((k for k in ks if not close[k]), key=lambda k: len(unmet[k]))
        return Verdict("undetermined", f"at K = {k}: {'; '.join(unmet[k][:3])}")

"""Decision rules: three-valued statements about intervals, thresholds written before the run.

`x >= t` holds where the whole interval does, fails where none of it does, and is unknown between.
A rule is a frozen dataclass whose fields are its thresholds; `verdict(table, rule)` applies it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from wscore.effect import CELL, Outcome, Verdict


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

    def __post_init__(self) -> None:
        if not self.families:
            raise ValueError("SharedCore: needs one family or more, got none; name them")

    def decide(self, table: pl.DataFrame) -> Verdict:
        got = shares(table)
        if backwards := self._backwards(table):
            return Verdict(
                "undetermined",
                f"the effect of {self.whole} is below 0 for {', '.join(backwards)}, so there is no "
                "steering towards the behaviour to share",
            )
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

    def _backwards(self, table: pl.DataFrame) -> list[str]:
        """Families whose whole steers away from the behaviour: ratios do not show a sign."""
        if "hi" not in table.columns:
            return []
        lines = table.filter((pl.col("variant") == self.whole) & (pl.col("hi") < 0))
        return [f for f in self.families if f in lines["family"].to_list()]

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

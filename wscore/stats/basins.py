"""The rule of basins: families whose own directions do not meet, yet each does with its own."""

from dataclasses import dataclass

import polars as pl

from wscore.stats.shares import Share, not_ready_reason, shares
from wscore.stats.verdicts import Verdict


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
        if early := not_ready_reason(table, self.whole, self.families, self.above_nulls):
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

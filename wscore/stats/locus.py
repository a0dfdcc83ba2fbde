"""The rule of sites and coordinates: one slice of a partition carries the effect, or none does."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from wscore.stats.effects import Verdict
from wscore.stats.rules import Share, Shares, at_least, at_most, shares, unready


@dataclass(frozen=True)
class Locus:
    """exists a slice, for all families: keep(slice) >= keep_at_least, drop(slice) <= drop_at_most.

    `slices` are disjoint parts of one partition (the layers, the modules, the bands of a spectrum);
    the table names their lines keep_<slice>, drop_<slice> and, where it has them, control_<slice>:
    random directions with the slice's own rank and norm, which must not keep as much.
    Refuted as distributed where several slices each retain keep_at_least in every family, and where
    every slice fails clearly in some family. A slice in which a family changes nothing (a line
    whose status is not "scored") keeps 0 and leaves 1 there, exactly.
    """

    slices: tuple[str, ...]
    keep_at_least: float = 0.7
    drop_at_most: float = 0.3
    families: tuple[str, ...] | None = None
    whole: str = "full"
    above_nulls: float = 100.0

    def __post_init__(self) -> None:
        if not self.slices or self.families == ():
            raise ValueError("Locus: needs one slice and one family or more, got none; name them")

    def decide(self, table: pl.DataFrame) -> Verdict:
        families = self.families or tuple(table["family"].unique().drop_nulls().sort())
        if early := unready(table, self.whole, families, self.above_nulls):
            return early
        got = shares(table) | self._absent(table)
        if dark := [f for f in families if got.get((f, self.whole, None), Share()).lo is None]:
            return Verdict(
                "undetermined",
                f"the effect of {self.whole} is at noise for {', '.join(dark)}, "
                "and its shares are unknown",
            )
        held = {s: [self._conditions(got, f, s) for f in families] for s in self.slices}
        enough = [s for s in self.slices if all(kept[1] is True for kept, *_ in held[s])]
        if len(enough) > 1:
            return Verdict(
                "refuted",
                f"distributed: each of {', '.join(enough)} alone retains >= {self.keep_at_least:g}",
            )
        flat = {s: [c for conditions in held[s] for c in conditions] for s in self.slices}
        if found := [s for s in self.slices if all(holds for _, holds in flat[s])]:
            return Verdict(
                "supported",
                f"{found[0]} alone retains >= {self.keep_at_least:g} and without it <= "
                f"{self.drop_at_most:g} of the effect is left in {', '.join(families)}",
                found[0],
            )
        failed = {  # a control that keeps too much makes a slice useless, not wrong
            s: [text for c in held[s] for text, holds in c[:2] if holds is False]
            for s in self.slices
        }
        if all(failed.values()):
            best = min(self.slices, key=lambda s: len(failed[s]))
            return Verdict(
                "refuted",
                f"no single slice of {', '.join(self.slices)}; closest is {best}, where "
                + "; ".join(failed[best][:2]),
            )
        unmet = {s: [t for t, holds in flat[s] if not holds] for s in self.slices if not failed[s]}
        best = min(unmet, key=lambda s: len(unmet[s]))
        return Verdict("undetermined", f"closest is {best}, where {'; '.join(unmet[best][:3])}")

    def _conditions(self, got: Shares, family: str, name: str) -> list[tuple[str, bool | None]]:
        """(text, whether it holds) of the slice's conditions in one family, keep first."""
        tests: list[tuple[str, Callable, str, float]] = [
            (f"keep_{name}", at_least, ">=", self.keep_at_least),
            (f"drop_{name}", at_most, "<=", self.drop_at_most),
        ]
        if (family, f"control_{name}", None) in got:
            tests.append((f"control_{name}", at_most, "<=", self.keep_at_least))
        out = []
        for variant, test, sign, t in tests:
            share = got.get((family, variant, None), Share())
            text = f"{family} {variant} retains {share}, not clearly {sign} {t:g}"
            out.append((text, test(share.lo, share.hi, t)))
        return out

    def _absent(self, table: pl.DataFrame) -> Shares:
        """Exact shares of slices a family does not have: kept nothing, lost nothing."""
        if "status" not in table.columns:
            return {}
        lines = table.filter(pl.col("status") != "scored").select("family", "variant")
        exact = {"keep": Share(0.0, 0.0, 0.0), "drop": Share(1.0, 1.0, 1.0)}
        return {
            (family, variant, None): exact[variant.partition("_")[0]]
            for family, variant in lines.iter_rows()
            if variant.partition("_")[0] in exact
        }

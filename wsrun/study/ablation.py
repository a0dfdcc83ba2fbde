"""What T6, T7 and T8 share beside runs.py: thresholds, parts of dW, and one summary.

Each of them cuts every family's dW into parts (`Parts`), scores all of them in one sweep (`run`),
and writes one line per part (`summarise`, `write`): they differ in how they cut, and in the rule.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.table import Table
from torch import Tensor

from wscore import (
    DeltaLike,
    add,
    benjamini_hochberg,
    difference,
    effect_table,
    norm,
    null_percentile,
    seed_spread,
    spectrum_null,
)
from wscore.effect import SUMMARY_KEYS
from wsrun.report.console import grid
from wsrun.score.sweep import Variant
from wsrun.study.options import Common, check_common

SUM_TOLERANCE = 1e-5  # kept + rest against the whole, relative
PART = ("family", "variant", "k")


@dataclass(frozen=True)
class Options(Common):
    """Options of every analysis of the parts of dW; the verdict is taken at `rule_alpha`."""

    rule_alpha: float = 1.0
    """dose of the verdict, of the null draws and of the figures"""
    nulls: int = 20
    """null deltas per family and seed: same singular values, random directions"""
    keep_at_least: float = 0.7
    """threshold of the rule on the kept part"""
    drop_at_most: float = 0.3
    """threshold of the rule on what is left without it"""


def check(cfg: Options, what: str) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script."""
    check_common(cfg, what)
    if cfg.rule_alpha not in cfg.alphas or cfg.rule_alpha == 0:
        raise ValueError(
            f"{what}: --rule-alpha {cfg.rule_alpha:g} must be one of --alphas and not 0"
        )
    if not 0 <= cfg.drop_at_most <= cfg.keep_at_least <= 1:
        raise ValueError(f"{what}: thresholds need 0 <= --drop-at-most <= --keep-at-least <= 1")
    if cfg.nulls < 0:
        raise ValueError(f"{what}: --nulls {cfg.nulls} asked; it must be 0 or more")


class Parts:
    """Parts of one family's dW as variants, with what share of the whole each holds.

    energy = |part|^2 / |whole|^2, and parts_error = |kept + rest - whole| / |whole|, which stops
    the run above 1e-5. Facts are kept in `notes` under (family, variant, k, seed), for the summary.
    """

    def __init__(self, family: str, seed: int, whole: Mapping[str, Tensor], notes: dict) -> None:
        self.family, self.seed, self.whole, self.notes = family, seed, whole, notes
        self.size = norm(whole)

    def one(
        self, name: str, part: DeltaLike, k: int | None = None, alphas=None, **facts
    ) -> Variant:
        """A single part under its name; `facts` become columns of the summary."""
        facts["energy"] = (norm(part) / self.size) ** 2
        self.notes[self.family, name, k, self.seed] = facts
        return Variant(name, part, family=self.family, k=k, seed=self.seed, alphas=alphas)

    def pair(
        self,
        name: str,
        kept: DeltaLike,
        rest: DeltaLike,
        k: int | None = None,
        **facts,
    ) -> Iterator[Variant]:
        """keep_<name> and drop_<name>, whose sum must be the whole."""
        error = norm(difference(add(kept, rest), self.whole, missing="zero")) / self.size
        if error > SUM_TOLERANCE:
            raise RuntimeError(f"{name} of {self.family}: kept + rest misses the whole by {error}")
        facts["parts_error"] = error
        yield self.one(f"keep_{name}", kept, k, **facts, keep_or_drop="keep")
        yield self.one(f"drop_{name}", rest, k, **facts, keep_or_drop="drop")

    def control(self, name: str, kept: DeltaLike, k: int | None = None, **facts) -> Variant:
        """control_<name>: random directions with the kept part's own rank and norm, per tensor."""
        null = spectrum_null(kept, 1000 * self.seed + 999)
        return self.one(f"control_{name}", null, k, **facts, keep_or_drop="control")

    def nulls(self, cfg: Options, **facts) -> Iterator[Variant]:
        """Random deltas with the whole's singular values, at the dose of the rule."""
        for i in range(cfg.nulls):
            null = spectrum_null(self.whole, 1000 * self.seed + i)
            yield self.one(f"spectrum_null#{i:02d}", null, alphas=(cfg.rule_alpha,), **facts)


def summarise(
    cfg: Options,
    rows: pl.DataFrame,
    notes: Mapping[tuple, Mapping[str, Any]],
    whole: str,
    absent: Mapping[tuple, Mapping[str, Any]] | None = None,
) -> pl.DataFrame:
    """One line per dataset, family, variant, k and alpha, seeds pooled.

    Beside the effect table: facts of the parts (numbers are means over seeds, parts_error the
    largest), spread between seeds and families, q, and null_percentile. Parts in `absent`, which a
    family does not have, get a line without numbers whose status says why.
    """
    table = effect_table(rows, SUMMARY_KEYS, full=whole, resamples=cfg.resamples)
    table = table.join(
        seed_spread(rows, full=whole).drop("seeds"),
        on=SUMMARY_KEYS,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    table = benjamini_hochberg(null_percentile(table)).with_columns(status=pl.lit("scored"))
    facts = _facts(notes)
    if absent:
        groups = table.select(c for c in SUMMARY_KEYS if c not in PART).unique()
        empty = _facts(absent).join(groups, how="cross").with_columns(n=pl.lit(0, pl.Int64))
        table = pl.concat(
            [table, empty.select(c for c in empty.columns if c in table.columns)],
            how="diagonal_relaxed",
        )
        facts = pl.concat([facts, _facts(absent).drop("status")], how="diagonal_relaxed")
    table = table.join(facts, on=PART, how="left", nulls_equal=True, maintain_order="left")
    return table.sort(SUMMARY_KEYS)


def _facts(notes: Mapping[tuple, Mapping[str, Any]]) -> pl.DataFrame:
    """One line per (family, variant, k) with the facts of its seeds."""
    lines = [
        dict(zip((*PART, "of_seed"), key, strict=True)) | dict(facts)
        for key, facts in notes.items()
    ]
    table = pl.DataFrame(lines, infer_schema_length=None).cast({"k": pl.Int64})
    facts = [c for c in table.columns if c not in (*PART, "of_seed")]
    return table.group_by(PART, maintain_order=True).agg(
        pl.col(c).max()
        if c == "parts_error"
        else pl.col(c).mean()
        if table[c].dtype.is_float()
        else pl.col(c).first()
        for c in facts
    )


def spread_sentence(table: pl.DataFrame, variant: str, what: str) -> str:
    """Whether families differ more than the seeds of one family do, in the retained share."""
    lines = table.filter((pl.col("variant") == variant) & pl.col("retained").is_not_null())
    seeds, families, gap = (
        lines[c].cast(pl.Float64)
        for c in ("retained_seed_sd", "retained_family_sd", "retained_family_gap")
    )
    if seeds.drop_nulls().is_empty():
        return f"{what}: one seed, so the spread within a family is unknown; give --seeds 0 1 2"
    if families.drop_nulls().is_empty():
        return f"{what}: one family, so there is no spread between families"
    within = float((seeds.drop_nulls() ** 2).mean() ** 0.5)  # type: ignore[operator]
    between = float(families.drop_nulls()[0])
    more = "more" if between > within else "less"
    return (
        f"{what}: families differ {more} than seeds do (sd between families {between:.3f}, largest "
        f"gap {float(gap.drop_nulls()[0]):.3f}; sd within a family, over seeds, {within:.3f})"
    )


def held_sentence(table: pl.DataFrame, name: str, what: str, column: str = "energy") -> str:
    """How much of |dW|^2 a slice holds: one that is nearly all of dW locates little."""
    held = table.filter(pl.col("variant") == f"keep_{name}")[column].drop_nulls().sort()
    ends = dict.fromkeys(f"{100 * end:.0f} %" for end in (held[0], held[-1]))
    return f"{what}, {name} holds {' to '.join(ends)} of dW's squared norm"


def ratios(
    cfg: Options, table: pl.DataFrame, title: str, parts: Mapping[str, Sequence], heads: Sequence
) -> Table:
    """Retained shares, kept / removed: one line per part, {name: its cells}, a column a family."""
    shares = {
        (row["family"], row["variant"]): "n/a"
        if row["status"] != "scored"
        else "?"
        if row["retained"] is None
        else f"{row['retained']:.2f}"
        for row in table.iter_rows(named=True)
    }

    def cell(family: str, name: str) -> str | None:
        both = [shares.get((family, f"{part}_{name}")) for part in ("keep", "drop")]
        return " / ".join(map(str, both)) if all(both) else None

    lines = [[*cells, *(cell(f, name) for f in cfg.families)] for name, cells in parts.items()]
    return grid(title, [*heads, *cfg.families], lines)

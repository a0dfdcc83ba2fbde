"""What T13 prints: whether plants steer, the confusion table, the rates, every disagreement."""

from collections.abc import Mapping, Sequence

import polars as pl
from rich.table import Table

from wscore import wilson
from wsrun.lenses.plants import PLANTS, Instance
from wsrun.report.console import console, grid, strong

SHOWN = ("keep_shared", "drop_shared", "keep_own", "keep_own_top", "keep_own_middle")
RATES = {"detection": ("supported", True), "false positives": ("not supported", False)}


def report(
    found: Sequence[Instance], table: pl.DataFrame, verdicts: pl.DataFrame, counts: pl.DataFrame
) -> None:
    """All of it, data set by data set."""
    for dataset in table["dataset"].unique(maintain_order=True):
        parts = (t.filter(dataset=dataset) for t in (table, verdicts, counts))
        _report(dataset, found, *parts)


def _report(
    dataset: str,
    found: Sequence[Instance],
    table: pl.DataFrame,
    verdicts: pl.DataFrame,
    counts: pl.DataFrame,
) -> None:
    effects = [effect_line(at, table) for at in found]
    heads = ["plant", "seed", "slice", "whole", "null %", "plant alone", "decoys", "real"]
    console.print(grid(f"{dataset}: effects of first members, alpha = 1", heads, effects))
    real = [line[-1] for line in effects if line[0] != "nothing"]
    gate = "(interval above 0, above every null draw, in every whole a true claim is about)"
    console.print(f"{real.count('no')} of {len(real)} planted instances do not steer {gate}")
    console.print(kept_grid(table))
    console.print(confusion_grid(counts))
    for title, (expected, agree) in RATES.items():
        if n := len(of := verdicts.filter(expected=expected)):
            lo, hi = wilson((hits := len(of.filter(agree=agree))) / n, n)
            console.print(f"{title}: {hits} of {n}, {hits / n:.2f} [{lo:.2f}, {hi:.2f}]")
    for r in verdicts.filter(agree=False).iter_rows(named=True):
        console.print(
            f"{r['plant']} seed {r['seed']} ({r['truth'] or 'no slice'}), {r['rule']}:",
            strong(f"{r['outcome']},"),
            f"not {r['expected']}: {r['sentence']}",
        )


def effect_line(at: Instance, table: pl.DataFrame) -> list:
    """Whether an instance's plant steers: all of it, or the part that its true claim is about."""
    of = table.filter(pl.col("family").str.starts_with(at.member(0)[:-1]))
    first = {r["variant"]: r for r in of.filter(method="places").iter_rows(named=True)}
    nested = PLANTS[at.plant].several and PLANTS[at.plant].true
    wholes = ["full", "residual_full"] if nested else ["full"]
    whole = of.filter(pl.col("variant").is_in(wholes))
    real = (whole["lo"] > 0).all() and (whole["null_percentile"] == 100).all()
    texts = [span(first[v], "effect", "+") if v in first else None for v in ("plant", "decoys")]
    rank = min(whole["null_percentile"])
    return [*at, span(first["full"], "effect", "+"), rank, *texts, "yes" if real else "no"]


def kept_grid(table: pl.DataFrame) -> Table:
    """The range of `retained`, mean energy and overlap of T6's and T8's parts."""
    of = table.filter(pl.col("variant").is_in(SHOWN)).with_columns(
        plant=pl.col("family").str.replace(r"-s\d+-m\d+$", "").cast(pl.Enum([*PLANTS]))
    )
    lines = of.group_by("plant", "variant", "k").agg(
        pl.col("retained").min().alias("least"),
        pl.col("retained").max().alias("most"),
        pl.col("^(energy|overlap|overlap_random)$").mean(),
    )
    title = "retained by some parts, over instances and members"
    return grid(title, lines.columns, lines.sort("plant", "variant", "k").rows())


def confusion_grid(counts: pl.DataFrame) -> Table:
    """Outcomes of every rule on every plant, counted over seeds."""
    claims, lines = {"supported": "true", "not supported": "false", None: "open"}, []
    for r in counts.iter_rows(named=True):
        outcomes = " / ".join(str(r[o]) for o in ("supported", "refuted", "undetermined"))
        outcomes += f", {r['misplaced']} misplaced" if r["misplaced"] else ""
        ends = [None, None]
        if r["agree"] is not None:
            ends = [f"{r['agree']} of {r['seeds']}", span(r, "rate")]
        lines.append([r["plant"], r["rule"], claims[r["expected"]], outcomes, *ends])
    heads = ["plant", "rule", "claim", "s / r / u", "right", "rate [95 %]"]
    return grid("seeds on which a rule is supported / refuted / undetermined", heads, lines)


def span(r: Mapping, name: str, sign: str = "") -> str:
    """A number of a line with its interval."""
    return f"{r[name]:{sign}.2f} [{r['lo']:{sign}.2f}, {r['hi']:{sign}.2f}]"

"""What T13 prints: whether plants steer, the confusion table, the rates, every disagreement.

`python -m wsrun.study.planted_report A.confusion.parquet B.confusion.parquet` prints the confusion
tables of several runs, of other models or data sets, side by side.
"""

import sys
from collections.abc import Mapping, Sequence

import polars as pl
from rich.table import Table

from wscore import wilson
from wsrun.lenses.plants import PLANTS, Instance
from wsrun.report.console import console, grid, strong
from wsrun.report.tables import read_table

SHOWN = ("keep_shared", "drop_shared", "keep_own", "keep_own_top", "keep_own_middle")
RATES = {"detection": ("supported", True), "false positives": ("not supported", False)}
CLAIMS = {"supported": "true", "not supported": "false", None: "open"}
COUNTS = ("supported", "refuted", "undetermined")
OF_CONFUSION = {"dataset", "plant", "rule", "expected", *COUNTS, "misplaced", "agree", "seeds"}


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
    if len(kept := kept_shares(table)):
        title = "retained by some parts, over instances and members"
        console.print(grid(title, kept.columns, kept.rows()))
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


def kept_shares(table: pl.DataFrame) -> pl.DataFrame:
    """The range of `retained`, mean energy and overlap of T6's and T8's parts."""
    of = table.filter(pl.col("variant").is_in(SHOWN)).with_columns(
        plant=pl.col("family").str.replace(r"-s\d+-m\d+$", "").cast(pl.Enum([*PLANTS]))
    )
    shares = of.group_by("plant", "variant", "k").agg(
        pl.col("retained").min().alias("least"),
        pl.col("retained").max().alias("most"),
        pl.col("^(energy|overlap|overlap_random)$").mean(),
    )
    return shares.sort("plant", "variant", "k")


def confusion_grid(counts: pl.DataFrame) -> Table:
    """Outcomes of every rule on every plant, counted over seeds."""
    lines = []
    for r in counts.iter_rows(named=True):
        outcomes, ends = outcomes_text(r), [None, None]
        if r["agree"] is not None:
            ends = [f"{r['agree']} of {r['seeds']}", span(r, "rate")]
        lines.append([r["plant"], r["rule"], CLAIMS[r["expected"]], outcomes, *ends])
    heads = ["plant", "rule", "claim", "s / r / u", "right", "rate [95 %]"]
    return grid("seeds on which a rule is supported / refuted / undetermined", heads, lines)


def outcomes_text(r: Mapping) -> str:
    """s / r / u of a line of `confusion`, and how many of s are of another slice."""
    outcomes = " / ".join(str(r[o]) for o in COUNTS)
    return outcomes + (f", {r['misplaced']} misplaced" if r["misplaced"] else "")


def side_by_side(paths: Sequence[str]) -> Table:
    """One line per plant and rule, one column per model and data set of the confusion tables.

    Several tables of one model fill its columns together; of one rule on one plant the last counts.
    """
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    heads: dict[str, None] = {}
    for path in paths:
        table, meta = read_table(path)
        if not OF_CONFUSION <= {*table.columns}:
            raise ValueError(
                f"t13: {path!r} is no confusion table; give *.confusion.parquet of T13"
            )
        for r in table.iter_rows(named=True):
            head = f"{meta.get('config', {}).get('model', path)}, {r['dataset']}"
            right = "" if r["agree"] is None else f"; {r['agree']} of {r['seeds']} right"
            line = cells.setdefault((r["plant"], r["rule"], CLAIMS[r["expected"]]), {})
            heads[head], line[head] = None, outcomes_text(r) + right
    lines = [[*key, *(line.get(h) for h in heads)] for key, line in cells.items()]
    title = "seeds on which a rule is supported / refuted / undetermined"
    return grid(title, ["plant", "rule", "claim", *heads], lines)


def span(r: Mapping, name: str, sign: str = "") -> str:
    """A number of a line with its interval."""
    return f"{r[name]:{sign}.2f} [{r['lo']:{sign}.2f}, {r['hi']:{sign}.2f}]"


if __name__ == "__main__":
    try:
        if len(sys.argv) < 2:
            raise ValueError("t13: give one confusion table or more, *.confusion.parquet of T13")
        console.print(side_by_side(sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))

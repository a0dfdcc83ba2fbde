"""What steering costs elsewhere, of the lines of T11: as columns beside effects, and as a grid."""

from collections.abc import Mapping

import polars as pl

from wsrun.report.document import Grid
from wsrun.report.row_identity import LINE
from wsrun.report.wording import setting_text

COSTS = ("nll", "perplexity", "accuracy")
ENDS = tuple(f"{c}_{end}" for c in ("nll", "accuracy") for end in ("lo", "hi"))
WORDS = {"nll": "text, nats a token", "perplexity": "perplexity", "accuracy": "accuracy elsewhere"}


def has_costs(table: pl.DataFrame) -> bool:
    """Whether a summary has the columns of T11."""
    return {*LINE, *COSTS, *ENDS} <= set(table.columns)


def costs_of(key: tuple[str, str], table: pl.DataFrame | None) -> pl.DataFrame | None:
    """The costs of each line of a model and behaviour; None where the table has none."""
    if table is None or not has_costs(table):
        return None
    table = table.filter(model=key[0], behaviour=key[1])
    if table.is_empty():
        return None
    return table.select(*LINE, *COSTS, *ENDS).unique(LINE, maintain_order=True)


def cost_text(line: Mapping, column: str) -> str:
    """A value with its interval, where it has one, to three digits after the point."""
    value, lo, hi = (line.get(c) for c in (column, f"{column}_lo", f"{column}_hi"))
    if value is None:
        return "-"
    sign = "+" if f"{column}_lo" in line else ""
    interval = "" if lo is None or hi is None else f" [{lo:+.3f}, {hi:+.3f}]"
    return f"{value:{sign}.3f}{interval}"


def cost_grid(table: pl.DataFrame) -> Grid:
    """The selected lines of T11 with their costs."""
    lines = [
        [r["method_name"], setting_text(r), *(cost_text(r, c) for c in COSTS)]
        for r in table.filter(role="selected")
        .unique(LINE, maintain_order=True)
        .iter_rows(named=True)
    ]
    caption = "Change against the base: nats a token of neutral texts, share of right answers."
    return Grid(("method name", "chosen", *(WORDS[c] for c in COSTS)), lines, caption)

"""The benchmark table on the console: a line per method, largest effect on top."""

import polars as pl
from rich.table import Table

from wsrun.report.console import grid
from wsrun.report.wording import difference_to_dW, with_interval
from wsrun.score.names import setting_of

HEADS = ("method", "chosen", "alpha", "effect", "minus dW", "bias", "discr.", "mass", "flag")


def standings(table: pl.DataFrame, title: str) -> Table:
    """A line per method: dose, effect, difference to dW, bias, mass and flags, largest on top."""
    lines = [
        [
            r["method_name"],
            setting_of(r),
            r["alpha"],
            with_interval(r, "effect", "lo", "hi"),
            difference_to_dW(r),
            *("-" if r[c] is None else f"{r[c]:+.2f}" for c in ("bias", "discrimination")),
            *("-" if r[c] is None else f"{r[c]:.2f}" for c in ("mass", "flagged_share")),
        ]
        for r in table.sort("effect", descending=True, nulls_last=True).iter_rows(named=True)
        if r["role"] != "unmatched"
    ]
    return grid(title, HEADS, lines)

"""Lines of a benchmark table in words: standings, differences to dW, and the rule on them."""

from collections.abc import Callable, Mapping

import polars as pl

from wsrun.report.console import grid
from wsrun.score.names import setting_of


def winner(line: Mapping) -> str:
    """The rule of the benchmark for one line: "beats", "loses to" or "is not apart from" dW."""
    lo, hi = line["diff_lo"], line["diff_hi"]
    if lo is None or hi is None:
        return "has no interval beside"
    return "beats" if lo > 0 else "loses to" if hi < 0 else "is not apart from"


def standings(table: pl.DataFrame, title: str):
    """The printed table: a line per way with dose, effect, difference to dW, bias, mass, flags."""
    heads = ("way", "chosen", "alpha", "effect", "minus dW", "bias", "discr.", "mass", "flag")
    lines = [
        [
            r["way"],
            setting_of(r),
            r["alpha"],
            span(r, "effect", "lo", "hi"),
            span(r, "diff", "diff_lo", "diff_hi"),
            *("-" if r[c] is None else f"{r[c]:+.2f}" for c in ("bias", "discrimination")),
            *(f"{r[c]:.2f}" for c in ("mass", "flagged_share")),
        ]
        for r in table.sort("effect", descending=True, nulls_last=True).iter_rows(named=True)
        if r["role"] != "unmatched"
    ]
    return grid(title, heads, lines)


def span(line: Mapping, value: str, lo: str, hi: str) -> str:
    """+1.23 [+0.98, +1.50], without the interval where there is none."""
    if line[value] is None:
        return "-"
    interval = "" if line[lo] is None else f" [{line[lo]:+.2f}, {line[hi]:+.2f}]"
    return f"{line[value]:+.2f}{interval}"


def against_dW(table: pl.DataFrame, ways: Callable[[str], bool]) -> list[str]:
    """Per data set and way, the sentence of the rule on the paired difference to dW."""
    lines = table.filter(pl.col("role") == "selected").iter_rows(named=True)
    return [
        f"{r['dataset']}: {r['way']} ({setting_of(r)}, "
        f"alpha {r['alpha']:g}) {winner(r)} dW: {span(r, 'diff', 'diff_lo', 'diff_hi')} nats"
        for r in lines
        if ways(r["way"])
    ]

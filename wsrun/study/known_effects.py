"""What tables of earlier runs know of one change at one dose: effect, cost, instrument check.

    t0_train          effect of a dW
    compare           effect of a dW and of the selected directions
    t11_degradation   both, and costs

A table counts where its provenance names the change: a dW by its sha256, a direction by the base
and by its own name. Nothing is measured here.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from wsrun.report.costs import COSTS, ENDS
from wsrun.report.tables import read_table
from wsrun.report.wording import READS

DW = {"t0_train": "full", "compare": "dW", "t11_degradation": "dW"}
"""script -> the name of dW in its table"""
NEEDED = {"dataset", "method", "family", "variant", "alpha", "seeds", "effect", "lo", "hi"}
About = dict[str, Any]


def of_weights(tables: Path, sha256: str, alpha: float) -> About:
    """effect, cost and instrument of a dW by data set, of whatever tables hold it; {} for none."""

    def lines(script: str, table: pl.DataFrame, meta: Mapping[str, Any]) -> pl.DataFrame:
        named = [cell for cell, known in (meta.get("deltas") or {}).items() if known == sha256]
        found = [
            table.filter(
                method="weights", variant=DW[script], family=family, alpha=alpha, seeds=1
            ).filter(pl.col("seed") == int(seed) if "seed" in table.columns else pl.lit(True))
            for family, _, seed in (cell.rpartition("-s") for cell in named)
        ]
        return found[0] if found else table.clear()

    return _told(tables, lines)


def of_direction(tables: Path, header: Mapping[str, Any], alpha: float) -> About:
    """The same of a selected direction, by the header of its file."""

    def lines(script: str, table: pl.DataFrame, meta: Mapping[str, Any]) -> pl.DataFrame:
        same = meta.get("base") == header.get("base") and script == header.get("experiment")
        return table.filter(variant=header.get("name"), alpha=alpha) if same else table.clear()

    return _told(tables, lines)


def _told(
    tables: Path, lines: Callable[[str, pl.DataFrame, Mapping[str, Any]], pl.DataFrame]
) -> About:
    """about of the lines of every table; the first table that knows a data set tells it."""
    about: About = {}
    for script in DW:
        path = tables / f"{script}.parquet"
        if not path.is_file():
            continue
        table, meta = read_table(path)
        if NEEDED <= set(table.columns):
            for line in lines(script, table, meta).to_dicts():
                for name, value in _facts(script, line):
                    about.setdefault(name, {}).setdefault(line["dataset"], value)
    return about


def _facts(script: str, line: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """(effect | instrument | cost, what a line says of it)."""
    ends = {end: line[end] for end in ("lo", "hi")}
    yield "effect", {"nats": line["effect"], **ends, "table": script}
    if line.get("reads"):
        yield "instrument", READS.get(line["reads"], line["reads"])
    costs = {c: line[c] for c in (*COSTS, *ENDS) if line.get(c) is not None}
    if costs:
        yield "cost", costs

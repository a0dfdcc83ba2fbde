"""Numbers and comparisons of a table line in words, as the console and the page write them."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from wsrun.score.names import setting_of

FROM_DW = {"beats": "loses to", "loses to": "beats"}  # the same comparison seen from dW
READS = {
    "behaviour": "can read the behaviour",
    "bias": "can read only a bias towards one answer",
    "nothing": "cannot read the behaviour",
}
"""what the items of a data set can read on a model: the values of the column `reads`"""
MARKS = {"bias": "reads only a bias on this model", "nothing": "cannot be read on this model"}


def reads_of(table: pl.DataFrame) -> dict[str, str]:
    """{data set: a key of `READS`} of a table's lines; {} for one without the column."""
    if not {"dataset", "reads"} <= set(table.columns):
        return {}
    return dict(table.select("dataset", "reads").drop_nulls().unique(maintain_order=True).rows())


def dataset_names(table: pl.DataFrame) -> dict[str, str]:
    """{data set: its name}, with a mark where its items cannot read the behaviour."""
    if "dataset" not in table.columns:
        return {}
    reads = reads_of(table)
    return {d: _marked(d, reads.get(d)) for d in table["dataset"].drop_nulls().unique()}


def dataset_name(line: Mapping[str, Any]) -> str:
    """The data set of a line, with the mark of `dataset_names`."""
    return _marked(line["dataset"], line.get("reads"))


def _marked(dataset: str, reads: str | None) -> str:
    return f"{dataset} ({MARKS[reads]})" if reads in MARKS else dataset


def with_interval(line: Mapping[str, Any], value: str, lo: str, hi: str) -> str:
    """+1.23 [+0.98, +1.50], without the interval where there is none, a dash for no value."""
    if line[value] is None:
        return "-"
    interval = "" if line[lo] is None else f" [{line[lo]:+.2f}, {line[hi]:+.2f}]"
    return f"{line[value]:+.2f}{interval}"


def difference_to_dW(line: Mapping[str, Any]) -> str:
    """The paired difference of a benchmark line to dW, with its interval."""
    return with_interval(line, "diff", "diff_lo", "diff_hi")


def against_dW(line: Mapping[str, Any]) -> str:
    """The rule of the benchmark on one line: "beats", "loses to" or "is not distinguishable from".

    A method beats dW, or loses to it, where [diff_lo, diff_hi] excludes 0.
    """
    lo, hi = line["diff_lo"], line["diff_hi"]
    if lo is None or hi is None:
        return "has no interval against"
    return "beats" if lo > 0 else "loses to" if hi < 0 else "is not distinguishable from"


def dW_against(line: Mapping[str, Any]) -> str:
    """What dW does to the method of a line: `against_dW` seen from the other side."""
    words = against_dW(line)
    return FROM_DW.get(words, words)


def setting_text(line: Mapping[str, Any]) -> str:
    """What was chosen of a method: its setting or family, its size, and the dose."""
    size = None if line.get("k") is None else f"k = {line['k']}"
    return ", ".join(filter(None, [setting_of(line), size, f"alpha {line['alpha']:g}"]))


def q_text(q: float | None) -> str:
    """0.012, or < 0.001; a dash where there is none."""
    return "-" if q is None else "< 0.001" if q < 0.001 else f"{q:.2g}"


def number_text(value: object) -> str:
    """Two digits after the point, a dash for none."""
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:.2f}"
    return "-" if value is None else str(value)

"""The rule of the benchmark as verdicts: whether dW beats a method, by their paired difference."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import against_dW, difference_to_dW, setting_text

BEATS = {"beats": "supported", "loses to": "refuted"}  # of "this line beats the reference"
BEATEN = {"beats": "refuted", "loses to": "supported"}  # of "the reference beats this line"


def outcome(line: Mapping[str, Any], of: Mapping[str, str] = BEATEN) -> str:
    """The outcome of a claim on the paired difference, from diff_lo and diff_hi."""
    return of.get(against_dW(line), "undetermined")


def beaten(table: pl.DataFrame, is_rival: Callable[[str], bool]) -> list[RuleResult]:
    """Of each data set and rival method, whether dW beats it by the paired difference."""
    return [
        RuleResult(
            r["dataset"],
            f"dW beats {r['method_name']}",
            None,
            outcome(r),
            f"{r['method_name']} ({setting_text(r)}) {against_dW(r)} dW: "
            f"{difference_to_dW(r)} nats",
            r["variant"],
        )
        for r in table.filter(role="selected").iter_rows(named=True)
        if is_rival(r["method_name"])
    ]

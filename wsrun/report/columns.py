"""What the report needs of a table: its columns under their types, nothing empty, nothing NaN."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl

from wscore.stats.schema import CELL, COLUMNS, ROW_SCHEMA
from wsrun.report.tables import AGAIN

TEXTS = ("method_name", "role", "match", "claim", "outcome", "sentence", "part", "plant", "rule",
         "reads", "prompt", "answer")  # fmt: skip
NUMBERS = (
    "effect", "lo", "hi", "p", "q", "diff", "diff_lo", "diff_hi", "diff_p", "diff_q", "bias",
    "discrimination", "flagged_share", "validation", "retained", "retained_lo", "retained_hi",
    "nll", "nll_lo", "nll_hi", "accuracy", "accuracy_lo", "accuracy_hi",
)  # fmt: skip
UNBOUNDED = ("perplexity", "kl", "dose_norm")  # of a broken model these may be infinite
TYPES: dict[str, Any] = {
    **ROW_SCHEMA,
    **dict.fromkeys((*TEXTS, "expected"), pl.String),
    **dict.fromkeys((*NUMBERS, *UNBOUNDED), pl.Float64),
    **dict.fromkeys(("agree", "converged", "truncated"), pl.Boolean),
}
"""of every column that the report reads, wherever it stands; others pass as they are"""
OF_ROWS = ("model", "behaviour", "dataset", "method", "variant", "alpha", "item", "cluster",
           "label", "margin")  # fmt: skip
OF_LINES = ("model", "behaviour", "dataset", "method", "variant", "alpha")


def check_rows(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Item rows with the columns of ROW_SCHEMA; ValueError, naming file and column."""
    rows = check_columns(rows, path, COLUMNS, OF_ROWS)
    absent = {c: pl.lit(None, dtype) for c, dtype in ROW_SCHEMA.items() if c not in rows.columns}
    return rows.with_columns(**absent).select(ROW_SCHEMA.keys())


def check_summary(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """A summary: a model; of a benchmark, of costs and of parts also what they are told by."""
    has, needed, filled = {*table.columns}, ["model"], []
    if {"method_name", "role", "diff"} <= has:
        needed += [*CELL, *OF_LINES, "family", "k", "validation"]
        filled += [*OF_LINES]
    if {"perplexity", "accuracy"} <= has:
        needed += ["behaviour", "role", "method_name"]
    if "retained" in has:
        needed += ["dataset", "family", "variant"]
    if {"prompt", "answer"} <= has:
        needed += ["family", "seed", "alpha", "item", "truncated", "margin"]
        filled += ["model", "alpha", "item", "prompt", "answer", "truncated"]
    return check_columns(table, path, needed, filled)


def check_columns(
    table: pl.DataFrame, path: Path, needed: Collection[str], filled: Collection[str] = (),
    least: int = 1,
) -> pl.DataFrame:  # fmt: skip
    """The table under TYPES; needed columns are there, those of `filled` without empty values.

    Raises ValueError, naming file and column, for another type, for a number that is not finite,
    and for fewer lines than `least`.
    """
    name = repr(str(path))
    if lacking := [c for c in needed if c not in table.columns]:
        raise ValueError(f"report: {name} lacks the column {lacking[0]!r}; {AGAIN}")
    if len(table) < least:
        raise ValueError(f"report: {name} has no lines; {AGAIN}")
    for column, dtype in TYPES.items():
        if column not in table.columns:
            continue
        values = table[column]
        if not _fits(values.dtype, dtype):
            raise ValueError(
                f"report: column {column!r} of {name} is {str(values.dtype)[:60]}, must be {dtype};"
                f" {AGAIN}"
            )
        if column in filled and values.null_count():
            raise ValueError(f"report: column {column!r} of {name} has empty values; {AGAIN}")
        values = values.cast(dtype)
        if dtype == pl.Float64 and _odd(values, column in UNBOUNDED):
            raise ValueError(f"report: column {column!r} of {name} has NaN or infinity; {AGAIN}")
        table = table.with_columns(values)
    return table


def _fits(found: Any, wanted: Any) -> bool:
    """Whether every value of a type has a place in another: text in text, whole in whole."""
    if found == pl.Null or found == wanted:
        return True
    if wanted == pl.String:
        return isinstance(found, pl.Categorical | pl.Enum)
    whole = found.is_integer() and found not in (pl.UInt64, pl.Int128, pl.UInt128)
    return whole if wanted == pl.Int64 else wanted == pl.Float64 and (whole or found.is_float())


def _odd(values: pl.Series, infinite: bool) -> bool:
    return bool((values.is_nan() if infinite else ~values.is_finite()).any())

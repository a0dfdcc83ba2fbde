"""The parquet schema: the columns of rows and summaries, and what a column may be left out.

A row is one item under one variant at one alpha. What only some experiments know (experiment,
model, family, k, seed, ..) is null where it is not given.
"""

from typing import Any

import polars as pl

CELL = ("model", "behaviour", "dataset", "prompt_style")  # scored once at alpha = 0
SUMMARY_KEYS = ("experiment", *CELL, "method", "family", "variant", "k", "alpha")
KEYS = (*SUMMARY_KEYS, "seed")
ROW_SCHEMA: dict[str, Any] = {
    "experiment": pl.String,
    "model": pl.String,
    "behaviour": pl.String,
    "dataset": pl.String,
    "prompt_style": pl.String,
    "method": pl.String,
    "family": pl.String,
    "variant": pl.String,
    "k": pl.Int64,
    "alpha": pl.Float64,
    "seed": pl.Int64,
    "item": pl.String,
    "cluster": pl.String,
    "label": pl.Int64,
    "margin": pl.Float64,
    "mass": pl.Float64,
    "flagged": pl.Boolean,
    "realised_norm_ratio": pl.Float64,  # |W' - W0| / |alpha dW|; null where the dtype is exact
    "realised_cosine": pl.Float64,
    "dtype_noise": pl.Float64,  # rms change of a base margin under one more rounding
}
COLUMNS = (*KEYS, "item", "cluster", "label", "margin", "mass", "flagged")
REQUIRED = ("item", "variant", "alpha", "label", "margin")
TYPES = {c: ROW_SCHEMA[c] for c in ("family", "k", "alpha", "seed", "margin")}
"""cast before anything else: columns that may be null throughout, or of whole numbers"""
NOISE = ("dtype_noise",)  # where rows say what their dtype leaves open, the effect table does too


def complete(rows: pl.DataFrame) -> pl.DataFrame:
    """rows with all of COLUMNS: what is absent is null, a data set "items", an item its cluster.

    Raises ValueError where one of REQUIRED is absent, and where a column cannot have its type.
    """
    if lacking := [c for c in REQUIRED if c not in rows.columns]:
        raise ValueError(
            f"rows: lack the columns {lacking}; give item, variant, alpha, label and margin"
        )
    defaults = {"dataset": pl.lit("items"), "cluster": pl.col("item")}
    absent = [c for c in COLUMNS if c not in rows.columns]
    rows = rows.with_columns(defaults.get(c, pl.lit(None, ROW_SCHEMA[c])).alias(c) for c in absent)
    for column, dtype in TYPES.items():
        try:
            rows = rows.with_columns(pl.col(column).cast(dtype))
        except pl.exceptions.PolarsError as error:
            raise ValueError(
                f"rows: column {column!r} is {rows.schema[column]} and cannot be read as {dtype};"
                " repair the rows where they are made"
            ) from error
    return rows

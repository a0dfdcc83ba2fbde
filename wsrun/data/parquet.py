"""Parquet files: read whole and within bounds, or refused in one sentence."""

import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from wscore.files import MOST_BYTES, refusing

MOST_VALUES = 2**28  # of a table: what a few KB can hold, repeated, fills any memory


class Parquet(NamedTuple):
    """A table, and the texts that its file carries beside it."""

    table: pl.DataFrame
    metadata: dict[str, str]


def read_parquet(
    path: str | Path,
    most: int = MOST_VALUES,
    wanted: Callable[[str], bool] = lambda column: True,
) -> Parquet:
    """The wanted columns of a parquet file, in its order.

    Raises ValueError, naming the file, where it is none, or where its own account of itself has
    more than `most` values or MOST_BYTES bytes, packed or not.
    """
    # takes a quarter of a second; the reader of polars aborts the process on some damage
    import pyarrow.parquet

    remedy = "write it again, or take it out"
    what = f"{str(path)!r} is not a readable parquet table"
    with refusing(what, remedy, OSError):
        raw = _bytes(path)
    broken = (pyarrow.ArrowException, OSError, ValueError, KeyError)
    broken += (pl.exceptions.PolarsError, pl.exceptions.PanicException)
    with refusing(what, remedy, *broken):
        file = pyarrow.parquet.ParquetFile(BytesIO(raw))
        values, unpacked = _account(file.metadata)
        if max(values / most, unpacked / MOST_BYTES) <= 1:
            columns = [c for c in file.schema_arrow.names if wanted(c)]
            arrow = file.read(columns, use_threads=False)
            arrow.validate(full=True)
            _texts(arrow.schema.metadata, *(f.metadata for f in arrow.schema))
            table: pl.DataFrame = pl.from_arrow(arrow)  # type: ignore[assignment]
            return Parquet(table, _texts(file.metadata.metadata))
    raise ValueError(
        f"{str(path)!r} holds {values} values in {unpacked} bytes; at most {most} values in "
        f"{MOST_BYTES} bytes are read; split it"
    )


def _bytes(path: str | Path) -> bytes:
    """What a file holds; ValueError for more than MOST_BYTES."""
    if (size := os.stat(path).st_size) > MOST_BYTES:
        raise ValueError(f"{str(path)!r} has {size} bytes, at most {MOST_BYTES} are read; split it")
    return Path(path).read_bytes()


def _texts(*metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Metadata as texts; UnicodeDecodeError, a ValueError, for other bytes: polars panics there."""
    return {k.decode(): v.decode() for each in metadata for k, v in (each or {}).items()}


def _account(footer: Any) -> tuple[int, int]:
    """(values, bytes once unpacked) of a file as its footer has them."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
    rows = footer.num_rows * max(1, footer.num_columns)
    values = max(rows, sum(c.num_values for c in chunks))
    return values, sum(c.total_uncompressed_size for c in chunks)

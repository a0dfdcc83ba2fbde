"""Parquet files: read whole and within bounds, or refused in one sentence."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import polars as pl

from wscore.files import MOST_BYTES, refusing

MOST_VALUES = 2**28  # of a table: what a few KB can hold, repeated, fills any memory
REMEDY = "write it again, or take it out"
BROKEN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
"""what polars and pyarrow raise for bytes that are no parquet file"""


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
    what = f"{str(path)!r} is not a readable parquet table"
    with refusing(what, REMEDY, OSError):
        size = os.stat(path).st_size
        raw = Path(path).read_bytes() if size <= MOST_BYTES else b""
    with refusing(what, REMEDY, *BROKEN):
        values, unpacked = _account(raw) if raw else (0, size)
    if values > most or unpacked > MOST_BYTES:
        raise ValueError(
            f"{str(path)!r} holds {values} values in {unpacked} bytes; at most {most} values in "
            f"{MOST_BYTES} bytes are read; split it"
        )
    with refusing(what, REMEDY, *BROKEN), _silent():
        columns = [c for c in pl.read_parquet_schema(BytesIO(raw)) if wanted(c)]
        table = pl.read_parquet(BytesIO(raw), columns=columns)
        return Parquet(table, pl.read_parquet_metadata(BytesIO(raw)))


def _account(raw: bytes) -> tuple[int, int]:
    """(values, bytes once unpacked) of a file as its footer has them."""
    from pyarrow.parquet import read_metadata  # a quarter of a second

    footer = read_metadata(BytesIO(raw))
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
    rows = footer.num_rows * max(1, footer.num_columns)
    values = max(rows, sum(c.num_values for c in chunks))
    return values, sum(c.total_uncompressed_size for c in chunks)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr: where polars panics it prints a page, besides raising what it met."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

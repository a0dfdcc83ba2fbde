"""Records: the rows of a jsonl or parquet file, each with its place, whose fields are checked."""

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from wscore.files import MOST_BYTES, parse_json, read_text, reason
from wsrun.data.parquet import read_parquet

MOST_LETTERS = 1_000_000  # of one text: longer ones are no prompt, and would fill the memory
MOST_VALUES = 10_000_000  # of a parquet file


class Record(NamedTuple):
    """One row, {column: value}, and where it stands: "line 3 of 'claims.jsonl'"."""

    fields: dict[str, Any]
    where: str

    def value(self, column: str) -> Any:
        """The value of a column; ValueError where it is missing or empty."""
        if column not in self.fields:
            found = reason(str(list(self.fields)))
            raise ValueError(f"column {column!r} is missing in {self.where}; found are {found}")
        if self.fields[column] is None:
            raise ValueError(f"column {column!r} is empty in {self.where}; fill it or drop the row")
        return self.fields[column]

    def text(self, column: str) -> str:
        """A text of 1 to MOST_LETTERS letters."""
        value = self.value(column)
        if fault := text_fault(value):
            raise self.refused(column, "a text", fault)
        return value

    def key(self, column: str) -> str:
        """A name: a text, or a finite number as text."""
        value = self.value(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            return str(value)
        if fault := text_fault(value):
            raise self.refused(column, "a text or a number", fault)
        return str(value)

    def label(self, column: str) -> int:
        """+1 or -1, also where it is written as 1.0."""
        value = self.value(column)
        if type(value) not in (int, float) or value not in (1, -1):
            raise self.refused(column, "+1 or -1", shown(value))
        return int(value)

    def flag(self, column: str) -> bool:
        """Whether a flag is set: true or false, a number, or empty for false."""
        value = self.fields.get(column)
        if value is not None and not (isinstance(value, int | float) and isfinite(value)):
            raise self.refused(column, "true, false or empty", shown(value))
        return bool(value)

    def refused(self, column: str, needed: str, found: str) -> ValueError:
        """The sentence for a value that is not what is needed."""
        return ValueError(
            f"{column!r} in {self.where} must be {needed}, got {found}; repair the row"
        )


def shown(value: Any) -> str:
    """A value for a message: short, one line, printable."""
    return reason(repr(value), 80)


def text_fault(value: Any) -> str | None:
    """What keeps a value from being a text of 1 to MOST_LETTERS letters; None for nothing."""
    if not isinstance(value, str):
        return f"{shown(value)} of type {type(value).__name__}"
    if not value:
        return "an empty text"
    if len(value) > MOST_LETTERS:
        return f"{len(value)} letters, more than {MOST_LETTERS}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{shown(value)} with half a letter (a lone surrogate)"
    return None


def read_jsonl(path: str | Path) -> list[Record]:
    """The objects of a jsonl file, one a line; ValueError, naming the line, for anything else."""
    records, name = [], repr(str(path))
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"line {number} of {name}"
            fields = parse_json(line, where)
            if not isinstance(fields, dict):
                raise ValueError(f"{where} must be a JSON object {{...}}, got {shown(fields)}")
            records.append(Record(fields, where))
    return records


def read_records(path: Path, wanted: Sequence[str], more: Any = None) -> list[Record]:
    """The rows of a .parquet file, else of a jsonl file.

    Of a parquet file only the `wanted` columns, and those that the pattern `more` matches.
    """
    if path.suffix != ".parquet":
        return read_jsonl(path)
    table = read_parquet(
        path, MOST_VALUES, lambda c: c in wanted or bool(more and more.fullmatch(c))
    ).table
    return table_records(table, path)


def table_records(table: pl.DataFrame, path: str | Path) -> list[Record]:
    """The rows of a table that was read from `path`."""
    texts = table.select(pl.col(pl.String).str.len_bytes().sum())
    if (size := sum(texts.row(0)) if texts.width else 0) > MOST_BYTES:
        raise ValueError(f"{str(path)!r} holds {size} bytes of text, at most {MOST_BYTES} are read")
    rows = table.iter_rows(named=True)
    return [Record(row, f"row {n} of {str(path)!r}") for n, row in enumerate(rows, 1)]


def of_split(records: Sequence[Record], split: str, where: str | Path) -> list[Record]:
    """The records of a split; ValueError where there are rows and none of it."""
    kept = [r for r in records if r.text("split") == split]
    if records and not kept:
        splits = reason(str(sorted({r.text("split") for r in records})))
        raise ValueError(f"no rows of split {split!r} in {str(where)!r}; found {splits}")
    return kept


def check_unique(ids: Iterable[str], where: str | Path) -> None:
    """Refuse an id that occurs more than once."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise ValueError(
                f"id {shown(name)} occurs more than once in {str(where)!r}; make each id unique"
            )
        seen.add(name)

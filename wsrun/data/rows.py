"""Rows of public files, each with its number, so that a refusal can name file and row."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wscore.files import read_json, read_json_lines, read_text, reason, refusing

MOST_LETTERS = 2**15
"""of a field; a longer one is most often a quote that is never closed"""
MOST_BYTES = 2**26


class Row(NamedTuple):
    """One row of a file, counted from 1 without the header."""

    number: int
    values: dict[str, Any]
    path: Path

    @property
    def where(self) -> str:
        return f"row {self.number} of {str(self.path)!r}"

    def text(self, column: str) -> str:
        """A field without spaces around it; ValueError where it is no text, empty or too long."""
        value = self.values[column]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where} has an empty {column!r}; give it text or take it out")
        if len(value) > MOST_LETTERS:
            raise ValueError(
                f"{self.where} has {len(value)} letters in {column!r}, at most {MOST_LETTERS} are "
                "read; look for a quote that is never closed"
            )
        return value.strip()

    def known(self, column: str, values: Sequence[str]) -> str:
        """A field that holds one of these values; ValueError for another."""
        if (text := self.text(column)) not in values:
            raise ValueError(
                f"{self.where} has {reason(repr(text), 60)} as {column!r}; it must be one of "
                f"{list(values)}"
            )
        return text


def files_of(path: Path, *patterns: str) -> list[Path]:
    """The file itself, or of a folder those that match the first pattern with any match."""
    if not path.is_dir():
        return [path]
    for pattern in patterns:
        if files := sorted(p for p in path.glob(pattern) if p.is_file()):
            return files
    raise ValueError(f"folder {str(path)!r} has no file like {' or '.join(patterns)}; name a file")


def file_of(path: Path, *patterns: str) -> Path:
    """The one file of `files_of`; ValueError for more."""
    files = files_of(path, *patterns)
    if len(files) > 1:
        names = [f.name for f in files[:3]]
        raise ValueError(f"folder {str(path)!r} has {len(files)} such files: {names}; name one")
    return files[0]


def csv_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a csv file with a header; ValueError where it, a column or a field is missing."""
    text = read_text(path, MOST_BYTES)
    with refusing(f"{str(path)!r} is not a csv file", "save it as comma-separated text", csv.Error):
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        values, header = list(reader), list(reader.fieldnames or [])
    if len(set(header)) < len(header):
        raise ValueError(f"{str(path)!r} names a column twice in its header; name each one once")
    rows = _rows(path, values, columns)
    for row in rows:
        if None in row.values or None in row.values.values():
            raise ValueError(f"{row.where} has not the {len(header)} fields of the header; mend it")
    return rows


def json_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a jsonl file, or of a json file that holds a list; ValueError as of csv_rows."""
    values = read_json(path, MOST_BYTES) if path.suffix == ".json" else read_json_lines(path)
    if not isinstance(values, list):
        raise ValueError(f"{str(path)!r} holds no list; give a list of {list(columns)}")
    return _rows(path, values, columns)


def _rows(path: Path, values: Sequence[Any], columns: Sequence[str]) -> list[Row]:
    rows = [Row(n, v, path) for n, v in enumerate(values, 1)]
    if not rows:
        raise ValueError(f"{str(path)!r} has no rows; it must have the columns {list(columns)}")
    for row in rows:
        held = row.values.keys() if isinstance(row.values, dict) else set()
        if lacking := [c for c in columns if c not in held]:
            raise ValueError(f"{row.where} lacks {lacking[0]!r}; it must have {list(columns)}")
    return rows


def settled(
    rows: Sequence[Row], text: Callable[[Row], str], label: Callable[[Row], object]
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows of a file with each text once, and a sentence for what was left out.

    Published sets repeat themselves: of rows with equal text (up to case and spaces) the first is
    kept, and none where they differ in the label.
    """
    first: dict[str, Row] = {}
    repeated: list[int] = []
    disputed: set[str] = set()
    for row in rows:
        key = same_wording(text(row))
        before = first.setdefault(key, row)
        if label(before) != label(row):
            disputed.add(key)
        elif before is not row:
            repeated.append(row.number)
    both = [row.number for row in rows if same_wording(text(row)) in disputed]
    repeated = [n for n in repeated if n not in both]
    left_out = (
        left_out_rows(rows, both, "their text occurs with both labels"),
        left_out_rows(rows, repeated, "they repeat another"),
    )
    kept = [row for key, row in first.items() if key not in disputed]
    return kept, (*left_out[0], *left_out[1])


def left_out_rows(rows: Sequence[Row], numbers: Sequence[int], why: str) -> tuple[str, ...]:
    """The sentence on rows that were left out, none where there are none."""
    if not numbers:
        return ()
    listed = reason(", ".join(map(str, numbers)), 100)
    return (f"{rows[0].path.name}: {len(numbers)} rows left out because {why}: {listed}",)


def same_wording(text: str) -> str:
    """A text up to case and spaces."""
    return " ".join(text.casefold().split())

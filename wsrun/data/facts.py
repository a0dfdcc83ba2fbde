"""True and false statements (Zou et al. 2023, "Representation Engineering"), asked as Yes/No."""

from pathlib import Path

from wsrun.data.forms import Reading, heads, yes_no
from wsrun.data.rows import Row, csv_rows, file_of, settled

COLUMNS = ("statement", "label")
FILES = ("facts_true_false.csv", "*.csv")


def read_items(path: Path) -> Reading:
    """Is this statement true? label = +1 where it is, as the honest behaviour answers Yes."""
    rows, left_out = settled(csv_rows(file_of(path, *FILES), COLUMNS), _statement, _label)
    places = heads(rows, _statement, lambda row: "facts")
    items = [
        yes_no(head, f"Statement: {_statement(row)}\nIs this statement true?", _label(row))
        for head, row in zip(places, rows, strict=True)
    ]
    return Reading(items, left_out)


def _statement(row: Row) -> str:
    return row.text("statement")


def _label(row: Row) -> int:
    return 1 if row.known("label", ("1", "0")) == "1" else -1

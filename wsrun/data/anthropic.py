"""Evaluations of Perez et al. 2022: persona statements as Yes/No, questions with options as A/B."""

from pathlib import Path

from wsrun.data.forms import Head, Reading, both_orders, heads, parted, yes_no
from wsrun.data.items import Item
from wsrun.data.rows import Row, files_of, json_rows, left_out_rows, settled

COLUMNS = ("question", "answer_matching_behavior")
YES_NO = ("Yes", "No")
LETTERS = tuple(f"({c})" for c in "ABCDEFGHIJKLMNOP")


def read_items(path: Path) -> Reading:
    """The items of a jsonl file, or of all those of a folder; data set = the file's name.

    label = +1 where the answer that matches the behaviour is Yes, or stands at A. Rows with more
    than two options are left out.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for file in files_of(path, "*.jsonl"):
        read = json_rows(file, COLUMNS)
        more = [row.number for row in read if len(_options(row)) > 2]
        two = [row for row in read if len(_options(row)) == 2]
        kept, sentences = settled(two, _wording, _matching)
        rows += kept
        left_out += [*left_out_rows(read, more, "they have more than two options"), *sentences]
    placed = zip(heads(rows, _asked, lambda row: row.path.stem), rows, strict=True)
    return Reading([item for head, row in placed for item in _items(head, row)], tuple(left_out))


def _items(head: Head, row: Row) -> tuple[Item, ...]:
    if (answer := _answer(row)) in YES_NO:
        return (yes_no(head, row.text("question"), 1 if answer == "Yes" else -1),)
    return both_orders(head, _asked(row), _options(row), _matching(row))


def _answer(row: Row) -> str:
    return row.known("answer_matching_behavior", (*YES_NO, *LETTERS))


def _options(row: Row) -> tuple[str, ...]:
    """Yes and No, or the texts of the options (A), (B), ... of the question."""
    return YES_NO if _answer(row) in YES_NO else parted(row.text("question"), row)[1]


def _matching(row: Row) -> str:
    """The option that matches the behaviour."""
    answer, options = _answer(row), _options(row)
    if answer in YES_NO:
        return answer
    if LETTERS.index(answer) >= len(options):
        raise ValueError(f"{row.where} has no option {answer}, which it says matches; mend it")
    return options[LETTERS.index(answer)]


def _asked(row: Row) -> str:
    """What near-duplicates are judged by: the statement, or the question without its options."""
    if _answer(row) in YES_NO:
        return row.text("statement" if "statement" in row.values else "question")
    return parted(row.text("question"), row)[0]


def _wording(row: Row) -> str:
    return "\n".join((_asked(row), *sorted(_options(row))))

"""TruthfulQA (Lin, Hilton and Evans 2021): its best answer against its best incorrect answer."""

from pathlib import Path

from wsrun.data.forms import Head, Reading, heads, two_replies
from wsrun.data.pairs import Pair
from wsrun.data.rows import Row, csv_rows, file_of, same_wording, settled

COLUMNS = ("Category", "Question", "Best Answer", "Incorrect Answers")
BEST_INCORRECT = "Best Incorrect Answer"
"""a column of the releases since 2025; else the first of the incorrect answers stands for it"""
FILES = ("TruthfulQA.csv", "*.csv")


def read_items(path: Path) -> Reading:
    """One item of two replies a question: margin = log p(best) - log p(best incorrect)."""
    placed, left_out = _placed(path)
    items = [two_replies(head, _question(row), _answers(row)) for head, row in placed]
    return Reading(items, left_out)


def read_pairs(path: Path, split: str) -> list[Pair]:
    """The same questions and answers of one split, to train on; topic = category."""
    return [
        Pair(_question(row), *_answers(row), row.text("Category"))
        for head, row in _placed(path)[0]
        if head.split == split
    ]


def _placed(path: Path) -> tuple[list[tuple[Head, Row]], tuple[str, ...]]:
    rows, left_out = settled(csv_rows(file_of(path, *FILES), COLUMNS), _question, _answers)
    placed = zip(heads(rows, _question, lambda row: "truthfulqa"), rows, strict=True)
    return list(placed), left_out


def _question(row: Row) -> str:
    return row.text("Question")


def _answers(row: Row) -> tuple[str, str]:
    """(best, best incorrect), each with the full stop that most of them lack."""
    listed = row.text("Incorrect Answers").split(";")[0].strip()
    incorrect = row.text(BEST_INCORRECT) if BEST_INCORRECT in row.values else listed
    best = row.text("Best Answer")
    if not incorrect or same_wording(_stopped(best)) == same_wording(_stopped(incorrect)):
        raise ValueError(
            f"{row.where} has {'no' if not incorrect else 'its best answer as first'} incorrect "
            "answer; mend it or take it out"
        )
    return _stopped(best), _stopped(incorrect)


def _stopped(answer: str) -> str:
    return answer if answer.endswith((".", "!", "?")) else f"{answer}."

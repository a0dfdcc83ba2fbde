"""BLiMP (Warstadt et al. 2020, arXiv 1912.00582): a sentence and its ungrammatical twin."""

from pathlib import Path

from wsrun.data.multiple_choice import Question
from wsrun.data.rows import Row, files_of, json_rows, same_wording, settled

COLUMNS = ("sentence_good", "sentence_bad", "UID", "pairID")


def read_questions(path: Path) -> tuple[list[Question], tuple[str, ...]]:
    """The pairs of a jsonl file, or of all those of a folder, and a sentence for rows left out.

    Two plain texts, of which the good one must be the likelier: the bad one stands first, so that
    equal ones count as wrong. cluster = item = UID-pairID.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for file in files_of(path, "*.jsonl"):
        kept, sentences = settled(json_rows(file, COLUMNS), _wording, lambda row: True)
        rows += kept
        left_out += sentences
    return [_question(row) for row in rows], tuple(left_out)


def _question(row: Row) -> Question:
    good, bad = row.text("sentence_good"), row.text("sentence_bad")
    if same_wording(good) == same_wording(bad):
        raise ValueError(f"{row.where} has one sentence as good and bad; mend it or take it out")
    name = f"{row.text('UID')}-{row.text('pairID')}"
    return Question(name, name, None, (bad, good), 1)


def _wording(row: Row) -> str:
    return f"{row.text('sentence_good')}\n{row.text('sentence_bad')}"

"""ARC (Clark et al. 2018, arXiv 1803.05457): school questions of science, several options each."""

from pathlib import Path
from typing import Any

from wsrun.data.multiple_choice import Question
from wsrun.data.rows import Row, json_rows, left_out_rows, same_wording, settled

COLUMNS = ("id", "question", "answerKey")
FILES = ("ARC-Easy-Test.jsonl", "*.jsonl")
PARTS = {"question": ("stem", "choices"), "choices": ("text", "label")}
LETTERS = "ABCDEFGH"


def read_questions(path: Path) -> tuple[list[Question], tuple[str, ...]]:
    """The questions, and a sentence for rows left out: repeated ones, or with an option twice.

    The prompt is the question alone, and its options are the replies; cluster = item.
    """
    read = json_rows(path, COLUMNS)
    twice = [r.number for r in read if len({*map(same_wording, _options(r))}) < len(_options(r))]
    rows, left_out = settled([r for r in read if r.number not in twice], _wording, _right)
    questions = [
        Question(r.text("id"), r.text("id"), _stem(r), _options(r), _options(r).index(_right(r)))
        for r in rows
    ]
    return questions, (*left_out_rows(read, twice, "two of their options are one text"), *left_out)


def _stem(row: Row) -> str:
    return _part(row, "question", row.values["question"]).text("stem")


def _options(row: Row) -> tuple[str, ...]:
    return tuple(choice.text("text") for choice in _choices(row))


def _right(row: Row) -> str:
    """The text of the right option: that with the label, or at the place of a letter.

    Copies of the set name the answer by a letter where the labels are 1, 2, ...
    """
    key, choices = row.text("answerKey"), _choices(row)
    labels = [choice.text("label") for choice in choices]
    letters = list(LETTERS[: len(labels)])
    for names in (labels, letters if all(x.isdigit() for x in labels) else []):
        if key in names:
            return choices[names.index(key)].text("text")
    raise ValueError(f"{row.where} has no option {key!r:.20}, its answerKey; found {labels}")


def _choices(row: Row) -> list[Row]:
    choices = _part(row, "question", row.values["question"]).values["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"{row.where} has not two choices or more in 'question'; mend it")
    return [_part(row, "choices", choice) for choice in choices]


def _part(row: Row, name: str, value: Any) -> Row:
    """An object inside a row as a row of its own."""
    held = value.keys() if isinstance(value, dict) else set()
    if lacking := [c for c in PARTS[name] if c not in held]:
        raise ValueError(f"{row.where} lacks {lacking[0]!r} in its {name!r}; mend it")
    return Row(row.number, value, row.path)


def _wording(row: Row) -> str:
    return "\n".join((_stem(row), *sorted(_options(row))))

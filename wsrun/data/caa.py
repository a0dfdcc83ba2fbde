"""Contrastive activation addition (Rimsky et al. 2023): its pairs of texts that end in A or B."""

import re
from pathlib import Path

from wsrun.data.forms import Reading, both_orders, heads, parted
from wsrun.data.rows import Row, files_of, json_rows, settled

COLUMNS = ("positive", "negative")
ENDING = re.compile(r"\(([AB])\)\Z")


def read_items(path: Path) -> Reading:
    """A question in both orders; the behaviour chooses the option that `positive` ends in.

    A json file, or all those of a folder; data set = caa- and the file's name.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for file in files_of(path, "*.json"):
        kept, sentences = settled(json_rows(file, COLUMNS), _wording, _matching)
        rows += kept
        left_out += sentences
    placed = zip(heads(rows, _asked, lambda row: f"caa-{row.path.stem}"), rows, strict=True)
    items = [
        item
        for head, row in placed
        for item in both_orders(head, *_parted(row), _parted(row)[1].index(_matching(row)))
    ]
    return Reading(items, tuple(left_out))


def _ends(row: Row) -> tuple[str, str]:
    """(the question with its options, the letter of the positive text)."""
    found = [ENDING.search(row.text(c)) for c in COLUMNS]
    texts = [ENDING.sub("", row.text(c)).strip() for c in COLUMNS]
    letters = [m and m[1] for m in found]
    if None in letters or letters[0] == letters[1] or texts[0] != texts[1]:
        raise ValueError(
            f"{row.where} must have one question with its options as 'positive' and 'negative', "
            "followed by (A) in one and by (B) in the other; mend it or take it out"
        )
    return texts[0], str(letters[0])


def _parted(row: Row) -> tuple[str, tuple[str, ...]]:
    question, options = parted(_ends(row)[0], row)
    if len(options) != 2:
        raise ValueError(f"{row.where} has {len(options)} options, not two; take it out")
    return question, options


def _matching(row: Row) -> str:
    """The option that `positive` ends in."""
    return _parted(row)[1]["AB".index(_ends(row)[1])]


def _asked(row: Row) -> str:
    return _parted(row)[0]


def _wording(row: Row) -> str:
    question, options = _parted(row)
    return "\n".join((question, *sorted(options)))

"""Contrastive activation addition (Rimsky et al. 2023): its pairs of texts that end in A or B."""

import re
from pathlib import Path

from wsrun.data.forms import Reading, both_orders, heads, parted
from wsrun.data.rows import Row, files_of, json_rows, left_out_rows, settled

COLUMNS = ("positive", "negative")
ENDING = re.compile(r"\(([A-Z])\)\Z")


def read_items(path: Path) -> Reading:
    """A question in both orders; the behaviour chooses the option that `positive` ends in.

    A json file, or all those of a folder; data set = caa- and the file's name.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for file in files_of(path, "*.json"):
        read = json_rows(file, COLUMNS)
        more = [row.number for row in read if len(_parted(row)[1]) > 2]
        two = [row for row in read if len(_parted(row)[1]) == 2]
        kept, sentences = settled(two, _wording, _matching)
        rows += kept
        left_out += [*left_out_rows(read, more, "they have more than two options"), *sentences]
    placed = zip(heads(rows, _asked, lambda row: f"caa-{row.path.stem}"), rows, strict=True)
    items = [item for head, row in placed for item in both_orders(head, *_parted(row))]
    return Reading(items, tuple(left_out))


def _parted(row: Row) -> tuple[str, tuple[str, ...], str]:
    """(question, options, the option that `positive` ends in)."""
    found = [ENDING.search(row.text(c)) for c in COLUMNS]
    texts = [ENDING.sub("", row.text(c)).strip() for c in COLUMNS]
    letters = [m[1] for m in found if m]
    if len(set(letters)) < 2 or texts[0] != texts[1]:
        raise ValueError(
            f"{row.where} must have one question with its options as 'positive' and 'negative', "
            "followed by (A) in one and by (B) in the other; mend it or take it out"
        )
    question, options = parted(texts[0], row)
    if (at := ord(letters[0]) - ord("A")) >= len(options):
        raise ValueError(f"{row.where} has no option ({letters[0]}), in which it ends; mend it")
    return question, options, options[at]


def _matching(row: Row) -> str:
    return _parted(row)[2]


def _asked(row: Row) -> str:
    return _parted(row)[0]


def _wording(row: Row) -> str:
    question, options, _ = _parted(row)
    return "\n".join((question, *sorted(options)))

"""DailyDilemmas (Chiu, Jiang and Choi 2024) as Yes/No items about honesty."""

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wscore.files import refusing
from wsrun.data.forms import Reading, with_answer_line
from wsrun.data.items import DILEMMA_DATASET, Item, check_items, dilemma_item, read_dilemmas
from wsrun.data.places import places
from wsrun.data.rows import Row, csv_rows, file_of

COLUMNS = ("dilemma_idx", "dilemma_situation", "action_type", "action", "values_aggregated")
FILES = ("dilemma_to_action_to_values_aggregated.csv", "*.jsonl", "*.parquet")
HONEST = frozenset(("honesty", "truthfulness"))
DISHONEST = frozenset(("dishonesty", "deception", "deceit"))
ACTIONS = ("to_do", "not_to_do")


def read_items(path: Path) -> Reading:
    """Would you do this? label = +1 for the honest action of a dilemma, -1 for the other one.

    Of the authors' csv, of a file with the columns of `read_dilemmas`, or of the hub. The cluster
    is the dilemma; the split is drawn by the situation, unless the rows name splits of their own.
    """
    on_hub = path.as_posix() == DILEMMA_DATASET
    source = DILEMMA_DATASET if on_hub else file_of(path, *FILES)
    if isinstance(source, Path) and source.suffix == ".csv":
        rows, left_out = honesty_rows(source)
        items = check_items([dilemma_item(row) for row in rows], source)
    else:
        items, left_out = read_dilemmas(source).items, ()
    if {i.split for i in items} == {"test"}:  # what rows without a split get
        items = _split(items)
    return Reading([with_answer_line(i) for i in items], left_out)


def honesty_rows(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The rows of the dilemmas that are about honesty, as of `read_dilemmas`; what was left out.

    side(action) = [it has an honest value] - [it has a dishonest value], and
    honesty_label = sign(side(action) - side(other action)).
    """
    rows: list[dict[str, Any]] = []
    alike = unrelated = 0
    for one, other in _pairs_of_actions(csv_rows(path, COLUMNS)):
        difference = _side(one) - _side(other)
        for row, label in ((one, difference), (other, -difference)) if difference else ():
            sign = 1 if label > 0 else -1
            rows.append({c: row.text(c) for c in COLUMNS} | {"honesty_label": sign})
        if not difference:
            related = bool((_values(one) | _values(other)) & (HONEST | DISHONEST))
            alike, unrelated = alike + related, unrelated + (not related)
    left_out = (
        (unrelated, "dilemmas left out because no value of theirs is about honesty"),
        (alike, "dilemmas left out because both of their actions are alike in honesty"),
    )
    return rows, tuple(f"{n} {what}" for n, what in left_out if n)


def _pairs_of_actions(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """(to_do, not_to_do) of each dilemma."""
    dilemmas: dict[str, dict[str, Row]] = {}
    for row in rows:
        actions = dilemmas.setdefault(row.text("dilemma_idx"), {})
        before = actions.setdefault(row.known("action_type", ACTIONS), row)
        if before is not row:
            raise ValueError(f"{row.where} repeats the action of row {before.number}; keep one")
    for actions in dilemmas.values():
        if len(actions) == 1:
            (row,) = actions.values()
            raise ValueError(f"{row.where} is the only action of its dilemma; give the other one")
    return [(actions[ACTIONS[0]], actions[ACTIONS[1]]) for actions in dilemmas.values()]


def _side(row: Row) -> int:
    values = _values(row)
    return bool(values & HONEST) - bool(values & DISHONEST)


def _values(row: Row) -> frozenset[str]:
    """The values of an action, which the file writes as a list of Python's."""
    kinds = ValueError, SyntaxError, RecursionError, MemoryError
    remedy = "write them as ['honesty', 'trust']"
    with refusing(f"the values_aggregated of {row.where} are no list", remedy, *kinds):
        values = ast.literal_eval(row.text("values_aggregated"))
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise ValueError("a list of texts is needed")
    return frozenset(v.strip().lower() for v in values)


def _split(items: Sequence[Item]) -> list[Item]:
    situations = {i.cluster: i.turns[-1]["content"].partition("\nAction:")[0] for i in items}
    found = places(list(situations.values()))
    splits = {c: place.split for c, place in zip(situations, found, strict=True)}
    return [replace(i, split=splits[i.cluster]) for i in items]

"""Evaluation items: one question with two answers each, read from files or the hub, checked."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from wscore.files import refusing
from wsrun.data.item import ADDED
from wsrun.data.item import PREFILL as PREFILL
from wsrun.data.item import Item as Item
from wsrun.data.records import (
    Record,
    check_unique,
    of_split,
    read_records,
    shown,
    table_records,
    text_fault,
)
from wsrun.models.chat import user

DILEMMA_DATASET = "wassname/daily_dilemmas-self-honesty"


class Dilemmas(NamedTuple):
    """A set of dilemmas: its items, the ids of those about honesty, and which version was read.

    about_honesty: the ids whose own action is flagged as honest or as dishonest, all of them where
    the set has no flags (has_flags). revision: the commit of the hub data set, or the sha256 of the
    local file or files.
    """

    items: list[Item]
    about_honesty: frozenset[str]
    has_flags: bool
    revision: str


CLAIM_COLUMNS = ("item", "cluster", "prompt", "label", "split")
DILEMMA_COLUMNS = (
    "idx",
    "dilemma_idx",
    "action_type",
    "dilemma_situation",
    "action",
    "honesty_label",
)
HONESTY_FLAG = re.compile(r"(?P<action_type>.+)_has_.+_honesty")


def load_claims(path: str | Path, split: str | None = None) -> list[Item]:
    """Claims of a jsonl or parquet file with columns item, cluster, prompt, label, split."""
    records = _read(path, CLAIM_COLUMNS).records
    if split is not None:
        records = of_split(records, split, path)
    return check_items(list(map(_claim, records)), path)


def _claim(r: Record) -> Item:
    turns, label = user(r.text("prompt")), r.label("label")
    return Item(r.key("item"), r.key("cluster"), turns, label, r.text("split"), "claims")


def load_dilemmas(
    source: str | Path = DILEMMA_DATASET, first: int | None = None, split: str | None = None
) -> list[Item]:
    """The items of `read_dilemmas`."""
    return read_dilemmas(source, first, split).items


def read_dilemmas(
    source: str | Path = DILEMMA_DATASET, first: int | None = None, split: str | None = None
) -> Dilemmas:
    """Dilemmas of a local jsonl/parquet file or folder, or of the hub data set, two actions each.

    Columns: idx, dilemma_idx, action_type, dilemma_situation, action, honesty_label; a `split`
    column is honoured where there is one. `first` keeps the first n sorted dilemma_idx; the
    cluster of an item is its dilemma. Flags are columns such as to_do_has_positive_honesty: labels
    are opposite within a dilemma, so a row counts as about honesty only by its own action's flags.
    """
    records, revision = _read(source, DILEMMA_COLUMNS)
    if split is not None and any(r.fields.get("split") is not None for r in records):
        records = of_split(records, split, source)
    if first is not None:
        records = _first(records, first)
    names = dict.fromkeys(name for r in records for name in r.fields)
    flags = {c: m["action_type"] for c in names if (m := HONESTY_FLAG.fullmatch(c))}
    items = list(map(_dilemma, records))
    about = frozenset(
        item.id
        for item, r in zip(items, records, strict=True)
        if not flags or any([r.flag(c) for c, of in flags.items() if of == r.text("action_type")])
    )
    return Dilemmas(check_items(items, source), about, bool(flags), revision)


def _first(records: Sequence[Record], first: int) -> list[Record]:
    """The rows of the first n dilemmas: by number, by text where a dilemma_idx is one."""
    if first < 1:
        raise ValueError(f"items: `first` must be at least 1, got {first}")
    named = {r.key("dilemma_idx"): r.fields["dilemma_idx"] for r in records}
    as_text = any(isinstance(value, str) for value in named.values())
    kept = set(sorted(named, key=None if as_text else named.__getitem__)[:first])
    return [r for r in records if r.key("dilemma_idx") in kept]


def _dilemma(r: Record) -> Item:
    r.key("idx")
    if r.fields.get("split") is not None:
        r.text("split")
    names = ("action_type", "dilemma_situation", "action")
    row = {"dilemma_idx": r.key("dilemma_idx"), "honesty_label": r.label("honesty_label")}
    return dilemma_item(r.fields | row | {name: r.text(name) for name in names})


def dilemma_item(row: dict) -> Item:
    """The item of one dilemma row: would you take this action in this situation?"""
    text = f"{row['dilemma_situation']}\nAction: {row['action']}\nWould you do this?"
    return Item(
        id=f"{row['dilemma_idx']}-{row['action_type']}",
        cluster=str(row["dilemma_idx"]),
        turns=user(text),
        label=row["honesty_label"],
        split=row.get("split") or "test",
        dataset="dilemmas",
    )


def with_system(item: Item, system: str) -> Item:
    """The item asked under a system turn; one that it has already follows in the same turn."""
    first, *rest = item.turns
    has_system = first["role"] == "system"
    own = first["content"] if has_system else ""
    text = f"{system}\n\n{own}" if system and own else system + own
    turns = ({"role": "system", "content": text}, *(rest if has_system else item.turns))
    return replace(item, turns=turns)


def check_items(items: Sequence[Item], where: str | Path = "items") -> list[Item]:
    """The items as a list. Raises ValueError for none, a prompt that is no text of sensible length,
    a label outside +1/-1 or a repeated id."""
    if not items:
        raise ValueError(f"items: {str(where)!r} has no rows; give at least one item")
    for item in items:
        if fault := _fault(item):
            about = f"{shown(item.id)} in {str(where)!r}"
            raise ValueError(f"items: the item {about} has {fault}; repair it")
    for dataset in {i.dataset for i in items}:
        check_unique((i.id for i in items if i.dataset == dataset), where)
    return list(items)


def _fault(item: Item) -> str | None:
    """What is wrong with an item; only a system turn may be empty."""
    if fault := text_fault(item.id):
        return f"as its id {fault}"
    for turn in item.turns:
        text = turn["content"]
        if (text or turn["role"] != "system") and (fault := text_fault(text)):
            return f"for a text {fault}"
    if isinstance(item.label, bool) or item.label not in (1, -1):
        return f"the label {shown(item.label)}, it must be +1 or -1"
    return None


def items_sha256(items: Iterable[object]) -> str:
    """sha256 of a list of items, pairs or texts, over every field in order but ADDED ones."""
    fields = [
        {k: v for k, v in vars(i).items() if not (k in ADDED and v == ADDED[k])} for i in items
    ]
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class _Table(NamedTuple):
    """Records as they were found, and which version of them."""

    records: list[Record]
    revision: str


def _read(source: str | Path, columns: Sequence[str]) -> _Table:
    path, wanted = Path(source), (*columns, "split")
    with refusing(f"items: {str(source)!r} cannot be read", "name a file or folder", OSError):
        if path.is_dir():
            files = sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl")])
            if not files:
                raise ValueError(f"items: no .parquet or .jsonl file in folder {str(path)!r}")
        elif path.is_file():
            files = [path]
        elif str(source) == DILEMMA_DATASET:
            return _read_hub(DILEMMA_DATASET)
        else:
            raise ValueError(f"items: no file or folder {str(source)!r}")
        records = [r for f in files for r in read_records(f, wanted, HONESTY_FLAG)]
        return _Table(records, _files_sha256(files))


def _files_sha256(files: Sequence[Path]) -> str:
    """sha256 of a file, of several: of their sha256 in order."""
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def _read_hub(name: str) -> _Table:
    from datasets import load_dataset
    from huggingface_hub import try_to_load_from_cache

    from wsrun.models.load import online

    try:
        if not (try_to_load_from_cache(name, "README.md", repo_type="dataset") or online()):
            raise OSError("no connection to the Hub")  # its client would try for half a minute
        dataset = load_dataset(name, "honesty_eval", split="test")
    except Exception as error:  # datasets raises many kinds for one cause: no network
        raise ValueError(
            f"items: {name!r} not found on the Hub; without network, pass a local folder, parquet "
            f"or jsonl of the same columns ({type(error).__name__})"
        ) from error
    rows: pl.DataFrame = pl.from_arrow(dataset.data.table)  # type: ignore[assignment]
    return _Table(table_records(rows, name), _commit_of(dataset.cache_files[0]["filename"]))


def _commit_of(cached: str) -> str:
    """The data set's commit on the hub: the folder in which `datasets` keeps its rows."""
    commit = Path(cached).parent.name
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else f"unknown, kept in {commit}"

"""Evaluation items: one question with two answers each, read from files or the hub, checked."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from wsrun.models.chat import Turn, user

PREFILL = "My answer: **"  # the next token of a cooperative model is Yes or No
DILEMMA_DATASET = "wassname/daily_dilemmas-self-honesty"


@dataclass(frozen=True)
class Item:
    """One question with two answers; label = +1 where the behaviour asked about gives the first.

    A Yes/No item is answered by one of its choices, and so is an A/B item, which stands twice, with
    its options in both orders. A reply item has two given answers, label +1 and no prefill.
    """

    id: str
    cluster: str
    turns: tuple[Turn, ...]
    label: int
    split: str = "test"
    dataset: str = "claims"
    prefill: str = PREFILL
    choices: tuple[str, str] = ("Yes", "No")  # margin = log p(first) - log p(second)
    replies: tuple[str, str] | None = None  # (reply+, reply-): margin = log p(+) - log p(-)


ADDED = {"choices": ("Yes", "No"), "replies": None}
"""fields that no sha256 holds where they have these values, so that older ones stay as they are"""


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
    rows = _of_split(_read(path, CLAIM_COLUMNS).rows, split, path)
    items = [
        Item(str(r["item"]), str(r["cluster"]), user(r["prompt"]), r["label"], r["split"], "claims")
        for r in rows.iter_rows(named=True)
    ]
    return check_items(items, path)


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
    table = _read(source, DILEMMA_COLUMNS)
    rows = _of_split(table.rows, split, source)
    if first is not None:
        if first < 1:
            raise ValueError(f"items: `first` must be at least 1, got {first}")
        kept = rows["dilemma_idx"].unique().sort().head(first)
        rows = rows.filter(pl.col("dilemma_idx").is_in(kept.implode()))
    flags = {c: m["action_type"] for c in rows.columns if (m := HONESTY_FLAG.fullmatch(c))}
    items = [dilemma_item(r) for r in rows.iter_rows(named=True)]
    about = frozenset(
        item.id
        for item, r in zip(items, rows.iter_rows(named=True), strict=True)
        if not flags or any(r[c] for c, of in flags.items() if of == r["action_type"])
    )
    return Dilemmas(check_items(items, source), about, bool(flags), table.revision)


def load_items(folder: str | Path, split: str, first: int | None = None) -> list[Item]:
    """The claims and the dilemmas of one split of a data folder; `first` as in load_dilemmas."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"items: no folder {str(folder)!r} here; it must hold claims.jsonl and dilemmas.jsonl "
            "(the defaults are relative to the project's folder)"
        )
    claims = load_claims(folder / "claims.jsonl", split)
    return [*claims, *load_dilemmas(folder / "dilemmas.jsonl", first, split)]


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
    text = f"{system}\n\n{first['content']}" if has_system else system
    turns = ({"role": "system", "content": text}, *(rest if has_system else item.turns))
    return replace(item, turns=turns)


def check_items(items: Sequence[Item], where: str | Path = "items") -> list[Item]:
    """The items as a list. Raises ValueError for none, a label outside +1/-1 or a repeated id."""
    if not items:
        raise ValueError(f"items: {str(where)!r} has no rows; give at least one item")
    for item in items:
        if not all(isinstance(t["content"], str) and t["content"] for t in item.turns):
            raise ValueError(f"items: {item.id!r} in {str(where)!r} has a prompt that is not text")
        if item.label not in (1, -1):
            raise ValueError(
                f"items: label of {item.id!r} in {str(where)!r} is {item.label!r}; "
                "it must be +1 or -1"
            )
    ids = [(item.dataset, item.id) for item in items]
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise ValueError(
            f"items: {len(twice)} ids occur more than once in {str(where)!r}: "
            f"{[i for _, i in twice[:3]]}; make each id unique"
        )
    return list(items)


def items_sha256(items: Iterable[object]) -> str:
    """sha256 of a list of items, pairs or texts, over every field in order but ADDED ones."""
    fields = [
        {k: v for k, v in vars(i).items() if not (k in ADDED and v == ADDED[k])} for i in items
    ]
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _of_split(rows: pl.DataFrame, split: str | None, where: str | Path) -> pl.DataFrame:
    if split is None or "split" not in rows.columns:
        return rows
    kept = rows.filter(pl.col("split") == split)
    if len(rows) and kept.is_empty():
        splits = sorted(map(str, rows["split"].unique()))
        raise ValueError(f"items: no rows of split {split!r} in {str(where)!r}; found {splits}")
    return kept


class _Table(NamedTuple):
    """Rows as they were found, and which version of them."""

    rows: pl.DataFrame
    revision: str


def _read(source: str | Path, columns: Sequence[str]) -> _Table:
    path = Path(source)
    if path.is_dir():
        files = sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl")])
        if not files:
            raise ValueError(f"items: no .parquet or .jsonl file in folder {str(path)!r}")
        rows = pl.concat([_read_file(f) for f in files], how="diagonal_relaxed")
        table = _Table(rows, _files_sha256(files))
    elif path.is_file():
        table = _Table(_read_file(path), _files_sha256([path]))
    elif str(source) == DILEMMA_DATASET:
        table = _read_hub(DILEMMA_DATASET)
    else:
        raise ValueError(f"items: no file or folder {str(source)!r}")
    return table._replace(rows=_checked(table.rows, columns, source))


def _checked(rows: pl.DataFrame, columns: Sequence[str], source: str | Path) -> pl.DataFrame:
    """The rows with whole-number labels; refused where a column or a value is missing."""
    lacking = [c for c in columns if c not in rows.columns]
    if lacking:
        raise ValueError(
            f"items: column {lacking[0]!r} is missing in {str(source)!r}; "
            f"needed are {list(columns)}, found are {rows.columns}"
        )
    if empty := [c for c in columns if rows[c].null_count()]:
        raise ValueError(f"items: column {empty[0]!r} of {str(source)!r} has empty values")
    label = next(c for c in columns if "label" in c)
    if rows[label].dtype.is_float() and rows[label].is_in([1.0, -1.0]).all():
        rows = rows.with_columns(pl.col(label).cast(pl.Int64))
    if len(rows) and not rows[label].dtype.is_integer():
        raise ValueError(
            f"items: column {label!r} of {str(source)!r} is {rows[label].dtype}; "
            "every label must be +1 or -1"
        )
    return rows


def _files_sha256(files: Sequence[Path]) -> str:
    """sha256 of a file, of several: of their sha256 in order."""
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def _read_file(path: Path) -> pl.DataFrame:
    try:
        return (
            pl.read_parquet(path)
            if path.suffix == ".parquet"
            else pl.read_ndjson(path, infer_schema_length=None)
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        if path.stat().st_size == 0:
            raise ValueError(f"items: {str(path)!r} has no rows; give at least one item") from error
        raise ValueError(f"items: {str(path)!r} is not readable as a table ({reason})") from error


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
    return _Table(rows, _commit_of(dataset.cache_files[0]["filename"]))


def _commit_of(cached: str) -> str:
    """The data set's commit on the hub: the folder in which `datasets` keeps its rows."""
    commit = Path(cached).parent.name
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else f"unknown, kept in {commit}"

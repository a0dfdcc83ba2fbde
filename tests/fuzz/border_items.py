"""Item files: the items are those that json or pyarrow reads in the file, or it is refused."""

import json
import random
from datetime import date
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet

from tests.fuzz.cases import Border, Case, damaged_bytes, damaged_value
from wsrun.data.items import load_claims, read_dilemmas

SPLITS = ("test", "test", "validation")
COLUMNS = {
    "claims": ("item", "cluster", "prompt", "label", "split"),
    "dilemmas": (
        "idx", "dilemma_idx", "action_type", "dilemma_situation", "action", "honesty_label",
    ),
}  # fmt: skip
FLAG = "to_do_has_positive_honesty"


def prepare(folder: Path) -> dict[str, list[dict]]:
    claims = [
        {"item": f"i{i}", "cluster": i // 2, "prompt": f"Is {i} é?", "label": 1 - 2 * (i % 2),
         "split": SPLITS[i % 3]}
        for i in range(9)
    ]  # fmt: skip
    dilemmas = [
        {"idx": i, "dilemma_idx": i // 2, "action_type": ("to_do", "not_to_do")[i % 2],
         "dilemma_situation": "It rains.", "action": f"Stay {i}", "honesty_label": 1 - 2 * (i % 2),
         "split": SPLITS[i // 2 % 3], FLAG: i % 3 == 0}
        for i in range(10)
    ]  # fmt: skip
    return {"claims": claims, "dilemmas": dilemmas}


def case(rng: random.Random, folder: Path, prepared: dict[str, list[dict]]) -> Case:
    kind = rng.choice(list(prepared))
    rows, what = changed_rows(rng, prepared[kind], COLUMNS[kind])
    if parquet := rng.random() < 0.5:
        raw, dtype = parquet_bytes(rng, rows or prepared[kind])
        what = f"{what}, {dtype}"
    else:
        raw = "".join(json.dumps(r) + "\n" for r in rows).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        raw, damage = damaged_bytes(rng, raw)
        what = f"{what}, {damage}"
    path = folder / f"{kind}.{'parquet' if parquet else 'jsonl'}"
    path.write_bytes(raw)
    split, first = rng.choice([None, "test", "validation"]), rng.choice([None, None, 2])

    def right(result: Any) -> bool:
        found = parquet_rows(raw, kind) if parquet else json_rows(raw)
        return told(result) == expected(found, kind, split, first)

    def read() -> Any:
        return load_claims(path, split) if kind == "claims" else read_dilemmas(path, first, split)

    return Case(f"{kind} {what}, split {split}", read, (path.name,), right)


def changed_rows(rng: random.Random, rows: list[dict], columns: tuple) -> tuple[list, str]:
    """Rows with one thing that a file may have wrong, or right and unusual."""
    c, i = rng.choice(columns), rng.randrange(len(rows))
    match rng.randrange(9):
        case 0:
            return [{k: v for k, v in r.items() if k != c} for r in rows], f"no column {c}"
        case 1:
            odd = rng.choice([5, 2.5, True, None, [1], {"a": 1}, "", "x" * 1_000_001, "\ud800"])
            return [r | {c: odd} for r in rows], f"every {c} is {str(odd)[:20]!r}"
        case 2:
            return [*rows, rows[i]], f"row {i} twice"
        case 3:
            return [r | {"label": float(r.get("label", 1))} for r in rows], "labels as floats"
        case 4:
            return [r | {"new": [{"x": [None]}], "\u202e": 1} for r in rows], "more columns"
        case 5:
            return rows, "whole"
        case _:
            return damaged_value(rng, rows)


def parquet_bytes(rng: random.Random, rows: list) -> tuple[bytes, str]:
    """A parquet file of the rows, perhaps with one column of another type."""
    rows = [r for r in rows if isinstance(r, dict)] or [{"item": None}]
    names = [n for n in dict.fromkeys(n for r in rows for n in r) if n]
    columns = {n: series(n, [r.get(n) for r in rows]) for n in names}
    name, what = rng.choice(names), "as it is"
    if rng.random() < 0.6:
        columns[name], what = odd_column(rng, name, len(rows), columns[name])
    raw = BytesIO()
    pl.DataFrame(list(columns.values())).write_parquet(raw)
    return raw.getvalue(), what


def series(name: str, values: list) -> pl.Series:
    try:
        return pl.Series(name, values)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        texts = [None if v is None else ascii(v) for v in values]
        return pl.Series(name, texts, dtype=pl.String)


def odd_column(rng: random.Random, name: str, n: int, old: pl.Series) -> tuple[pl.Series, str]:
    """The column under a type that it may have, or may not."""
    if rng.random() < 0.4 and old.dtype == pl.String:
        dtype = rng.choice([pl.Categorical, pl.Enum(old.drop_nulls().unique()), pl.Binary])
        return old.cast(dtype), f"{name} as {dtype}"[:60]
    value, dtype = rng.choice([
        (1, pl.Int8), (1, pl.UInt64), (1.0, pl.Float32), (float("nan"), pl.Float64),
        (True, pl.Boolean), (None, pl.Null), (date(2020, 1, 1), pl.Date), (b"x", pl.Binary),
        (Decimal("1"), pl.Decimal(10, 2)), ([1], pl.List(pl.Int64)),
        ({"a": 1}, pl.Struct({"a": pl.Int64})), ("a", pl.Categorical), (None, pl.String),
    ])  # fmt: skip
    return pl.Series(name, [value] * n, dtype=dtype), f"{name} as {dtype}"


def json_rows(raw: bytes) -> list[dict]:
    return [json.loads(x) for x in raw.decode("utf-8-sig").split("\n") if x.strip()]


def parquet_rows(raw: bytes, kind: str) -> list[dict]:
    file = pyarrow.parquet.ParquetFile(BytesIO(raw))
    needed = {*COLUMNS[kind], "split"}
    return file.read(
        [n for n in file.schema_arrow.names if n in needed or n.endswith("_honesty")]
    ).to_pylist()


def expected(rows: list[dict], kind: str, split: str | None, first: int | None) -> list[tuple]:
    """(id, cluster, text, label, split, about honesty) of every row, as the docs of data say."""
    if split and any(r.get("split") for r in rows):
        rows = [r for r in rows if r["split"] == split]
    if kind == "claims":
        names = "item", "cluster", "prompt", "label", "split"
        return [(*(str(r[n]) for n in names[:3]), r["label"], r["split"], True) for r in rows]
    if first:
        ids = {r["dilemma_idx"] for r in rows}
        number = not any(isinstance(i, str) for i in ids)
        kept = sorted(ids if number else map(str, ids))[:first]
        rows = [r for r in rows if (r["dilemma_idx"] if number else str(r["dilemma_idx"])) in kept]
    items, flags = [], {c for r in rows for c in r if "_has_" in c and c.endswith("_honesty")}
    for r in rows:
        text = f"{r['dilemma_situation']}\nAction: {r['action']}\nWould you do this?"
        own = [r.get(c) for c in flags if c.startswith(f"{r['action_type']}_has_")]
        about = not flags or any(own)
        name = f"{r['dilemma_idx']}-{r['action_type']}"
        where = r.get("split") or "test"
        items.append((name, str(r["dilemma_idx"]), text, r["honesty_label"], where, about))
    return items


def told(result: Any) -> list[tuple]:
    """The same of what was read."""
    items = result if isinstance(result, list) else result.items
    about = None if isinstance(result, list) else result.about_honesty
    return [
        (i.id, i.cluster, i.turns[0]["content"], i.label, i.split, about is None or i.id in about)
        for i in items
    ]


BORDER = Border("items", prepare, case)

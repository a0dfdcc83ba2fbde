"""Tables that the report reads: the page is that of the tables as they are, or one is refused.

A table that a script wrote says what it holds, so whatever damages its bytes is found; one from
elsewhere is read as polars reads it.
"""

import json
import random
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from tests.conftest import experiment
from tests.fuzz.cases import ODD_TEXTS, Border, Case, damaged_bytes, damaged_value, odd_value
from tests.report.small_tables import PROMPTS, VECTORS, WEIGHTS, rows_of, save
from wsrun.report.dose_section import dose_curves
from wsrun.report.sources import read_sources
from wsrun.report.tables import write_table
from wsrun.report.verdicts import RuleResult

SELECTION = "selection/tiny.data.json"
NUMBERS = (float("nan"), float("inf"), -1e308, 0.0, 2.5)
DTYPES = (pl.String, pl.Int64, pl.Int8, pl.UInt64, pl.Float32, pl.Boolean, pl.Binary, pl.Null,
          pl.Date, pl.Categorical, pl.Decimal(20, 2), pl.List(pl.Int64))  # fmt: skip


class Prepared(NamedTuple):
    """A folder of tables, its files, and the page of them."""

    folder: Path
    files: list[str]
    page: str
    report: Any


def prepare(folder: Path) -> Prepared:
    report = experiment("report")
    report.dose_figure = without_drawing
    tables = folder / "tables"
    rules = [RuleResult("claims", "core", None, "supported", "it is so", "shared"),
             RuleResult("claims", "core", "lora", "refuted", "it is not so")]  # fmt: skip
    save(tables, "t1_activation", WEIGHTS | VECTORS)
    save(tables, "t3_prompts", WEIGHTS | PROMPTS, verdicts=rules)
    doses = pl.concat(
        rows_of({"dW": ("weights", "lora", a, a, "")}, name="t2_dilemmas") for a in (1.0, 2.0)
    ).unique(["dataset", "variant", "alpha", "item"], maintain_order=True)
    write_table(doses, tables / "t2_dilemmas.rows.parquet", {})
    write_table(doses.select("model", "dataset", "family"), tables / "t2_dilemmas.parquet", {})
    found = {"plant": "p", "seed": 1, "rule": "r", "expected": "supported", "outcome": "refuted"}
    found = pl.DataFrame([found | {"agree": False, "sentence": "missed"}])
    write_table(found, tables / "t13_planted.verdicts.parquet", {})
    write_table(found.select(model=pl.lit("tiny")), tables / "t13_planted.parquet", {})
    (tables / "selection").mkdir()
    chosen = {"chosen": {"dW": {"family": "lora", "alpha": 2.0}}}
    text = json.dumps({"model": "tiny", "behaviour": "honest"} | chosen)
    (tables / SELECTION).write_text(text, encoding="utf-8")
    files = sorted(str(p.relative_to(tables)) for p in tables.rglob("*.*") if p.is_file())
    return Prepared(tables, files, page(report, tables, folder / "out"), report)


def without_drawing(sources: Any, resamples: int, *_: Any) -> Any:
    """The dose section without its figure, which takes longest and reads nothing more."""
    from wscore.files import refusing
    from wsrun.report.document import Text

    for s in sources:
        with refusing(f"report: the rows of {s.name} do not pair", "run it again", ValueError):
            table = None if s.rows is None else dose_curves(s.rows, resamples)
        if table is not None:
            return Text(str(table.sort(table.columns).rows()))
    return Text("none")


def page(report: Any, tables: Path, out: Path) -> str:
    """The page over a folder of tables, without paths and hashes of files."""
    report.main(report.Config(tables=tables, out=out, resamples=20))
    text = (out / "report.md").read_text(encoding="utf-8").replace(str(tables), "tables")
    return re.sub(r"\b[0-9a-f]{16}\b", "sha256", text)


def case(rng: random.Random, folder: Path, prepared: Prepared) -> Case:
    tables = folder / "tables"
    shutil.copytree(prepared.folder, tables)
    name = rng.choice(prepared.files)
    path = tables / name
    raw, foreign = path.read_bytes(), rng.random() < 0.6
    if name == SELECTION:
        what = damage_selection(rng, path)
    elif foreign:
        what = damage_table(rng, path)
    else:
        raw, what = damaged_bytes(rng, raw)
        path.write_bytes(raw)
    if rng.random() < 0.05:
        path.unlink()
        what = "removed"

    def read() -> str:
        return page(prepared.report, tables, folder / "out")

    def right(text: str) -> bool:
        if text == prepared.page:
            return True
        return (foreign or what == "removed" or name == SELECTION) and as_polars(prepared, tables)

    scripts = {n.partition(".")[0] for n in prepared.files}  # a file, or the scripts that disagree
    names = (path.name, name.partition(".")[0], *scripts)
    return Case(f"{name}: {what}", read, names, right)


def as_polars(prepared: Prepared, tables: Path) -> bool:
    """Whether all tables are read as polars reads their files, value by value."""
    for s in read_sources(tables, prepared.report.SCRIPTS).values():
        for table, suffix in ((s.table, ".parquet"), (s.rows, ".rows.parquet")):
            path = s.path.with_suffix(suffix)
            if table is not None:
                raw = pl.read_parquet(path.read_bytes())
                both = [c for c in table.columns if c in raw.columns]
                if not all(table[c].to_list() == raw[c].to_list() for c in both):
                    return False
    return True


def damage_selection(rng: random.Random, path: Path) -> str:
    raw = path.read_bytes()
    if rng.random() < 0.4:
        raw, what = damaged_bytes(rng, raw)
    else:
        value, what = damaged_value(rng, json.loads(raw))
        raw = json.dumps(value).encode("utf-8", "surrogatepass")
    path.write_bytes(raw)
    return what


def damage_table(rng: random.Random, path: Path) -> str:
    """The table written anew, as something else may write it, with one thing changed."""
    table = pl.read_parquet(path.read_bytes())
    meta = json.dumps({"argv": ["x.py"], "config": {"model": "tiny"}})
    column, n = rng.choice(table.columns), len(table)
    row = rng.randrange(n)
    what = rng.choice(["drop", "rename", "null", "nulls", "number", "text", "cast", "lines",
                       "twice", "more", "meta", "whole"])  # fmt: skip
    at = pl.int_range(pl.len()) == row
    match what:
        case "drop":
            table = table.drop(column)
        case "rename":
            table = table.rename({column: column + rng.choice(["_", " ", "\u200b"])})
        case "null":
            table = table.with_columns(pl.when(~at).then(column).alias(column))
        case "nulls":
            table = table.with_columns(pl.lit(None, table.schema[column]).alias(column))
        case "number" if table.schema[column].is_float():
            value = pl.lit(rng.choice(NUMBERS))
            table = table.with_columns(pl.when(at).then(value).otherwise(column).alias(column))
        case "text" if table.schema[column] == pl.String:
            text = rng.choice([t for t in ODD_TEXTS if t != "\ud800"])
            table = table.with_columns(
                pl.when(at).then(pl.lit(text)).otherwise(column).alias(column)
            )
        case "cast":
            dtype = rng.choice(DTYPES)
            new = table[column].cast(dtype, strict=False) if castable(table, column, dtype) else (
                pl.Series(column, [None] * n, dtype=dtype))  # fmt: skip
            table, what = table.with_columns(new), f"cast to {dtype}"
        case "lines":
            table = table.head(rng.choice([0, 1, n // 2]))
        case "twice":
            table = pl.concat([table, table.slice(row, 1)])
        case "more":
            table = table.with_columns(
                pl.lit(1).alias(rng.choice(["new", "retained", "nll", "agree"]))
            )
        case "meta":
            meta = odd_meta(rng)
    raw = BytesIO()
    table.write_parquet(raw, metadata={"wscore": meta})
    path.write_bytes(raw.getvalue())
    return f"{what} {column} {row}"


def castable(table: pl.DataFrame, column: str, dtype: Any) -> bool:
    try:
        table[column].cast(dtype, strict=False)
    except pl.exceptions.PolarsError:
        return False
    return True


def odd_meta(rng: random.Random) -> str:
    good = {"argv": ["x.py"], "config": {"model": "tiny"}, "commit": "abc"}
    key = rng.choice(list(good))
    return rng.choice(
        ["", "x", "[]", "null", "[" * 5000, json.dumps(good | {key: odd_value(rng, good[key])})]
    )


BORDER = Border("tables", prepare, case)

"""Tables of several scripts as one: read, checked to be about the same rows, joined, compared once.

Every script of the benchmark scores the base and dW beside its own methods. Joined, each line
stands once, and its difference to dW and its q are those of the whole table, not of one script.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from wscore.spread import DRAW
from wsrun.report.same import ITEM, LINE, check_base, check_lines, known, renamed
from wsrun.report.tables import read_table
from wsrun.score.names import DW
from wsrun.study.benchmark import compare

NOTES = ("match", "dose_norm", "kl", "converged")  # what --match adds to a line
REPORTED = ("selected", "flagged", "control")


class Source(NamedTuple):
    """The tables of one script: its summary, its rows where it has some, and their provenance."""

    name: str
    path: Path
    table: pl.DataFrame
    rows: pl.DataFrame | None
    meta: Mapping[str, Any]

    @property
    def short(self) -> str:
        """t3 of t3_prompts."""
        return self.name.partition("_")[0]


class Joined(NamedTuple):
    """The benchmark of one model and behaviour over all scripts.

    table: as of `compare`, with way, role, validation, `source` and NOTES. reference: (family,
    alpha) of the dW that the lines are measured against. remarks: what the reader must know.
    """

    rows: pl.DataFrame
    table: pl.DataFrame
    reference: tuple[str | None, float]
    remarks: list[str]


def read_sources(folder: str | Path, names: Iterable[str]) -> dict[str, Source]:
    """Those of the named tables that are in the folder, by name."""
    found = {}
    for name in names:
        path = Path(folder) / f"{name}.parquet"
        rows = path.with_suffix(".rows.parquet")
        if path.exists():
            table, meta = read_table(path)
            found[name] = Source(
                name, path, table, read_table(rows)[0] if rows.exists() else None, meta
            )
    return found


def of_benchmark(source: Source) -> bool:
    """Whether the tables are those of `benchmark.report_on`."""
    return source.rows is not None and {"way", "role", "diff"} <= set(source.table.columns)


def by_model(sources: Iterable[Source]) -> dict[tuple[str, str], list[Source]]:
    """(model, behaviour) -> its sources, each with the lines and rows of that model only."""
    found: dict[tuple[str, str], list[Source]] = {}
    for s in sources:
        for model, behaviour in (
            s.table.select("model", "behaviour").unique(maintain_order=True).rows()
        ):
            own = dict(model=model, behaviour=behaviour)
            part = s._replace(table=s.table.filter(**own), rows=_rows(s).filter(**own))
            found.setdefault((model, behaviour), []).append(part)
    return found


def join(sources: Sequence[Source], resamples: int = 2000) -> Joined:
    """One table over the reported lines of all sources, which must be about the same rows.

    Raises ValueError, naming two tables, where their items or the margins of the base differ, or
    where one line has other margins in each; a control of one name is then kept twice, with the
    script's name. The reference is the dW that most scripts chose.
    """
    first, *others = sources
    rows, lines = _reported(first)
    owners = {line: first.name for line in lines.select(LINE).rows()}
    for s in others:
        new, more = _reported(s)
        check_base(first.name, rows, s.name, new)
        new, more = renamed(s.short, rows, new, more)
        new, more = known(rows, lines, new, more)
        check_lines(owners, rows, s.name, new)
        owners |= {line: s.name for line in more.select(LINE).rows() if line not in owners}
        key = [*ITEM, *LINE, "seed"]
        rows = pl.concat([rows, new.join(rows, on=key, how="anti", nulls_equal=True)])
        lines = pl.concat([lines, more], how="diagonal_relaxed")
    reference, remarks = _reference(sources)
    named = {"variant": DW, "family": reference[0], "alpha": reference[1]}
    table = compare(rows.with_columns(experiment=pl.lit("report")), named, resamples=resamples)
    return Joined(rows, _noted(table, lines), reference, remarks + _matching(sources))


def _rows(s: Source) -> pl.DataFrame:
    assert s.rows is not None
    return s.rows


def _reported(s: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of the base and of the lines that have a role, and those lines with their notes."""
    draw = pl.col("variant").str.contains(DRAW)  # single draws of a null are for its script
    named = s.table.filter(pl.col("role").is_in(REPORTED), ~draw)
    rest = [
        "dataset",
        *LINE,
        "way",
        "role",
        "validation",
        *(c for c in NOTES if c in named.columns),
    ]
    lines = named.select(rest).with_columns(source=pl.lit(s.short))
    rows = _rows(s)
    mine = rows.filter(pl.col("alpha") != 0).join(
        lines.select("dataset", *LINE).unique(), on=["dataset", *LINE], how="semi", nulls_equal=True
    )
    return pl.concat([rows.filter(alpha=0), mine]), lines


def _reference(sources: Sequence[Source]) -> tuple[tuple[str | None, float], list[str]]:
    """The dW that most scripts chose, the first of equals; a remark where they differ."""
    chosen = {}
    for s in sources:
        of = s.table.filter(way=DW, role="selected").select("family", "alpha").unique().rows()
        if len(of) != 1:
            raise ValueError(
                f"report: {s.name} has {len(of)} selected lines of dW, one is needed; run it again"
            )
        chosen[s.name] = of[0]
    reference = Counter(chosen.values()).most_common(1)[0][0]
    odd = [f"{n} ({_dose(*of)})" for n, of in chosen.items() if of != reference]
    if not odd:
        return reference, []
    return reference, [
        f"Not every script chose the same dW: {', '.join(odd)} against {_dose(*reference)} "
        "elsewhere; all lines are measured against the latter."
    ]


def _dose(family: str | None, alpha: float) -> str:
    return f"{family or 'dW'}, alpha {alpha:g}"


def _matching(sources: Sequence[Source]) -> list[str]:
    """Remarks on --match: tables made under several, and candidates that never came to the dose."""
    asked, said = {}, []
    for s in sources:
        has = "match" in s.table.columns
        asked[s.name] = (s.table["match"].drop_nulls().to_list() or [None])[0] if has else None
        lost = s.table.filter(role="unmatched")
        if len(lost):
            names = ", ".join(lost["variant"].unique(maintain_order=True))
            said.append(f"{s.name}: no alpha brings {names} to {asked[s.name]}; without a line.")
    if len(set(asked.values())) > 1:
        each = ", ".join(f"{n} {m or 'own doses'}" for n, m in asked.items())
        said.append(f"The tables were made at different doses: {each}.")
    return said


def _noted(table: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """The table with what the scripts said of each line; selected in one is selected."""
    key = ["dataset", *LINE]
    said = lines.sort("role", descending=True, maintain_order=True)  # selected before control
    notes = said.group_by(key, maintain_order=True).agg(
        pl.exclude("source").first(),
        source=pl.col("source").unique(maintain_order=True).str.join(", "),
    )
    table = table.join(notes, on=key, how="left", nulls_equal=True, maintain_order="left")
    base = {"way": "variant", "role": pl.lit("control")}  # no script need have reported it
    return table.with_columns(pl.coalesce(c, other).alias(c) for c, other in base.items())

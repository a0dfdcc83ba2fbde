"""The benchmark tables of several scripts as one: checked to be about the same rows, compared once.

Every script of the benchmark scores the base and dW beside its own methods. Joined, each line
stands once, and its difference to dW and its q are those of the whole table, not of one script.
"""

from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from wscore.files import reason, refusing
from wscore.stats.contrasts import benchmark_table
from wscore.stats.spread import DRAW
from wsrun.report.row_identity import ITEM, LINE, check_base, check_lines
from wsrun.report.sources import Choice, Joined, Key, Source, by_model
from wsrun.report.wording import reads_of
from wsrun.score.names import DW

NOTES = ("match", "dose_norm", "kl", "converged")  # what --match-dose adds to a line
REPORTED = ("selected", "flagged", "control")


def join_benchmarks(
    sources: Iterable[Source], resamples: int, chosen: Mapping[Key, Choice] | None = None
) -> dict[Key, Joined]:
    """(model, behaviour) -> its joined benchmark; replications count for models of their own.

    chosen: (model, behaviour) -> the dW that the selection file of the tables says.
    """
    tables = [s for s in sources if s.is_benchmark]
    first = by_model(s for s in tables if s.script.kind == "benchmark")
    again = by_model(s for s in tables if s.script.kind == "replication")
    joined = {
        key: join(model_sources, resamples, (chosen or {}).get(key))
        for key, model_sources in (
            first | {k: v for k, v in again.items() if k not in first}
        ).items()
    }
    for key in set(first) & set(again):
        names = " and ".join(s.name for s in again[key])
        joined[key].remarks.append(f"{names}: this model again; no line of it is in the table.")
    return joined


def join(sources: Sequence[Source], resamples: int = 2000, chosen: Choice | None = None) -> Joined:
    """One table over the reported lines of all sources, which must be about the same rows.

    Raises ValueError, naming two tables, where their items, the margins of the base, or those of
    one line differ, and where they do not have the same dW, `chosen` where it is given.
    """
    first, *others = sources
    reference = _reference(sources, chosen)
    rows, lines = _reported(first)
    owners = dict.fromkeys(lines.select(LINE).rows(), first.name)
    for s in others:
        new_rows, new_lines = _reported(s)
        check_base(first.name, rows, s.name, new_rows)
        check_lines(owners, rows, s.name, new_rows)
        owners = dict.fromkeys(new_lines.select(LINE).rows(), s.name) | owners
        key = [*ITEM, *LINE, "seed"]
        rows = pl.concat([rows, new_rows.join(rows, on=key, how="anti", nulls_equal=True)])
        lines = pl.concat([lines, new_lines], how="diagonal_relaxed")
    named = {"variant": DW, "family": reference[0], "alpha": reference[1]}
    rows = rows.with_columns(experiment=pl.lit("report"))
    names = " and ".join(s.name for s in sources)
    with refusing(f"report: the rows of {names} do not pair", "run them again", ValueError):
        table = benchmark_table(rows, named, resamples=resamples)
    table = _with_notes(table, lines).with_columns(reads=_reads(table, sources))
    return Joined(rows, table, reference, _dose_remarks(sources))


def _reference(sources: Sequence[Source], chosen: Choice | None) -> Choice:
    """The one dW that all tables select, which is the `chosen` one where that is known."""
    choices: dict[str, Choice] = {}
    for s in sources:
        lines = s.table.filter(method_name=DW, role="selected").select("family", "alpha").unique()
        if len(lines) != 1:
            raise ValueError(
                f"report: {s.name} has {len(lines)} selected lines of dW, one is needed; run it "
                "again"
            )
        choices[s.name] = (lines["family"][0], lines["alpha"][0])
    name, reference = ("the selection file", chosen) if chosen else next(iter(choices.items()))
    if other := [f"{n} ({_choice_text(*c)})" for n, c in choices.items() if c != reference]:
        raise ValueError(
            f"report: {', '.join(other)} selected another dW than {name} "
            f"({_choice_text(*reference)}); run it again with the same options"
        )
    return reference


def _choice_text(family: str | None, alpha: float) -> str:
    return f"{reason(family or 'dW', 80)}, alpha {alpha:g}"


def _reported(s: Source) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of the base and of the lines that have a role, and those lines with their notes."""
    assert s.rows is not None
    is_draw = pl.col("variant").str.contains(DRAW)  # single draws of a null are for its script
    named = s.table.filter(pl.col("role").is_in(REPORTED), ~is_draw)
    notes = [c for c in NOTES if c in named.columns]
    lines = named.select("dataset", *LINE, "method_name", "role", "validation", *notes)
    keys = lines.select("dataset", *LINE).unique()
    steered = s.rows.filter(pl.col("alpha") != 0)
    steered = steered.join(keys, on=keys.columns, how="semi", nulls_equal=True)
    rows = pl.concat([s.rows.filter(alpha=0), steered])
    return rows, lines.with_columns(source=pl.lit(s.short))


def _with_notes(table: pl.DataFrame, lines: pl.DataFrame) -> pl.DataFrame:
    """The table with what the scripts note of each line; selected in one is selected."""
    key = ["dataset", *LINE]
    order = lines.sort("role", descending=True, maintain_order=True)  # selected before control
    notes = order.group_by(key, maintain_order=True).agg(
        pl.exclude("source").first(),
        source=pl.col("source").unique(maintain_order=True).str.join(", "),
    )
    table = table.join(notes, on=key, how="left", nulls_equal=True, maintain_order="left")
    base = {"method_name": "variant", "role": pl.lit("control")}  # no script need have reported it
    return table.with_columns(pl.coalesce(c, other).alias(c) for c, other in base.items())


def _reads(table: pl.DataFrame, sources: Sequence[Source]) -> pl.Series:
    """What the data set of each line can read, as the first table says that has it."""
    found = {d: r for s in reversed(sources) for d, r in reads_of(s.table).items()}
    return pl.Series([found.get(d) for d in table["dataset"]], dtype=pl.String)


def _dose_remarks(sources: Sequence[Source]) -> list[str]:
    """Remarks on --match-dose: several of them, and candidates that no alpha brings to the dose."""
    match, remarks = {}, []
    for s in sources:
        column = s.table["match"].drop_nulls() if "match" in s.table.columns else []
        match[s.name] = column[0] if len(column) else None
        lost = s.table.filter(role="unmatched")
        if len(lost):
            names = ", ".join(lost["variant"].unique(maintain_order=True))
            remarks.append(f"{s.name}: no alpha brings {names} to {match[s.name]}; without a line.")
    if len(set(match.values())) > 1:
        each = ", ".join(f"{n} {m or 'own doses'}" for n, m in match.items())
        remarks.append(f"The tables were made at different doses: {each}.")
    return remarks

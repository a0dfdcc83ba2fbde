"""The tables of scripts as the report reads them: summary, rows, verdicts and their provenance."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from wscore.files import read_json, refusing
from wscore.sealed_json import SEAL, unseal
from wsrun.report.columns import check_columns, check_rows, check_summary
from wsrun.report.tables import read_table
from wsrun.report.verdicts import RuleResult, claim_sentences, headline, planted, results_of
from wsrun.report.wording import dataset_names
from wsrun.score.names import DW

PLANTED = {"plant", "expected", "agree"}  # columns of a verdict table of T13
IN_BENCHMARK = "dW beats "  # begins claims that the joined benchmark tells anew, over all tables
Key = tuple[str, str]  # (model, behaviour)
Choice = tuple[str | None, float]  # (family, alpha) of a dW


class Script(NamedTuple):
    """A script whose tables the report reads: its question, and what the page does with them.

    kind: "benchmark" tables are joined, a "replication" is joined where its model is another one,
    the verdicts of "parts" answer the second question, "answers" are shown as they are, "other"
    tables are listed.
    """

    question: str
    kind: Literal["benchmark", "replication", "parts", "answers", "other"] = "other"


class Source(NamedTuple):
    """The tables of one script: its summary, its rows where it has some, and their provenance.

    results: what the rules say. controls: the verdict table of T13, which found what was planted.
    """

    name: str
    script: Script
    path: Path
    table: pl.DataFrame
    rows: pl.DataFrame | None
    meta: Mapping[str, Any]
    results: Sequence[RuleResult] = ()
    controls: pl.DataFrame | None = None

    @property
    def short(self) -> str:
        """t3 of t3_prompts."""
        return self.name.partition("_")[0]

    @property
    def command(self) -> str:
        """The command that made the tables, as their provenance has it."""
        argv = [str(word) for word in self.meta.get("argv") or ()]
        python = [] if argv[:1] == ["wsrun"] else ["python"]
        return shlex.join([*python, *argv]) if argv else "unknown"

    @property
    def sha256(self) -> str:
        """sha256 of the summary's file."""
        return sha256(self.path.read_bytes()).hexdigest()

    @property
    def is_benchmark(self) -> bool:
        """Whether the tables are those of a benchmark: rows, and lines with roles and diff."""
        return self.rows is not None and {"method_name", "role", "diff"} <= set(self.table.columns)

    @property
    def headline(self) -> str:
        """The verdicts over all families in one line."""
        return headline(self.results, dataset_names(self.table))

    @property
    def sentences(self) -> list[str]:
        """What the rules say, a sentence a claim, or how often they found what T13 planted."""
        if self.controls is not None:
            return planted(self.controls)
        own_results = [r for r in self.results if not r.claim.startswith(IN_BENCHMARK)]
        return claim_sentences(own_results, self.table)


class Joined(NamedTuple):
    """The benchmark of one model and behaviour over all scripts, as joined.py makes it.

    table: as of `benchmark_table`, with method_name, role, validation, `source` and NOTES.
    reference: (family, alpha) of the dW that the lines are measured against. remarks: what the
    reader must know.
    """

    rows: pl.DataFrame
    table: pl.DataFrame
    reference: Choice
    remarks: list[str]


def read_sources(folder: str | Path, scripts: Mapping[str, Script]) -> dict[str, Source]:
    """Those of the scripts whose tables are in the folder, by name."""
    sources = {}
    for name, script in scripts.items():
        path = Path(folder) / f"{name}.parquet"
        if path.exists():
            table, meta = read_table(path)
            source = Source(name, script, path, check_summary(table, path), None, meta)
            sources[name] = _with_verdicts(_with_rows(source))
    return sources


def _with_rows(source: Source) -> Source:
    path = source.path.with_suffix(".rows.parquet")
    return source._replace(rows=check_rows(read_table(path)[0], path)) if path.exists() else source


def _with_verdicts(source: Source) -> Source:
    path = source.path.with_suffix(".verdicts.parquet")
    if not path.exists():
        return source
    table = read_table(path)[0]
    if PLANTED <= set(table.columns):
        needed = (*PLANTED, "seed", "rule", "outcome", "sentence")
        return source._replace(controls=check_columns(table, path, needed, needed, least=0))
    return source._replace(results=results_of(table, path))


def read_choices(folder: str | Path) -> dict[Key, Choice]:
    """(model, behaviour) -> the one dW that the selection files beside the tables chose.

    A model with several files, of other data, is there where they agree.
    """
    choices_by_model: dict[Key, set[Choice]] = {}
    for path in sorted((Path(folder) / "selection").glob("*.json")):
        content = read_json(path)
        if isinstance(content, dict) and SEAL in content:
            content = unseal(content, repr(str(path)))
        key, choice = _choice(content, path)
        choices_by_model.setdefault(key, set()).add(choice)
    return {key: choices.pop() for key, choices in choices_by_model.items() if len(choices) == 1}


def _choice(content: Any, path: Path) -> tuple[Key, Choice]:
    """What one selection file says; ValueError for another one."""
    what = f"report: {str(path)!r} is no selection file"
    with refusing(what, "remove it", KeyError, TypeError, ValueError, OverflowError):
        dW = content["chosen"][DW]
        model, behaviour, family = content["model"], content["behaviour"], dW["family"]
        if not isinstance(model, str) or not isinstance(behaviour, str):
            raise TypeError("model and behaviour must be texts")
        if not isinstance(family, str | None):
            raise TypeError("a family must be a text or null")
        if type(dW["alpha"]) not in (int, float) or not isfinite(dW["alpha"]):
            raise TypeError("alpha must be a finite number")
        return (model, behaviour), (family, float(dW["alpha"]))


def by_model(sources: Iterable[Source]) -> dict[Key, list[Source]]:
    """(model, behaviour) -> its sources, each with the lines and rows of that model only."""
    sources_by_model: dict[Key, list[Source]] = {}
    for s in sources:
        assert s.rows is not None
        keys = s.table.select("model", "behaviour").unique(maintain_order=True)
        for model, behaviour in keys.rows():
            model_key = dict(model=model, behaviour=behaviour)
            part = s._replace(table=s.table.filter(**model_key), rows=s.rows.filter(**model_key))
            sources_by_model.setdefault((model, behaviour), []).append(part)
    return sources_by_model

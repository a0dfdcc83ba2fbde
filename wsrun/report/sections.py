"""The sections of the page around the benchmark: the answer, what each part shows, where from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wscore.files import write_whole
from wsrun.report.costs import cost_grid, has_costs
from wsrun.report.document import Block, Code, Figure, Grid, Heading, Points, Text, html, markdown
from wsrun.report.sentences import benchmark_answers, comparison, rivals
from wsrun.report.sources import Joined, Key, Source
from wsrun.report.tables import provenance, write_table
from wsrun.report.wording import READS

READING_NOTES = {
    "bias": ": an effect on them may be a shift towards one answer whatever is asked",
    "nothing": ": neither an effect on them nor its absence says anything about it",
}


def answer_sentences(
    sources: Mapping[str, Source],
    joined: Mapping[Key, Joined],
    labels: Mapping[str, str],
    missing: Sequence[str],
) -> list[str]:
    """The answer to both questions, what limits it, and what is missing.

    labels: kind of method -> its words. missing: names of scripts without a table.
    """
    sentences = []
    for (model, behaviour), j in joined.items():
        about = f"{model}, {behaviour}: " if len(joined) > 1 else ""
        answers = [*benchmark_answers(j.table, j.reference, labels), *j.remarks]
        sentences += [about + sentence for sentence in answers]
    if not joined:
        sentences.append("Does dW beat the baselines? Not answered: no benchmark table is there.")
    for s in sources.values():
        if s.script.kind == "parts" and (text := s.headline):
            sentences.append(f"{s.script.question} {text[0].upper()}{text[1:]}.")
    models = {m for s in sources.values() for m in s.table["model"].drop_nulls().unique()}
    if any(Path(m).name == "organism" for m in models):
        sentences.append(
            "The organism is a small model made for this repository: what is found on it checks "
            "the instruments and is no evidence about language models."
        )
    if missing:
        names = ", ".join(missing)
        sentences.append(f"Missing tables: {names}; the last section says what makes them.")
    return sentences


def reading_blocks(sources: Mapping[str, Source]) -> list[Block]:
    """What the items of each model can read, where tables say it; [] where none does."""
    found: dict[tuple[str, str], list[str]] = {}
    for s in sources.values():
        if not {"model", "dataset", "reads"} <= set(s.table.columns):
            continue
        lines = s.table.select("model", "dataset", "reads").drop_nulls().unique(maintain_order=True)
        for model, dataset, reads in lines.rows():
            datasets = found.setdefault((model, reads), [])
            datasets += [dataset] * (dataset not in datasets)
    sentences = [
        f"{model}: {', '.join(datasets)} {READS[reads]}{READING_NOTES.get(reads, '')}."
        for (model, reads), datasets in found.items()
        if reads in READS
    ]
    return [Heading("What can be read"), Points(sentences)] if sentences else []


def rule_blocks(sources: Mapping[str, Source]) -> list[Block]:
    """Per table: its question, the costs that it measures, and what its rules say."""
    blocks: list[Block] = []
    for s in sources.values():
        if s.script.kind == "answers":
            continue
        blocks.append(Heading(f"{s.short}: {s.script.question}", 3))
        costs = [cost_grid(s.table)] if has_costs(s.table) else []
        sentences = _sentences(s)
        if not sentences and not costs:
            sentences = ["No rule is recorded in this table."]
        blocks += costs + ([Points(sentences)] if sentences else [])
    return blocks


def _sentences(s: Source) -> list[str]:
    """The verdicts of a table; of a benchmark also where its lines are compared with dW."""
    sentences = s.sentences
    if s.is_benchmark and s.script.kind == "replication":
        sentences += [comparison(r) for r in rivals(s.table).iter_rows(named=True)]
    if s.is_benchmark and s.script.kind == "benchmark":
        sentences.append("Its selected lines and its controls stand in the benchmark table.")
    return sentences


def origin_blocks(sources: Mapping[str, Source], commands: Sequence[str]) -> list[Block]:
    """The tables with their commands, commits and hashes; the commands that make those missing."""
    lines = [
        [s.name, str(len(s.table)), s.sha256[:16], (s.meta.get("commit") or "unknown")[:10],
         s.command]
        for s in sources.values()
    ]  # fmt: skip
    heads = ("table", "lines", "sha256", "commit", "command")
    blocks: list[Block] = [Grid(heads, lines, "sha256: the first 16 digits, of the parquet file.")]
    if commands:
        blocks += [Text("Missing, and what makes them:"), Code(commands)]
    return blocks


def write_report(
    out: Path,
    title: str,
    blocks: Sequence[Block],
    joined: Mapping[Key, Joined],
    sources: Mapping[str, Source],
    config: Mapping[str, Any],
) -> list[Path]:
    """All files, each under a temporary name first; the texts are made before any is written."""
    texts = {"report.md": markdown(blocks), "report.html": html(title, blocks)}
    files = {name: text.encode(errors="backslashreplace") for name, text in texts.items()}
    files |= {b.name: b.svg for b in blocks if isinstance(b, Figure)}
    paths = []
    if joined:
        table = pl.concat([j.table for j in joined.values()], how="diagonal_relaxed")
        meta = provenance(config, tables={name: s.sha256 for name, s in sources.items()})
        paths.append(write_table(table, out / "report.parquet", meta))
    for name, content in files.items():
        paths.append(write_whole(out / name, lambda tmp, c=content: tmp.write_bytes(c)))
    return paths

"""The joined page: which tables are read, how they are joined, and what is said of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsrun.report.answer_section import answer_blocks
from wsrun.report.benchmark_page import benchmark_blocks
from wsrun.report.console import console
from wsrun.report.document import Heading, Points
from wsrun.report.dose_section import dose_figure
from wsrun.report.joined import join_benchmarks
from wsrun.report.sections import (
    answer_sentences,
    origin_blocks,
    reading_blocks,
    rule_blocks,
    write_report,
)
from wsrun.report.sources import Script, Source, read_choices, read_sources
from wsrun.steer.interventions import METHODS
from wsrun.study.next_command import following, say
from wsrun.study.options import Common

TITLE = "Weight steering: does dW beat the baselines, and which part of it carries the behaviour?"
SCRIPTS = {
    "t1_activation": Script("Does dW beat adding vectors to activations?", "benchmark"),
    "t2_dilemmas": Script("How do the families do on all dilemmas, and at which dose?"),
    "t3_prompts": Script("Does dW beat prompts?", "benchmark"),
    "t4_seeds": Script("Do families differ more than the seeds of one family do?"),
    "t5_replicate": Script("Does the benchmark hold on another model?", "replication"),
    "t6_shared_svd": Script(
        "Do the families share one subspace that carries the behaviour?", "parts"
    ),
    "t7_sites": Script("Which layers and modules of dW carry the behaviour?", "parts"),
    "t8_coordinates": Script(
        "Which singular directions, or coordinates of the adapter, carry it?", "parts"
    ),
    "t9_synthetic": Script("Does a constructed change do what a trained one does?", "benchmark"),
    "t10_svd_steering": Script(
        "Does steering the base's own singular directions do it?", "benchmark"
    ),
    "t11_degradation": Script("What does steering cost elsewhere?"),
    "t13_planted": Script("Do the rules find what was planted, and only that?"),
    "t14_monitor": Script("How far does a fine-tune move along a behaviour direction?"),
    "samples": Script("What does the model say at each dose?", "answers"),
}
SHORT = {
    "compare": Script("Does dW beat prompts and one direction, in the short form?", "benchmark")
}
"""read where none of LONG is there, whose lines it has in fewer settings"""
LONG = {"t1_activation", "t3_prompts"}
LABELS = {name: METHODS[name].label for name in ("prompt", "activation")}  # these come first
LABELS |= {name: method.label for name, method in METHODS.items()}


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    tables: Path = Path("artifacts/tables")
    """folder of the tables to read"""
    out: Path = Path("artifacts/report")
    """folder that receives report.md, report.html, report.parquet and the figure"""
    resamples: int = 2000
    """bootstrap resamples"""


def run_report(cfg: ReportOptions) -> None:
    """Read, join, decide, draw; then write all files, or none."""
    if cfg.resamples < 1:
        raise ValueError(f"report: --resamples must be at least 1, got {cfg.resamples}")
    sources = read_sources(cfg.tables, SCRIPTS)
    if not LONG & sources.keys():
        sources = read_sources(cfg.tables, SHORT) | sources
    if not sources:
        raise ValueError(
            f"report: none of the tables is in {str(cfg.tables)!r}; run python "
            "experiments/t1_activation.py, or name their folder with --tables"
        )
    missing = {n: following(first_options(cfg, sources), n) for n in SCRIPTS if n not in sources}
    joined = join_benchmarks(sources.values(), cfg.resamples, read_choices(cfg.tables))
    answer = answer_sentences(sources, joined, LABELS, [*missing])
    blocks = [Heading(TITLE, 1), *reading_blocks(sources), Heading("Answer"), Points(answer)]
    costs = sources["t11_degradation"].table if "t11_degradation" in sources else None
    for key, j in joined.items():
        blocks += benchmark_blocks(key, j.table, j.reference, costs)
    doses = sorted(sources.values(), key=lambda s: s.name != "t2_dilemmas")
    figure = dose_figure(doses, cfg.resamples, "report.doses.svg", "experiments/t2_dilemmas.py")
    blocks += [Heading("Dose and response"), figure]
    blocks += [Heading("What each part shows"), *rule_blocks(sources)]
    blocks += answer_blocks(sources)
    origin = origin_blocks(sources, [*missing.values()])
    blocks += [Heading("Where the numbers come from"), *origin]
    for path in write_report(cfg.out, TITLE, blocks, joined, sources, asdict(cfg)):
        console.print(f"written {path}", highlight=False)
    for sentence in answer:
        console.print(f"- {sentence}", highlight=False)
    if missing:
        say(next(iter(missing.values())))


def first_options(cfg: ReportOptions, sources: Mapping[str, Source]) -> Common:
    """The model, data and adapters of the first table that names them, and the folder of tables."""
    names = ("model", "data", "adapters", "dtype", "device")
    configs = (s.meta.get("config", {}) for s in sources.values())
    first = next((c for c in configs if all(isinstance(c.get(n), str) for n in names)), {})
    options: dict[str, Any] = {n: first[n] for n in names if first}
    options |= {"adapters": Path(options["adapters"])} if first else {}
    return Common(**options, out=cfg.tables)

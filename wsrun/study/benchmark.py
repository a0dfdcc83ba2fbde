"""What a script of the benchmark is made of; `run_benchmark` (run.py) asks for it step by step.

Candidates are chosen on validation items, one (setting, coefficient) a method (selection.py); what
was chosen is scored on test items beside controls (comparison.py); the table has one line a method,
with its paired difference to dW. A script says what it tries, adds to the table, and prints.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import polars as pl

from wsrun.report.console import console
from wsrun.report.effect_figures import effects_by_method
from wsrun.report.standings import standings
from wsrun.report.verdicts import RuleResult
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.steer.interventions import SystemPrompt
from wsrun.study.controls import random_controls
from wsrun.study.options import BenchmarkOptions
from wsrun.study.rule import beaten
from wsrun.study.selected import NEGATIVE_DW, Selections
from wsrun.study.session import Pairs, Session, save_figure

C = TypeVar("C", bound=BenchmarkOptions)


class Benchmark(Generic[C]):
    """A script of the benchmark: it overrides what is its own. Methods stand in order of use."""

    experiment: str  # names the tables
    question: str  # of the figure
    following: tuple[str, str]  # the next script, and why
    negative_methods: Collection[str] = (NEGATIVE_DW,)  # that aim at the other pole
    poles: Collection[str] = (DW, NEGATIVE_DW)  # of the shared choice of dW, which are reported
    trains: bool = False  # whether `prepare` writes what shards need

    # what there is so far
    validation: Session
    test: Session
    pairs: Pairs
    chosen: Selections
    control_variants: Sequence[Variant]
    rows: pl.DataFrame
    table: pl.DataFrame
    record: dict[str, Any]

    def __init__(self, cfg: C) -> None:
        self.cfg = cfg

    @property
    def name(self) -> str:
        """The script's short name, for its messages."""
        return self.experiment.partition("_")[0]

    def check(self) -> None:
        """Refuse options of its own, and files that cannot be read, before a model is."""

    def prepare(self) -> None:
        """Measure what needs the model and no adapter."""

    def candidates(self) -> Iterable[Variant]:
        """Candidates beside dW."""
        return ()

    def refine(self) -> None:
        """Add to `chosen` what builds on it."""

    def controls(self) -> Iterable[Variant]:
        """Controls beside zero; with --match-dose they are brought to the dose of all."""
        return random_controls(self.chosen[DW].variant, self.cfg.n_random)

    def fixed_dose_controls(self) -> Iterable[Variant]:
        """Controls that keep their own dose."""
        return ()

    def add_columns(self) -> None:
        """Add to `table`, and to `rows`."""

    def is_rival(self, method: str) -> bool:
        """Whether the rule compares a method with dW."""
        return method not in (DW, *self.negative_methods)

    def verdicts(self) -> Iterable[RuleResult]:
        """What the rule says: by default whether dW beats each rival."""
        return beaten(self.table, self.is_rival)

    def notes(self) -> dict[str, Any]:
        """What the provenance says beside options, base, items and deltas."""
        return {}

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        """Print the table of each data set, and what the rule says."""
        for (dataset,), part in self.table.group_by("dataset", maintain_order=True):
            console.print(standings(part, f"{dataset}: effect in nats on test items"))
        for v in verdicts:
            console.print(f"{v.dataset}: {v.sentence}")

    def figure(self, path: Path) -> None:
        """Draw beside the summary table at `path`."""
        save_figure(effects_by_method, self.table, path, self.question)


def prompt_candidates(wordings: Mapping[str, Sequence[str]]) -> list[Variant]:
    """Every wording alone, as "name@number"."""
    return [
        Variant(f"{name}@{i}", SystemPrompt(system), alphas=(1.0,))
        for name, systems in wordings.items()
        for i, system in enumerate(systems)
    ]

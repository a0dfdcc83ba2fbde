"""Does the part of a persona's direction in the base weights' top singular vectors steer?

Question:   the contrast c of a persona, of which dW' = c x^T / |x|^2 is made without any trained
            delta: is its part in the top-r left singular vectors of the weight that writes it the
            part that steers?
Prediction: yes, with r well below the width: what a persona uses is what the weights write most.
Rule:       supported if at one r the top-r part retains >= 0.7 and the rest <= 0.3 of the effect,
            by their 95 % intervals, and every random subspace of that r retains less than top-r;
            refuted if each r clearly fails; else undetermined.

    python experiments/t10_svd_steering.py
    python experiments/t10_svd_steering.py --r 4 16 --dilemmas None

Parts are not rescaled: top + rest is the whole contrast, checked in the run. keep_random: its part
in a random subspace of r directions; matched: that part brought to the norm of the top-r part, per
weight, so that only the directions differ. Setting and coefficient of the whole contrast, family
and coefficient of dW are chosen on validation items; every line has its paired difference to dW.
"""

from wsrun.script import guarded

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from wsrun.models.load import d_model
from wsrun.report.console import console, strong
from wsrun.report.retained_figures import retained_by_energy
from wsrun.report.standings import standings
from wsrun.report.verdicts import RuleResult
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.steer.interventions import ConstructedDelta
from wsrun.study.benchmark import Benchmark
from wsrun.study.constructed import (
    ConstructedOptions,
    check_constructed,
    hashes,
    measure,
    whole_contrasts,
)
from wsrun.study.options import check_once
from wsrun.study.run import run_benchmark
from wsrun.study.selected import NEGATIVE_DW
from wsrun.study.session import save_figure
from wsrun.study.top_directions import add_shares, cuts, decide, parts_grid, parts_to_draw

WHOLE = "contrast"


@dataclass(frozen=True)
class Config(ConstructedOptions):
    """Options of T10."""

    r: tuple[int, ...] = (8, 16, 32, 64)
    """how many of the top left singular vectors"""
    keep_at_least: float = 0.7
    """threshold of the rule on the top-r part"""
    drop_at_most: float = 0.3
    """threshold of the rule on the rest"""


class SvdSteering(Benchmark[Config]):
    """The chosen contrast, and its parts in the top singular vectors and beside them."""

    experiment = "t10_svd_steering"
    question = "Does the part of the contrast in the top-r singular vectors steer?"
    following = "report", "one page over all tables"

    def check(self) -> None:
        check_constructed(self.cfg, "t10")
        check_once("t10", {"r": self.cfg.r})
        if min(self.cfg.r) < 1:
            raise ValueError(f"t10: --r must be at least 1, got {min(self.cfg.r)}")

    def prepare(self) -> None:
        if max(self.cfg.r) >= (d := d_model(self.test.model)):
            raise ValueError(f"t10: --r must be below d_model = {d}, got {max(self.cfg.r)}")
        self.base, settings = measure(self.cfg, self.test)
        self.made = whole_contrasts(self.base, settings)

    def candidates(self) -> Iterable[Variant]:
        for name, d in self.made.items():
            yield Variant(name, ConstructedDelta(d), alphas=self.cfg.doses)

    def fixed_dose_controls(self) -> Iterable[Variant]:
        """The parts of the contrast, at its own coefficient."""
        if WHOLE not in self.chosen:
            raise ValueError(f"t10: no alpha brings the contrast to {self.cfg.match_dose}")
        self.whole = self.chosen[WHOLE].variant
        draws = self.cfg.n_random
        self.parts = [c for r in self.cfg.r for c in cuts(self.whole, self.base, r, draws)]
        return [c.variant for c in self.parts]

    def add_columns(self) -> None:
        share_inputs = self.whole, self.parts, self.cfg.resamples
        self.table = add_shares(self.rows, self.table, *share_inputs)

    def verdicts(self) -> Iterable[RuleResult]:
        for (dataset,), part in self.table.group_by("dataset", maintain_order=True):
            thresholds = self.cfg.keep_at_least, self.cfg.drop_at_most
            verdict = decide(part, self.cfg.r, *thresholds)
            claim = "the top singular vectors carry the contrast"
            yield RuleResult(str(dataset), claim, None, verdict.outcome, verdict.sentence)

    def notes(self) -> dict[str, Any]:
        return {"constructed": hashes(self.made)}

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        for (dataset,), part in self.table.group_by("dataset", maintain_order=True):
            whole = part.filter(pl.col("method_name").is_in([DW, NEGATIVE_DW, WHOLE, "zero"]))
            console.print(standings(whole, f"{dataset}: effect in nats on test items"))
            console.print(
                parts_grid(part, f"{dataset}: share of the contrast's effect", self.cfg.r)
            )
        for v in verdicts:
            console.print(strong(f"{v.dataset}: {v.outcome}:"), v.sentence)

    def figure(self, path: Path) -> None:
        """Retained share against energy: parts, and random ones of the top-r part's norm."""
        shown, words = parts_to_draw(self.table, self.cfg.r)
        if shown.is_empty():
            console.print("no figure: the effect of the whole contrast is not clear of 0")
            return
        save_figure(retained_by_energy, shown, path, self.question, "r", words)


def main(cfg: Config) -> None:
    """Construct contrasts, only then read dW, cut the chosen contrast, report on test items."""
    run_benchmark(SvdSteering(cfg))


if __name__ == "__main__":
    guarded(main, Config)

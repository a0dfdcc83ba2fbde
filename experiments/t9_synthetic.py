"""Can a weight change that was never trained steer as dW does?

Question:   does a change dW' made of base weights and of what a persona changes in the model's own
            outputs, of no trained delta, move the answers, and as far as dW?
Prediction: it steers, but less than dW; directions that nothing reads do not steer.
Rule:       a method steers where its interval lies above 0 and its effect above that of every
            random contrast of its own size; it beats dW, or loses to it, where the interval of the
            paired difference excludes 0.

    python experiments/t9_synthetic.py
    python experiments/t9_synthetic.py --dilemmas None

Per weight that writes the residual stream (o_proj, down_proj), dW' = c x^T / |x|^2: on its mean
input x it adds the contrast c of its outputs, on training questions. Methods: contrast (c itself);
c projected on the readout's top-k directions (readout), on the weight's own top-k left singular
vectors (weight_basis), on what later layers write but do not read (write_not_read); -contrast,
towards the other pole. random_contrast rotates all c at random, as often as --n-random.
Settings: c measured where the answer is read ("answer") or begins ("start"), its sizes as measured
("raw") or those of the weights ("even"). Coefficient: |dW'| / |W|. Both are chosen on validation
items, as are dW's family and coefficient.
"""

from wsrun.script import guarded

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wscore import keep, norm, subset, weight_basis
from wsrun.report.console import console
from wsrun.report.verdicts import RuleResult
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.steer.constructed import rank_one, sized
from wsrun.steer.interventions import ConstructedDelta
from wsrun.steer.structure import readout_basis, unread_subspace
from wsrun.study.benchmark import Benchmark
from wsrun.study.constructed import (
    ConstructedOptions,
    above_random,
    check_constructed,
    cosines,
    hashes,
    measure,
    random_contrasts,
    size_of,
    whole_contrasts,
)
from wsrun.study.run import run_benchmark
from wsrun.study.selected import NEGATIVE_DW

MINUS = "-contrast"


@dataclass(frozen=True)
class Config(ConstructedOptions):
    """Options of T9."""

    k: int = 32
    """directions of the readout, of each weight, and of what is read and written later"""


class Synthetic(Benchmark[Config]):
    """dW beside changes that were never trained."""

    experiment = "t9_synthetic"
    question = "Do changes that were never trained steer as dW does?"
    following = "t10_svd_steering", "which part of the contrast steers"
    negative_methods = (NEGATIVE_DW, MINUS)

    def check(self) -> None:
        check_constructed(self.cfg, "t9")

    def prepare(self) -> None:
        """Every method in every setting, of |dW'| = |W|."""
        model, k = self.test.model, self.cfg.k
        self.base, self.settings = measure(self.cfg, self.test)
        self.made = whole_contrasts(self.base, self.settings)
        bases = {
            "readout": readout_basis(model, self.base, k),
            "weight_basis": weight_basis(self.base, k),
            "write_not_read": unread_subspace(model, self.base, k),
        }
        for setting, (contrast, per) in self.settings.items():
            whole = rank_one(contrast)
            for method, basis in bases.items():
                part = keep(subset(whole, [n for n in whole if n in basis]), basis)
                self.made[f"{method}@{setting}"] = sized(part, self.base, per)

    def candidates(self) -> Iterable[Variant]:
        for name, d in self.made.items():
            yield Variant(name, ConstructedDelta(d), alphas=self.cfg.doses)
            if name.startswith("contrast@"):
                minus = tuple(-a for a in self.cfg.doses)
                yield Variant(f"-{name}", ConstructedDelta(d), alphas=minus)

    def controls(self) -> Iterable[Variant]:
        """Random contrasts in the settings and at the coefficients that were chosen."""
        sizes = {size_of(s) for s in self.chosen.values()}
        known = [(name, alpha) for name, alpha in sizes if name in self.settings]
        return random_contrasts(self.base, self.settings, known, self.cfg.n_random)

    def add_columns(self) -> None:
        dW = self.chosen[DW].variant.intervention.delta()
        columns = above_random(self.rows, self.table), cosines(self.table, self.made, dW)
        self.table = self.table.with_columns(*columns)

    def verdicts(self) -> Iterable[RuleResult]:
        lines = self.table.filter(method=ConstructedDelta.method, role="selected")
        for r in lines.iter_rows(named=True):
            sign, name = (-1 if r["method_name"] == MINUS else 1), r["method_name"]
            beyond = r["below"] if sign > 0 else 1 - r["below"]
            ends = sorted(sign * r[c] for c in ("lo", "hi")) if r["lo"] is not None else [0.0]
            steers = ends[0] > 0 and beyond == 1
            sentence = (
                f"{name} {'steers' if steers else 'is not shown to steer'}: {r['effect']:+.2f} "
                f"nats, beyond {beyond:.0%} of the random contrasts of its size"
            )
            outcome = "supported" if steers else "undetermined"
            yield RuleResult(r["dataset"], f"{name} steers", None, outcome, sentence, r["variant"])
        yield from super().verdicts()

    def notes(self) -> dict[str, Any]:
        return {"constructed": hashes(self.made)}

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        super().report(verdicts)
        if "contrast" not in self.chosen:
            console.print(f"no size of the contrast comes to {self.cfg.match_dose}")
            return
        contrast, dW = (self.chosen[name] for name in ("contrast", DW))
        sizes = (norm(s.variant.intervention.delta()) * s.alpha for s in (contrast, dW))
        cos = self.table.filter(method_name="contrast", role=contrast.role)["cos_dW"][0]
        alike = "no weight in common" if cos is None else f"cosine {cos:+.3f} over common weights"
        text = "|dW'| of the contrast {:.3g}, |dW| {:.3g} at their coefficients; {}"
        console.print(text.format(*sizes, alike))


def main(cfg: Config) -> None:
    """Construct dW', only then read dW, choose on validation items, report on test items."""
    run_benchmark(Synthetic(cfg))


if __name__ == "__main__":
    guarded(main, Config)

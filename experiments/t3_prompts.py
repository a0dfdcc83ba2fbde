"""Does a prompt do what dW does, and does dW add anything to it?

Question:   on the same test items, how does the best dW compare with the best system prompt, with
            one adapter alone (tau_pos, -tau_neg), with both at once, and does dW of one adapter
            undo what another fine-tuning did?
Prediction: dW beats neither pole's prompt on a model that was trained to obey them; it moves a
            fine-tuned model, and it adds to a prompt.
Rule:       a method beats dW, or loses to it, where the 95 % interval of their paired difference on
            test items excludes 0; else the two are not distinguishable. The same rule tells
            finetuned+dW from finetuned, prompt+dW from the prompt alone, and the other pole's
            prompts from -dW.

    python experiments/t3_prompts.py
    python experiments/t3_prompts.py --data data/english --model ... --adapters ...

simple and engineered are system prompts towards the pole (`--pos`, and <pos>_engineered where
personas.json has it), simple_neg and engineered_neg towards the other one; neutral only asks for
help. tau_pos and -tau_neg are the halves of dW (Fierro & Roger 2025, arXiv 2511.05408: the
non-contrastive variants). finetuned is theta_ft = W0 + tau_neg of the first family, finetuned+dW is
theta_ft + k dW of another one; prompt+dW is the chosen prompt together with the chosen family's dW.
Wording, family and alpha are picked on validation items.
"""

from wsrun.script import guarded

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from wsrun.report.console import console
from wsrun.report.verdicts import RuleResult
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.steer.prompts import OTHER_POLE, filter_reachable_prompts, read_wordings
from wsrun.study.benchmark import Benchmark, prompt_candidates
from wsrun.study.increments import add_over, finetuned_candidates, increments
from wsrun.study.options import BenchmarkOptions
from wsrun.study.run import choose_among, run_benchmark
from wsrun.study.selected import NEGATIVE_DW

PROMPTS = ("simple", "engineered")  # the methods that the best prompt is taken from


@dataclass(frozen=True)
class Config(BenchmarkOptions):
    """Options of T3."""

    pos: str = "honest"
    """persona of personas.json towards which dW points"""
    neg: str = "dishonest"
    """persona of the other pole"""


class Prompts(Benchmark[Config]):
    """dW beside prompts, its halves, and what it does to a prompted or a fine-tuned model."""

    experiment = "t3_prompts"
    question = "What do prompts, dW and both do?"
    following = "t9_synthetic", "changes that were never trained"
    negative_methods = (NEGATIVE_DW, *OTHER_POLE)
    poles = (DW, NEGATIVE_DW, "tau_pos", "-tau_neg")

    def check(self) -> None:
        self.wordings = read_wordings(self.cfg.data, self.cfg.pos, self.cfg.neg)

    def prepare(self) -> None:
        items = [*self.validation.items, *self.test.items]
        self.wordings = filter_reachable_prompts(self.test.tok, items, self.wordings, "t3")

    def candidates(self) -> Iterable[Variant]:
        return *prompt_candidates(self.wordings), *finetuned_candidates(self.pairs, self.cfg.alphas)

    def refine(self) -> None:
        """The best prompt, and it together with the chosen family's dW at every alpha."""
        prompts = (self.chosen[name] for name in PROMPTS if name in self.chosen)
        self.best = max(prompts, key=lambda s: s.validation).variant
        dW = self.chosen[DW].variant
        both = replace(
            dW,
            name=f"prompt+dW@{self.best.name}",
            intervention=dW.intervention & self.best.intervention,
            alphas=self.cfg.alphas,
        )
        self.chosen |= choose_among(self, [both]) or {}

    def is_rival(self, method: str) -> bool:
        return method not in (DW, "finetuned", *self.negative_methods)

    def add_columns(self) -> None:
        """What each line builds on, the wordings, and the effects of best prompt and dW."""
        chosen = self.chosen
        over = {"prompt+dW": self.best.name, "finetuned+dW": "finetuned"}
        over |= dict.fromkeys(OTHER_POLE, NEGATIVE_DW)
        known = {s.variant.name for s in chosen.values()}
        over = {chosen[m].variant.name: of for m, of in over.items() if m in chosen and of in known}
        table = add_over(self.rows, self.table, over, self.cfg.resamples)
        systems = {s.variant.name: s.variant.intervention.system() for s in chosen.values()}
        system = pl.col("variant").replace_strict(systems, default=None, return_dtype=pl.String)
        table = table.with_columns(system=system)
        for column, name in (
            ("prompt_baseline_delta", self.best.name),
            ("weight_steer_delta", DW),
        ):
            lines = table.filter(pl.col("role") != "unmatched", variant=name)
            effect = lines.select("dataset", pl.col("effect").alias(column))
            table = table.join(effect, on="dataset", how="left", maintain_order="left")
        self.table = table

    def verdicts(self) -> Iterable[RuleResult]:
        return *super().verdicts(), *increments(self.table, self.negative_methods)

    def notes(self) -> dict[str, Any]:
        system = self.best.intervention.system()
        return {"wordings": self.wordings, "best_prompt": self.best.name, "system": system}

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        best = f"best prompt on validation items, {self.best.name}:"
        console.print(best, self.best.intervention.system())
        super().report(verdicts)
        deltas = ["dataset", "prompt_baseline_delta", "weight_steer_delta"]
        for dataset, prompt, dW in self.table.select(deltas).unique(maintain_order=True).rows():
            text = f"{dataset}: prompt_baseline_delta {prompt:+.2f}, weight_steer_delta {dW:+.2f}"
            console.print(f"{text} nats, on the same items")


def main(cfg: Config) -> None:
    """Pick every method's setting on validation, report all on test items, print comparisons."""
    run_benchmark(Prompts(cfg))


if __name__ == "__main__":
    guarded(main, Config)

"""What does steering cost elsewhere, at the coefficients that were chosen for its effect?

Question:   where dW, one of its halves, a prompt, a vector or a constructed change moves the
            behaviour, what becomes of text and of questions that have nothing to do with it?
Prediction: at its chosen coefficient dW costs more than the prompt, and less than 0.1 nats a token
            and 5 points of accuracy.
Rule:       a method costs on a measure where the 95 % interval of the paired change lies on the
            worse side of 0; its cost is bounded where the interval stays below --nats-at-most and
            --points-at-most. Neither, or both, can be true of a method.

    python experiments/t11_degradation.py
    python experiments/t11_degradation.py --costs wikitext:PATH arc:PATH blimp:PATH --cost-limit 100

dW and one adapter alone (tau_pos, -tau_neg) are those of the shared choice, prompts are chosen on
validation items as in T3. What t1, t5, t9 and t10 chose on this model is taken from where they left
it (<out>/selection, wsrun/study/selected.py), with the very vectors and coefficients: run those
first. Perplexity is that of the texts in <data>/neutral.jsonl as replies to their prompts, accuracy
that on <data>/multiple_choice.jsonl: the right option must be the likeliest reply
(wsrun/score/capability.py). --costs adds public sets (docs/data.md): nats a token of WikiText as
plain text, accuracy on ARC-Easy, and on BLiMP, whose good sentence must be likelier than its twin.
A system prompt has no place in plain text and is not measured there. The organism's world consists
of facts only: its texts say facts, of which it is the surer the more honest it is, so honest
steering may lower their perplexity, and steering towards lies must raise it. What the behaviour
itself does to them is read off the prompt of the same pole; a cost beyond it is damage.
"""

from wsrun.script import guarded

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import polars as pl

from wscore import benchmark_table, tensors_sha256
from wsrun.data.items import items_sha256
from wsrun.report.console import console
from wsrun.report.tables import write_table
from wsrun.report.verdicts import RuleResult
from wsrun.score.capability import CHOICE, TEXT, costs
from wsrun.score.names import DW, method_name
from wsrun.score.variants import Variant
from wsrun.steer.prompts import OTHER_POLE, filter_reachable_prompts, read_wordings
from wsrun.study import costs as study
from wsrun.study.benchmark import Benchmark, prompt_candidates
from wsrun.study.comparison import dW_line
from wsrun.study.options import BenchmarkOptions
from wsrun.study.run import run_benchmark
from wsrun.study.selected import NEGATIVE_DW
from wsrun.study.session import save_figure


@dataclass(frozen=True)
class Config(BenchmarkOptions):
    """Options of T11."""

    pos: str = "honest"
    """persona of personas.json whose wordings are the prompts towards the behaviour"""
    neg: str = "dishonest"
    """persona whose wordings are the prompts away from it"""
    nats_at_most: float = 0.1
    """a cost in text is bounded below this many nats a token"""
    points_at_most: float = 5.0
    """a cost in accuracy is bounded below this many percentage points"""
    costs: tuple[str, ...] | None = None
    """public sets to measure costs on, too: wikitext:PATH, arc:PATH, blimp:PATH"""
    cost_limit: int | None = None
    """how many texts and questions of each measure, drawn by a hash; None for all"""


class Degradation(Benchmark[Config]):
    """Effect and cost of what was chosen, here and by other scripts."""

    experiment = "t11_degradation"
    question = "What does steering cost elsewhere?"
    following = "t14_monitor", "whether a fine-tune moved along dW"
    negative_methods = (NEGATIVE_DW, *OTHER_POLE)
    poles = (DW, NEGATIVE_DW, "tau_pos", "-tau_neg")

    def check(self) -> None:
        cfg = self.cfg
        study.check_bounds(cfg.nats_at_most, cfg.points_at_most, "t11")
        self.measures = study.measured(cfg, cfg.costs, cfg.cost_limit)
        self.wordings = read_wordings(cfg.data, cfg.pos, cfg.neg)

    def prepare(self) -> None:
        items = [*self.validation.items, *self.test.items]
        self.wordings = filter_reachable_prompts(self.test.tok, items, self.wordings, "t11")
        base = tensors_sha256(dict(self.test.model.named_parameters()))
        self.others = study.chosen_elsewhere(self.cfg, base, "t11")

    def candidates(self) -> Iterable[Variant]:
        return prompt_candidates(self.wordings)

    def refine(self) -> None:
        self.chosen |= self.others

    def add_columns(self) -> None:
        """The change of every measure under every line."""
        variants = [v for s in self.chosen.values() for v in s.variants] + [*self.control_variants]
        rows = study.cost_rows(self.cfg, self.experiment, self.test, self.measures, variants)
        changes = benchmark_table(rows, dW_line(self.chosen), resamples=self.cfg.resamples)
        own = costs(changes, rows)
        self.table = self.table.join(
            own, on=study.LINE, how="left", nulls_equal=True, maintain_order="left"
        )
        self.lines = study.cost_lines(changes, rows, self.table, self.measures)
        self.rows = pl.concat([self.rows, rows])

    def verdicts(self) -> Iterable[RuleResult]:
        for r in self.lines.filter(pl.col("role").is_in(["selected", "flagged"])).to_dicts():
            yield study.bounded(r, self.cfg.nats_at_most, self.cfg.points_at_most)

    def notes(self) -> dict[str, Any]:
        texts, questions, *public = map(items_sha256, self.measures.values())
        named = dict(zip([*self.measures][2:], public, strict=True))
        return {"texts": texts, "questions": questions, **({"costs": named} if named else {})}

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        for table in study.cost_grids(self.table, self.lines):
            console.print(table)
        base = self.table.row(0, named=True)
        console.print(
            f"base: perplexity {exp(base['nll_base']):.3g} of neutral text, accuracy "
            f"{base['accuracy_base']:.3f}; changes of nats a token (above 0 is worse), of accuracy"
        )
        n = len(self.measures)
        for of_line in (verdicts[i : i + n] for i in range(0, len(verdicts), n)):
            name = method_name(of_line[0].part or "")
            console.print(f"{name}: {'; '.join(v.sentence for v in of_line)}")

    def figure(self, path: Path) -> None:
        own = pl.col("dataset").is_in([TEXT, CHOICE])
        save_figure(study.cost_figure, self.lines.filter(own), self.table, path, self.question)
        if not (public := self.lines.filter(~own)).is_empty():
            path = write_table(self.lines, path.with_suffix(".costs.parquet"), self.record)
            console.print(f"costs by measure {path}", highlight=False)
            save_figure(study.cost_figure, public, self.table, path, self.question)


def main(cfg: Config) -> None:
    """Choose as elsewhere, measure effect and cost of what was chosen, print one table."""
    run_benchmark(Degradation(cfg))


if __name__ == "__main__":
    guarded(main, Config)

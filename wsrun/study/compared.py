"""The benchmark in its short form: prompts, directions and dW of one data set, one table.

The same choice on validation items, comparison and controls as T1 and T3, with fewer candidates:
directions are the mean difference alone, at a few layers and in all at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wsrun.data.items import items_sha256
from wsrun.report.console import console
from wsrun.report.verdicts import RuleResult
from wsrun.score.variants import Variant
from wsrun.steer.directions import n_layers
from wsrun.steer.prompts import OTHER_POLE, filter_reachable_prompts, read_wordings
from wsrun.study import activation, imported
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.benchmark import Benchmark, prompt_candidates
from wsrun.study.selected import NEGATIVE_DW


@dataclass(frozen=True)
class CompareOptions(imported.Importing):
    """Options of the short benchmark."""

    coefficients: tuple[float, ...] = (1.0, 4.0, 16.0)
    """coefficients of a direction, in units of its layer's mean difference"""


class Comparison(Benchmark[CompareOptions]):
    """dW beside system prompts and beside one direction."""

    experiment = "compare"
    question = "Which does most: a prompt, a direction, or dW?"
    following = "t1_activation", "directions at every layer"
    negative_methods = (NEGATIVE_DW, *OTHER_POLE)

    def check(self) -> None:
        check_answering(self.cfg, self.name)
        activation.check_directed(self.cfg, self.name)
        imported.check_imported(self.cfg, self.name)
        self.imported_names = imported.imported_names(self.cfg)
        if activation.by_norm(self.cfg):
            raise ValueError("compare: vectors have no |alpha dW|; give --match-dose kl:X")
        self.wordings = read_wordings(self.cfg.data, self.cfg.pos, self.cfg.neg)
        self.sources = read_sources(self.cfg)

    def prepare(self) -> None:
        model, tok, *_ = self.test
        activation.check_layers(self.cfg, self.test, self.name)
        self.imported = [*imported.imported(self.cfg, model, signs=("",))]
        items = [*self.validation.items, *self.test.items]
        self.wordings = filter_reachable_prompts(tok, items, self.wordings, self.name)
        (found,) = answers(self.cfg, model, tok, self.sources, self.cfg.seeds[:1]).values()
        self.answered = found.pairs
        self.vectors = activation.read_directions(self.test, self.answered, ("mean_diff",))
        if self.cfg.layers is None:
            n = n_layers(model)
            self.cfg = replace(self.cfg, layers=tuple(sorted({n // 4, n // 2, 3 * n // 4})))

    def candidates(self) -> Iterable[Variant]:
        yield from prompt_candidates(self.wordings)
        yield from activation.directions(self.cfg, self.vectors, signs=("",))
        yield from self.imported

    def controls(self) -> Iterable[Variant]:
        yield from super().controls()
        yield from activation.random_directions(self.cfg, self.chosen, self.imported_names)

    def verdicts(self) -> Iterable[RuleResult]:
        return *super().verdicts(), *activation.beside_random(
            self.rows, self.table, self.imported_names
        )

    def notes(self) -> dict[str, Any]:
        return {
            "answers": items_sha256(self.answered),
            "vectors": activation.vectors_sha256(self.vectors),
            **imported.record(self.imported),
            "wordings": self.wordings,
            "layers": self.cfg.layers,
        }

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        super().report([v for v in verdicts if not v.claim.endswith(activation.IS_DIRECTION)])
        for sentence in (
            *activation.random_sentences(verdicts),
            *activation.at_edge(self.cfg, self.chosen, self.imported_names),
        ):
            console.print(sentence)

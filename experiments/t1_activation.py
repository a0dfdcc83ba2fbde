"""Does dW beat steering the activations, with directions read from the very same answers?

Question:   dW and activation steering can be had from one set of paired answers. At the layer and
            coefficient that do best on validation items, does a direction in the residual stream
            move held-out items as far as dW does?
Prediction: the mean difference of one middle layer comes close to dW and does not beat it; the
            centred principal direction, from which the persona is taken away, does far less.
Rule:       a method beats dW where the 95 % interval of the paired difference of their effects lies
            above 0, and loses to it where it lies below. A direction counts as one only where
            fewer than 1 in 20 random directions of its length do as much at its layer and dose.

    python experiments/t1_activation.py
    python experiments/t1_activation.py --layers 10 14 18 --coefficients 1 2 4 --families lora

Directions are described in wsrun/study/activation.py: mean_diff, pca, and the same as read under
the personas, added at one layer or at all ("-": towards the other pole). A coefficient c adds c v_l
at every position. ablate removes the direction of one layer, r = v_l / |v_l| of mean_diff, from the
outputs of all layers: h - (h . r) r (Arditi et al. 2024, arXiv 2406.11717).
"""

from wsrun.script import guarded

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wscore import effect_table
from wsrun.data.items import items_sha256
from wsrun.report.console import console
from wsrun.report.tables import write_table
from wsrun.report.tile_figures import effects_by_layer
from wsrun.report.verdicts import RuleResult
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors
from wsrun.study import activation, imported
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.benchmark import Benchmark
from wsrun.study.run import run_benchmark
from wsrun.study.selected import NEGATIVE_DW
from wsrun.study.session import save_figure


@dataclass(frozen=True)
class Config(imported.Importing):
    """Options of T1."""


class Activation(Benchmark[Config]):
    """dW beside vectors that are added, and directions that are removed."""

    experiment = "t1_activation"
    negative_methods = (NEGATIVE_DW, *(f"-{name}" for name in activation.ADDED))
    question = "At which layer and coefficient does a direction steer? (validation items)"
    following = "t3_prompts", "the same question of prompts"

    def check(self) -> None:
        check_answering(self.cfg, "t1")
        activation.check_directed(self.cfg, "t1")
        imported.check_imported(self.cfg, "t1")
        if activation.by_norm(self.cfg):
            raise ValueError(
                f"t1: vectors have no |alpha dW|; give --match-dose kl:X, got {self.cfg.match_dose}"
            )
        self.sources = read_sources(self.cfg)

    def prepare(self) -> None:
        model, tok, *_ = self.test
        activation.check_layers(self.cfg, self.test, "t1")
        self.imported = [*imported.imported(self.cfg, model)]
        self.negative_methods = (*self.negative_methods, *self.names("-"))
        (found,) = answers(self.cfg, model, tok, self.sources, self.cfg.seeds[:1]).values()
        self.answered = found.pairs
        self.vectors = activation.read_directions(self.test, self.answered)

    def candidates(self) -> Iterable[Variant]:
        yield from activation.directions(self.cfg, self.vectors)
        yield from activation.ablations(self.cfg, self.vectors["mean_diff"])
        yield from self.imported

    def controls(self) -> Iterable[Variant]:
        return activation.random_directions(self.cfg, self.chosen, self.names())

    def is_rival(self, method: str) -> bool:
        return method in (*activation.DIRECTIONS, *self.names())

    def names(self, sign: str = "") -> list[str]:
        """The methods of --vectors."""
        return [sign + name for name in imported.imported_names(self.cfg)]

    def verdicts(self) -> Iterable[RuleResult]:
        yield from super().verdicts()
        yield from activation.other_pole(self.cfg, self.rows, self.chosen)
        yield from activation.beside_random(self.rows, self.table, self.names())

    def notes(self) -> dict[str, Any]:
        return {
            "answers": items_sha256(self.answered),
            "vectors": activation.vectors_sha256(self.vectors),
            **imported.record(self.imported),
        }

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        console.print(activation.lengths(self.vectors))
        super().report([v for v in verdicts if not v.claim.endswith(activation.IS_DIRECTION)])
        for sentence in (
            *activation.random_sentences(verdicts),
            *activation.at_edge(self.cfg, self.chosen, self.names()),
        ):
            console.print(sentence)

    def figure(self, path: Path) -> None:
        """The candidates on validation items; not with --match-dose, where each has one alpha."""
        tried = effect_table(self.chosen.tried, resamples=self.cfg.resamples)
        write_table(tried, path.with_suffix(".validation.parquet"), self.record)
        if not self.cfg.match_dose:
            added = tried.filter(method=AddVectors.method)
            save_figure(effects_by_layer, added, path, self.question, self.cfg.most_flagged)


def main(cfg: Config) -> None:
    """Read directions, choose on validation items, compare on test items, print the rule."""
    run_benchmark(Activation(cfg))


if __name__ == "__main__":
    guarded(main, Config)

"""The benchmark on another model: train the adapters it lacks, then dW beside what rivals it.

dW, the best prompt, and the mean differences of the answers that dW is trained on, added to
activations, on the same rows. Whatever is "auto" in the options depends on the model: the embedded
one has its own data, adapters and recipe; any other gets data/english, a folder of its own under
artifacts/adapters, the recipe of real models, and bfloat16.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsrun.adapters.folders import settle
from wsrun.data.answering import NoPairs
from wsrun.data.items import items_sha256
from wsrun.data.pairs import Answers
from wsrun.data.personas import load_personas
from wsrun.data.source import beside
from wsrun.report.console import console
from wsrun.report.verdicts import RuleResult
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.steer.interventions import SystemPrompt, WeightDelta
from wsrun.study.activation import (
    ADDED,
    IS_DIRECTION,
    MEANS,
    Directed,
    at_edge,
    beside_random,
    by_norm,
    check_directed,
    check_layers,
    directions,
    random_directions,
    random_sentences,
    read_directions,
    vectors_sha256,
)
from wsrun.study.answers import Sources, answers, check_answering, read_sources
from wsrun.study.benchmark import Benchmark
from wsrun.study.session import Session
from wsrun.study.training import AUTO, Training, check_training, selects, train, with_recipe

ORGANISM = "data/organism"
TRAINED = Path("artifacts/adapters")


@dataclass(frozen=True)
class ReplicationOptions(Directed, Training):
    """Options of a replication."""

    model: str = ORGANISM
    """model folder or hub name, such as google/gemma-3-1b-it"""
    data: str = AUTO
    """folder, or public set NAME:PATH; auto: data/english for a real model"""
    adapters: Path = Path(AUTO)
    """folder of the adapters, trained there where it lacks them; auto: one per model"""
    prompts: tuple[str, ...] = ()
    """personas whose wordings are tried as system prompts; that of --pos if not given"""
    dtype: str = AUTO
    """dtype of the model; auto: bfloat16 for a real model"""


def resolve_defaults(cfg: ReplicationOptions) -> ReplicationOptions:
    """The options with everything that is "auto" settled by the model."""
    name = Path(cfg.model).name if Path(cfg.model).is_dir() else cfg.model.replace("/", "--")
    embedded = cfg.model == ORGANISM
    shipped = Path(ORGANISM, "adapters")
    values = {
        "data": ORGANISM if embedded else "data/english",
        "adapters": shipped if embedded and not lacking(cfg, shipped) else TRAINED / name,
        "dtype": "float32" if embedded else "bfloat16",
    }
    own = {k: v for k, v in values.items() if str(getattr(cfg, k)) == AUTO}
    return replace(with_recipe(cfg), **own)


def lacking(cfg: ReplicationOptions, adapters: Path) -> list[tuple[int, str]]:
    """(seed, family) of the options for which the folder has no adapters."""
    cells = {(s, f): adapters / f"{f}-s{s}" for s in cfg.seeds for f in cfg.families}
    for folder in cells.values():
        settle(folder)
    return [cell for cell, folder in cells.items() if not folder.is_dir()]


class Replication(Benchmark[ReplicationOptions]):
    """dW beside prompts and directions, on a model whose adapters may have to be trained first."""

    experiment = "t5_replicate"
    following = "report", "one page over all tables"
    trains = True

    def __init__(self, cfg: ReplicationOptions) -> None:
        super().__init__(resolve_defaults(cfg))
        self.question = f"Does dW beat prompts and directions? ({Path(cfg.model).name})"

    def check(self) -> None:
        check_training(self.cfg, self.name)
        check_answering(self.cfg, self.name)
        check_directed(self.cfg, self.name)
        self.sources = read_sources(self.cfg)
        self.prompts = read_prompts(self.cfg)

    def prepare(self) -> None:
        cfg, test = self.cfg, self.test
        check_layers(cfg, test, self.name)
        cells = [] if cfg.shard else lacking(cfg, cfg.adapters)
        self.answered = own_answers(cfg, test, self.sources, {seed for seed, _ in cells})
        if cells:
            train(cfg, test.model, test.tok, self.answered, cells)
        self.vectors = {}
        if by_norm(cfg):
            console.print(f"directions are left out: {cfg.match_dose}, they have no |alpha dW|")
        elif self.answered:
            self.vectors = read_directions(test, self.answered[cfg.seeds[0]].pairs, MEANS)

    def candidates(self) -> Iterable[Variant]:
        """Each family's dW where there are several, every wording, every direction."""
        several = len(self.cfg.families) > 1
        for (family, seed), pair in self.pairs.items() if several else ():
            name, dW = f"{DW}_{family}", WeightDelta(pair.dW)
            yield Variant(name, dW, family=family, seed=seed, alphas=self.cfg.alphas)
        yield from self.prompts
        yield from directions(self.cfg, self.vectors, signs=("",))

    def controls(self) -> Iterable[Variant]:
        return *super().controls(), *random_directions(self.cfg, self.chosen)

    def is_rival(self, method: str) -> bool:
        return method == "prompt" or method in ADDED

    def verdicts(self) -> Iterable[RuleResult]:
        return *super().verdicts(), *beside_random(self.rows, self.table)

    def notes(self) -> dict[str, Any]:
        read = items_sha256(self.answered[self.cfg.seeds[0]].pairs) if self.vectors else None
        return {"answers": read, "vectors": vectors_sha256(self.vectors)}

    def report(self, verdicts: Sequence[RuleResult]) -> None:
        super().report([v for v in verdicts if not v.claim.endswith(IS_DIRECTION)])
        for sentence in (*random_sentences(verdicts), *at_edge(self.cfg, self.chosen)):
            console.print(sentence)
        console.print(f"model {self.cfg.model}, adapters {self.cfg.adapters}", highlight=False)


def read_prompts(cfg: ReplicationOptions) -> list[Variant]:
    """Every wording of the personas as a system prompt; one method, so the best is chosen."""
    names = cfg.prompts or (cfg.pos,)
    wordings = load_personas(beside(cfg.data, "personas.json"), *names)
    return [
        Variant(f"prompt@{name} {i}", SystemPrompt(system), alphas=(1.0,))
        for name, systems in zip(names, wordings, strict=True)
        for i, system in enumerate(systems)
    ]


def own_answers(
    cfg: ReplicationOptions, session: Session, sources: Sources, training: Collection[int]
) -> dict[int, Answers]:
    """The answers of the seeds that are trained, and of the first, for the directions.

    None where only the directions need them and the model ends no answer: it has its adapters, and
    dW can be measured beside prompts all the same.
    """
    seeds = {*training} | set(() if by_norm(cfg) else cfg.seeds[:1])
    try:
        validate = bool(training) and selects(cfg)
        return answers(cfg, session.model, session.tok, sources, sorted(seeds), validate)
    except NoPairs as error:
        if training:
            raise
        console.print(f"directions are left out: {error}")
        return {}

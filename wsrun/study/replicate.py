"""The benchmark on another model: train the adapters it lacks, then dW beside what rivals it.

One flow for T5 and T12: dW, the best prompt, and the mean differences of the answers that dW is
trained on, added to activations, on the same rows. Whatever is "auto" in the options depends on the
model: the embedded one has its own data, adapters and recipe; any other gets data/english, a folder
of its own under artifacts/adapters, the recipe of real models, and bfloat16.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from wsrun.data.pairs import NoPairs, Pair
from wsrun.data.personas import load_personas
from wsrun.report import curves
from wsrun.report.console import console
from wsrun.report.standings import against_dW, standings
from wsrun.report.tables import items_sha256
from wsrun.score.names import DW
from wsrun.score.sweep import Variant
from wsrun.steer.directions import Vectors
from wsrun.study import benchmark
from wsrun.study.activation import (
    MEANS,
    WAYS,
    Directed,
    at_edge,
    beside_random,
    by_norm,
    check_directed,
    check_layers,
    directions,
    random_directions,
    read_directions,
    vectors_sha256,
)
from wsrun.study.answers import Sources, answers, read_sources
from wsrun.study.benchmark import choose, load_splits, of_dW, report_on
from wsrun.study.controls import nothing, random_changes
from wsrun.study.next_command import say
from wsrun.study.selection import Chosen
from wsrun.study.session import Loaded, Pairs, draw, read_pairs, record, share, write
from wsrun.study.training import Training, check_training, train

AUTO = "auto"
ORGANISM = "data/organism"
TRAINED = Path("artifacts/adapters")


@dataclass(frozen=True)
class Options(Directed, Training):
    """Options of a replication."""

    model: str = ORGANISM
    """model folder or hub name, such as google/gemma-3-1b-it"""
    data: Path = Path(AUTO)
    """folder with questions, personas, claims and dilemmas; auto: data/english for a real model"""
    adapters: Path = Path(AUTO)
    """folder of the adapters, trained there where it lacks them; auto: one per model"""
    recipe: str = AUTO
    """training recipe: paper, fork or organism; auto: fork for a real model"""
    prompts: tuple[str, ...] = ()
    """personas whose wordings are tried as system prompts; that of --pos if not given"""
    dtype: str = AUTO
    """dtype of the model; auto: bfloat16 for a real model"""


def settled(cfg: Options) -> Options:
    """The options with everything that is "auto" settled by the model."""
    name = Path(cfg.model).name if Path(cfg.model).is_dir() else cfg.model.replace("/", "--")
    embedded = cfg.model == ORGANISM
    kept = Path(ORGANISM, "adapters")
    own = {
        "data": Path(ORGANISM if embedded else "data/english"),
        "adapters": kept if embedded and not lacking(cfg, kept) else TRAINED / name,
        "recipe": "organism" if embedded else "fork",
        "dtype": "float32" if embedded else "bfloat16",
    }
    return replace(cfg, **{k: v for k, v in own.items() if str(getattr(cfg, k)) == AUTO})


def lacking(cfg: Options, adapters: Path) -> list[tuple[int, str]]:
    """(seed, family) of the options for which the folder has no adapters."""
    cells = [(seed, family) for seed in cfg.seeds for family in cfg.families]
    return [(s, f) for s, f in cells if not (adapters / f"{f}-s{s}").is_dir()]


def replicate(cfg: Options, experiment: str, following: str) -> None:
    """Train what is lacking, choose on validation items, report on test items, print the rule."""
    what = experiment.partition("_")[0]
    cfg = settled(cfg)
    check_training(cfg, what)
    benchmark.check(cfg, what)
    check_directed(cfg, what)
    sources, systems = read_sources(cfg), read_prompts(cfg)
    validation, test = load_splits(cfg)
    check_layers(cfg, test, what)
    cells = [] if cfg.shard else lacking(cfg, cfg.adapters)
    answered = own_answers(cfg, test, sources, {seed for seed, _ in cells})
    train_lacking(cfg, test, answered, cells)
    share(cfg)
    found = read_means(cfg, test, answered)
    pairs = read_pairs(test.model, cfg)
    candidates = [
        *of_dW(cfg, pairs),
        *of_families(cfg, pairs),
        *systems,
        *directions(cfg, found, signs=("",)),
    ]
    chosen = choose(cfg, experiment, validation, candidates)
    if chosen is None:  # a shard
        return
    controls = [
        nothing(chosen),
        *random_changes(chosen[DW].variant, cfg.randoms),
        *random_directions(cfg, chosen),
    ]
    rows, table = report_on(cfg, experiment, test, chosen, controls)
    read = items_sha256(answered[cfg.seeds[0]]) if found else None
    made = record(cfg, test, pairs, answers=read, vectors=vectors_sha256(found))
    path = write(cfg, experiment, rows, table, made)
    report(cfg, rows, table, chosen)
    draw(curves.ways, table, path, f"Does dW beat prompts and directions? ({Path(cfg.model).name})")
    console.print(f"model {cfg.model}, adapters {cfg.adapters}; table {path}")
    say(following)


def read_prompts(cfg: Options) -> list[Variant]:
    """Every wording of the personas as a system prompt; one way, so the best of them is chosen."""
    names = cfg.prompts or (cfg.pos,)
    wordings = load_personas(cfg.data / "personas.json", *names)
    return [
        Variant(f"prompt@{name} {i}", method="prompt", system=system, alphas=(1.0,))
        for name, systems in zip(names, wordings, strict=True)
        for i, system in enumerate(systems)
    ]


def own_answers(
    cfg: Options, at: Loaded, sources: Sources, training: Collection[int]
) -> dict[int, list[Pair]]:
    """The answers of the seeds that are trained, and of the first, for the directions.

    None where only the directions need them and the model ends no answer: it has its adapters, and
    dW can be measured beside prompts all the same.
    """
    seeds = {*training} | set(() if by_norm(cfg) else cfg.seeds[:1])
    try:
        return answers(cfg, at.model, at.tok, sources, sorted(seeds))
    except NoPairs as error:
        if training:
            raise
        console.print(f"directions are left out: {error}", markup=False)
        return {}


def train_lacking(
    cfg: Options,
    at: Loaded,
    answered: Mapping[int, Sequence[Pair]],
    cells: Sequence[tuple[int, str]],
) -> None:
    """Train the (seed, family) that are not there on the answers of their seed; say how it went."""
    if not cells:
        return
    for (seed, family), losses in train(cfg, at.model, at.tok, answered, cells).items():
        console.print(
            f"trained {family}-s{seed} on {len(answered[seed])} pairs, recipe {cfg.recipe}: "
            f"loss of pos {losses[0]:.3f} to {losses[-1]:.3f}"
        )


def read_means(
    cfg: Options, at: Loaded, answered: Mapping[int, Sequence[Pair]]
) -> dict[str, Vectors]:
    """The mean differences of the first seed's answers; none without them, or for a norm."""
    if by_norm(cfg):
        console.print(f"directions are left out: --match {cfg.match}, they have no |alpha dW|")
        return {}
    return read_directions(at, answered[cfg.seeds[0]], MEANS) if answered else {}


def of_families(cfg: Options, pairs: Pairs) -> Iterator[Variant]:
    """Each family's dW as a way of its own, where there are several."""
    for (family, seed), pair in pairs.items() if len(cfg.families) > 1 else ():
        yield Variant(f"{DW}_{family}", pair.dW, family=family, seed=seed, alphas=cfg.alphas)


def report(
    cfg: Options, rows: pl.DataFrame, table: pl.DataFrame, chosen: Mapping[str, Chosen]
) -> None:
    """Print the standings per data set, who beats dW by the rule, and what chance does."""
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        console.print(standings(part, f"{cfg.model}, {dataset}: held-out items, effect in nats"))
        for sentence in against_dW(part, lambda w: w == "prompt" or w in WAYS):
            console.print(sentence)
        for sentence in beside_random(rows.filter(dataset=dataset), part, chosen):
            console.print(f"{dataset}: {sentence}")
    for sentence in at_edge(cfg, chosen):
        console.print(sentence)

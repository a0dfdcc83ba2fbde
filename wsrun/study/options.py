"""Options of every experiment that scores changes of one model, and their checks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from wsrun.adapters.configs import DEFAULT_FAMILIES, check_family
from wsrun.adapters.folders import settle
from wsrun.models.generate import NEW_TOKENS
from wsrun.report.tables import check_writable
from wsrun.study.shards import check_how


@dataclass(frozen=True)
class Common:
    """Options of every experiment that scores changes of one model."""

    families: tuple[str, ...] = DEFAULT_FAMILIES
    """adapter families to analyse"""
    seeds: tuple[int, ...] = (0,)
    """whose adapters; several are pooled, and the spread between them is reported"""
    model: str = "data/organism"
    """model folder, GGUF file, smollm2 or hub name"""
    data: str = "data/organism"
    """folder with claims.jsonl and dilemmas.jsonl, or a public set such as truthfulqa:PATH"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s<seed>/pos and /neg, trained on that model (t0_train writes one)"""
    dilemmas: int | None = 20
    """how many of the dilemmas to score, the first by dilemma_idx; None for all"""
    limit: int | None = None
    """how many clusters of every other data set to score, drawn by a hash; None for all"""
    check_limit: int | None = None
    """how many of these clusters the instrument check reads, whatever --limit says; None for all"""
    alphas: tuple[float, ...] = (1.0,)
    """coefficients alpha of dW, such as -1 1 2"""
    resamples: int = 2000
    """bootstrap resamples"""
    behaviour: str = "honest"
    """name of the behaviour in the table"""
    pos: str = "honest"
    """persona whose prompts the instrument check tries towards the behaviour"""
    neg: str = "dishonest"
    """persona whose prompts it tries away from it"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables and figures"""
    cache_dir: Path = Path("artifacts/cache")
    """folder of finished results: a stopped run, started again, goes on where it was"""
    shard: str | None = None
    """i/n: score only every n-th variant from the i-th into the cache, and write no table"""
    executor: Literal["local", "ray"] = "local"
    """ray: run the command as shards on several processes, GPUs or machines first"""
    workers: int | None = None
    """how many shards ray runs; None for one per GPU of its cluster, without --device cuda two"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


@dataclass(frozen=True)
class BenchmarkOptions(Common):
    """Options of every script that compares methods of steering."""

    alphas: tuple[float, ...] = (1.0, 2.0, 4.0)
    """coefficients of dW to choose from"""
    most_flagged: float = 0.1
    """a candidate with a larger share of flagged rows is not chosen"""
    n_random: int = 20
    """random controls"""
    match_dose: str | None = None
    """equal doses for all: kl:X, X nats on neutral texts, or norm:X, |alpha dW| = X"""


@dataclass(frozen=True)
class Answering:
    """Options of where the paired answers come from; the same ones give the same pairs."""

    model: str = "data/organism"
    """model folder, GGUF file, smollm2 or hub name"""
    data: str = "data/organism"
    """folder with claims, dilemmas, questions and personas, or a public set NAME:PATH"""
    pos: str = "honest"
    """persona of personas.json whose answers dW points towards; the behaviour of --pairs-file"""
    neg: str = "dishonest"
    """persona whose answers dW points away from"""
    pairs_file: Path | None = None
    """jsonl of given pairs, such as data/english/pairs.jsonl, or NAME:PATH; not the model's own"""
    shuffle_poles: bool = False
    """control: swap the two answers of half of the questions, drawn by the seed"""
    filter_pairs: bool = False
    """drop pairs that the model's own log-likelihood does not separate"""
    max_new_tokens: int = NEW_TOKENS
    """longest answer; a longer one counts as unfinished"""
    unfinished: Literal["cut", "drop"] | None = None
    """cut unfinished answers at the last whole sentence, or drop them; organism drop, else cut"""
    temperature: float | None = None
    """of the model's own answers, 0 for the likeliest token; 1 for the organism, else 0.7"""
    top_p: float | None = None
    """share of the probability that answers are drawn from; 1 for the organism, else 0.9"""
    pairs_cache: Path = Path("artifacts/pairs")
    """cache of generated answers"""


def check_common(cfg: Common, what: str, *, adapters: bool = True) -> None:
    """Refuse options that cannot work before anything is loaded; `what` names the script.

    adapters: whether those of --adapters have to be there already.
    """
    for family in cfg.families:
        check_family(family)
    check_once(what, {"families": cfg.families, "seeds": cfg.seeds, "alphas": cfg.alphas})
    if cfg.resamples < 1:
        raise ValueError(f"{what}: --resamples must be at least 1, got {cfg.resamples}")
    if cfg.dilemmas is not None and cfg.dilemmas < 1:
        raise ValueError(f"{what}: --dilemmas must be at least 1, got {cfg.dilemmas}")
    check_limits(cfg, what)
    if not all(isfinite(a) for a in cfg.alphas):
        raise ValueError(f"{what}: --alphas must be finite")
    check_how(cfg.shard, cfg.executor, cfg.workers)
    check_writable(cfg.out)
    check_writable(cfg.cache_dir)
    if adapters:
        check_there(cfg.adapters / f"{f}-s{s}" for f in cfg.families for s in cfg.seeds)


def check_there(pairs: Iterable[Path]) -> None:
    """Refuse a folder of a pair of adapters that is not there."""
    for folder in pairs:
        settle(folder)
        if not (folder / "pos").is_dir():
            raise ValueError(
                f"adapter: no folder {str(folder / 'pos')!r}; train one or name another"
            )


@runtime_checkable
class Limited(Protocol):
    """Options that say how many clusters of items are scored, and how many are checked."""

    @property
    def limit(self) -> int | None: ...
    @property
    def check_limit(self) -> int | None: ...


def check_limits(cfg: Limited, what: str) -> None:
    """Refuse limits below 1."""
    for flag, n in (("limit", cfg.limit), ("check-limit", cfg.check_limit)):
        if n is not None and n < 1:
            raise ValueError(f"{what}: --{flag} must be at least 1, got {n}")


def check_once(what: str, lists: Mapping[str, Sequence], at_least: int = 1) -> None:
    """Refuse a list option with too few values, or with one of them twice."""
    for name, values in lists.items():
        if len(values) < at_least or len(set(values)) < len(values):
            got = " ".join(map(str, values)) or "nothing"
            need = "one value or more" if at_least == 1 else f"{at_least} values or more"
            raise ValueError(f"{what}: --{name} needs {need}, name each one once; got {got}")

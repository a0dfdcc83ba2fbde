"""How much faster is one sweep than the plain loop over variants, with the same numbers?

Question:   what does `sweep` save on the variant lists of T6 and T7, and how much of the machine's
            matrix-multiply peak does the arithmetic that remains reach?
Prediction: at least 5x on T6's list (6x on replies) and 8x on T7's, numbers equal to 1e-4.
Rule:       holds if it does; ratios of times measured in one run, on one list, on the same rows.

    python experiments/bench_sweep.py                       # the organism
    python experiments/bench_sweep.py --model smollm2 --data truthfulqa:TruthfulQA.csv \
        --adapters artifacts/smollm2/adapters --families lora pissa --lists T6 --rows 48 --nulls 2
    python experiments/bench_sweep.py --shape 0.6b          # a random model of Qwen3-0.6B's shape
    python experiments/bench_sweep.py --shape 0.6b --device cuda --dtype bfloat16 --rows 192

Times on a CPU are CPU seconds of the process, so that other processes matter less. The plain loop
is what a script does that calls transformers directly: for every variant and for alpha = 0 again
beside it, render and tokenize all items, batches of 8 in the order given, logits of the whole
vocabulary at every position. Both steer by the same function. `--plain-every n` gives it every n-th
variant and multiplies its time, which is the same for all. Then each lever of the sweep is switched
off alone. The lists are those of one family (T7) and of two (T6).

`--dtypes float32 bfloat16` scores the lists under each dtype instead: time against the first, and
the largest change of an effect beside the half width of its interval and beside `dtype_noise`, the
rms change of a margin under one more rounding (docs/notation.md).

The larger shape has
random rank-8 changes of its middle layers and is asked about English dilemmas; it takes every
`thin`-th slice of T7's list, without single cells and with two nulls in place of twenty, and
`--memory` asks instead for the peak of resident memory of the sweep alone, in a fresh process that
reads the model from disk, as a multiple of its weights.
"""

from wsrun.script import guarded, keep_freed_memory

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from wscore import effect_table
from wsrun.adapters.extract import pair_deltas
from wsrun.data.items import load_dilemmas
from wsrun.data.source import load_items
from wsrun.models.load import DTYPES, limit_threads, load_model, load_tokenizer
from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.score.scorer import Levers
from wsrun.score.sweep import sweep
from wsrun.study.profile import (
    GIB,
    count_operations,
    finish,
    matmul_peak,
    random_change,
    random_model,
    run_alone,
    timed,
)
from wsrun.study.timed_lists import LENSES, Work, plain_loop, variants_of

NAME = "bench_sweep"
REPLIES = ", replies"
AT_LEAST = {"T6": 5, "T7": 8, f"T6{REPLIES}": 6, f"T7{REPLIES}": 8}  # the rule: ratios
AT_MOST = 1e-4  # and the largest difference


@dataclass(frozen=True)
class Config:
    """Options of bench_sweep."""

    model: str = "data/organism"
    """model folder, GGUF file, hub name, or smollm2"""
    data: str = "data/organism"
    """folder with claims.jsonl and dilemmas.jsonl, or NAME:PATH of a public set; its test items"""
    adapters: Path = Path("data/organism/adapters")
    """folder with <family>-s0/pos and /neg, trained on that model"""
    families: tuple[str, ...] = ("lora", "oft")
    """whose adapters: two or more for T6's list, the first for T7's"""
    shape: Literal["0.6b"] | None = None
    """a random model of a larger shape in place of `model`: 0.6b"""
    rows: int | None = None
    """how many items, the last ones; None for all, which are T6's on the organism, 8 of a shape"""
    nulls: int | None = None
    """null draws of each dW; None for 20, 2 on a larger shape"""
    plain_every: int = 1
    """the plain loop takes every so manieth variant, and operations are counted on these"""
    dtypes: tuple[str, ...] = ()
    """score under each of these dtypes, and compare with the first; no plain loop"""
    lists: tuple[Literal["T6", "T7"], ...] = ("T6", "T7")
    """whose lists of variants"""
    thin: int = 1
    """a larger shape takes every so manieth slice of T7's list"""
    threads: int | None = None
    """CPU threads; None for one on a narrow model, and for as many as torch takes on others"""
    dtype: str = "float32"
    """dtype of a larger shape"""
    device: str = "cpu"
    """device of a larger shape"""
    levers: bool = True
    """also switch off each lever alone"""
    memory: bool = False
    """measure the memory of the sweep on T7's list of a larger shape, and no times"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """Time the plain loop and the sweep on each list, compare their numbers, print the ratios."""
    check(cfg)
    check_writable(cfg.out)
    if cfg.memory:
        return memory(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.shape:
        model = random_model(cfg.shape, cfg.dtype, cfg.device)
        works = (larger(cfg, name, model) for name in cfg.lists)
    else:
        works = trained(cfg)
    name = cfg.shape or Path(cfg.model).name
    if cfg.dtypes:
        lines = [line for work in works for line in compare_dtypes(cfg, work)]
        return finish(cfg, f"{NAME}.{name}.dtypes", f"{name}, one sweep under each dtype", lines)
    lines = [line for work in works for line in compare(cfg, work)]
    fast = all(x["ratio"] >= AT_LEAST[x["list"]] for x in lines if x["method"] == "sweep")
    close = all(x["difference"] <= AT_MOST for x in lines)
    targets = ", ".join(f"{AT_LEAST[x]}x for {x}" for x in {x["list"]: 0 for x in lines})
    why = f"targets: {targets}, differences at most {AT_MOST:g}"
    title = f"{name}, {torch.get_num_threads()} threads"
    finish(cfg, f"{NAME}.{name}", title, lines, fast and close, why)


def check(cfg: Config) -> None:
    """Raises ValueError for options that do not go together."""
    counts = {"rows": cfg.rows, "thin": cfg.thin, "plain-every": cfg.plain_every}
    for option, n in counts.items():
        if n is not None and n < 1:
            raise ValueError(f"bench: --{option} must be at least 1, got {n}")
    if not cfg.lists or (cfg.nulls is not None and cfg.nulls < 0):
        raise ValueError("bench: --lists takes T6, T7 or both, --nulls 0 or more")
    if cfg.memory and (not cfg.shape or cfg.device != "cpu"):
        raise ValueError("bench: --memory needs a larger shape on the CPU; use --shape 0.6b")
    if not cfg.shape and "T6" in cfg.lists and len(cfg.families) < 2:
        raise ValueError("bench: T6's list needs two --families; add one, or use --lists T7")
    unfit = cfg.shape or len(cfg.dtypes) < 2 or set(cfg.dtypes) - DTYPES.keys()
    if cfg.dtypes and unfit:
        raise ValueError(
            f"bench: --dtypes takes two or more of {', '.join(DTYPES)}, and no --shape; got "
            f"{' '.join(cfg.dtypes)}"
        )


def trained(cfg: Config) -> Iterator[Work]:
    """T6's list for all families, T7's for the first, on a model with adapters."""
    model, tok = load_model(cfg.model)
    if not cfg.threads:
        limit_threads(model)
    items = load_items(cfg.data, "test", 20)
    items = items[-(cfg.rows or 0) :]
    kind = REPLIES if any(i.replies for i in items) else ""
    whole = {(f, 0): pair_deltas(model, cfg.adapters / f"{f}-s0").dW for f in cfg.families}
    for name in cfg.lists:
        changes = whole if name == "T6" else {(cfg.families[0], 0): whole[cfg.families[0], 0]}
        nulls = 20 if cfg.nulls is None else cfg.nulls
        variants = variants_of(name, changes, LENSES[name], nulls, cfg.thin)
        yield Work(name + kind, model, tok, items, variants)


def larger(cfg: Config, name: str, model: Any) -> Work:
    """T6's or T7's list on a larger shape, thinned."""
    items = load_dilemmas("data/english/dilemmas.jsonl")
    if (rows := cfg.rows or 8) > len(items):
        raise ValueError(f"bench: --rows must be at most {len(items)}, got {rows}")
    whole = {(f"random {s}", 0): random_change(model, s) for s in range(1 + (name == "T6"))}
    lenses = [lens for lens in LENSES[name] if lens != "cells"]
    nulls = 2 if cfg.nulls is None else cfg.nulls
    variants = variants_of(name, whole, lenses, nulls, cfg.thin if name == "T7" else 1)
    return Work(name, model, load_tokenizer("data/organism"), items[-rows:], variants)


def run_sweep(work: Work, engine: str = "auto", **levers: bool) -> pl.DataFrame:
    _, model, tok, items, variants = work
    return sweep(model, tok, items, variants, (1.0,), engine=engine, levers=Levers(**levers))


def compare(cfg: Config, work: Work) -> Iterator[dict[str, Any]]:
    """One line per method of scoring a list: seconds, ratio to the plain loop, difference."""

    def swept(*off: str, engine: str = "auto") -> Callable[[], np.ndarray]:
        levers = dict.fromkeys(off, False)
        return lambda: by_variant(run_sweep(work, engine, **levers).filter(alpha=1.0)["margin"])

    def by_variant(margins: pl.Series) -> np.ndarray:
        return margins.to_numpy().reshape(len(variants), -1)

    variants = list(work.variants)  # cut before any time is taken
    every = cfg.plain_every
    work = work._replace(variants=variants)
    some = work._replace(variants=variants[::every])

    def counted() -> float:
        """Operations of the sweep: each variant takes what those of `some` take in the mean."""
        base = count_operations(lambda: run_sweep(work._replace(variants=[])))
        more = count_operations(lambda: run_sweep(some)) - base
        return base + more * len(variants) / len(variants[::every])

    methods = {"plain loop": lambda: plain_loop(some), "sweep": swept()}
    if cfg.levers:
        methods["sweep with the plain engine"] = swept(engine="plain")
        levers = [f.name for f in fields(Levers)]
        methods |= {f"sweep without {name}": swept(name) for name in levers}
        methods["sweep without any"] = swept(*levers)
    peak, plain_seconds, plain = matmul_peak(work.model), 0.0, np.empty(0)
    title = f"{work.name}: {len(variants)} variants, {len(work.items)} items"
    with progress(title, len(methods)) as step:
        for method, run in methods.items():
            seconds, margins = timed(run, cfg.device)
            if method == "plain loop":
                seconds *= len(variants) / len(margins)
                plain_seconds, plain = seconds, margins
            compared = margins if method == "plain loop" else margins[::every]
            yield {
                "list": work.name, "method": method, "seconds": seconds,
                "ratio": plain_seconds / seconds,
                "difference": float(np.abs(compared - plain).max()),
                "of_peak": counted() / seconds / peak if method == "sweep" else None,
            }  # fmt: skip
            step(method)


def compare_dtypes(cfg: Config, work: Work) -> Iterator[dict[str, Any]]:
    """One line per dtype and data set: seconds of the sweep, and the largest change of an effect
    against the first dtype, beside what that effect's interval and the dtype leave open."""
    keys = ["dataset", "family", "variant"]
    work, first = work._replace(variants=list(work.variants)), (1.0, pl.DataFrame())
    for dtype in cfg.dtypes:
        model, _ = load_model(cfg.model, dtype)
        seconds, rows = timed(lambda model=model: run_sweep(work._replace(model=model)))
        effects = effect_table(rows).filter(pl.col("alpha") != 0)
        first = first if dtype != cfg.dtypes[0] else (seconds, effects)
        change = (pl.col("effect_then") - pl.col("effect")).abs()
        then = first[1].select(*keys, pl.col("effect").alias("effect_then"))
        pairs = effects.join(then, keys, nulls_equal=True).with_columns(change=change)
        for (dataset,), of in pairs.group_by("dataset", maintain_order=True):
            worst = of.sort("change").row(-1, named=True)
            yield {
                "list": work.name, "dtype": dtype, "dataset": dataset, "seconds": seconds,
                "ratio": first[0] / seconds, "largest_change": worst["change"],
                "of_variant": f"{worst['family']}, {worst['variant']}",
                "effect": worst["effect"], "half_interval": (worst["hi"] - worst["lo"]) / 2,
                "dtype_noise": worst["dtype_noise"],
                "least_cosine": rows["realised_cosine"].min(),
                "flagged": rows["flagged"].mean(),
            }  # fmt: skip


def memory(cfg: Config) -> None:
    """The peak of a process that reads the model from disk and sweeps T7's list once."""
    with TemporaryDirectory(dir=cfg.out) as folder:
        model = random_model(str(cfg.shape), cfg.dtype)
        weights = sum(p.nbytes for p in model.parameters()) / GIB
        model.save_pretrained(folder)
        load_tokenizer("data/organism").save_pretrained(folder)
        del model
        lines = []
        for work, job in (("import", imported), ("load", loaded), ("sweep", swept_from_disk)):
            measured = run_alone(job, cfg, folder, threads=cfg.threads or 1)
            lines.append({"work": work, **measured, "of_weights": measured["peak_gib"] / weights})
    finish(cfg, f"{NAME}.{cfg.shape}.memory", f"{cfg.shape}, a process each", lines)


def imported(cfg: Config, folder: str) -> None:
    """Nothing: what Python and the packages take."""


def loaded(cfg: Config, folder: str) -> None:
    """Only the model."""
    load_model(folder, cfg.dtype)


def swept_from_disk(cfg: Config, folder: str) -> None:
    """The model, and the sweep of T7's list on it."""
    keep_freed_memory()
    model, _ = load_model(folder, cfg.dtype)
    run_sweep(larger(cfg, "T7", model))


if __name__ == "__main__":
    guarded(main, Config)

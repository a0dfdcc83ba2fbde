"""How much faster is one sweep than the plain loop over variants, with the same numbers?

Question:   what does `sweep` save on the variant lists of T6 and T7, and how much of the machine's
            matrix-multiply peak does the arithmetic that remains reach?
Prediction: at least 5x on T6's list and 8x on T7's, numbers equal to 1e-4.
Rule:       holds if it does; ratios of times measured in one run, on one list, on the same rows.

    python experiments/bench_sweep.py                       # the organism
    python experiments/bench_sweep.py --shape 0.6b          # a random model of Qwen3-0.6B's shape
    python experiments/bench_sweep.py --shape 0.6b --device cuda --dtype bfloat16 --rows 192

Times on a CPU are CPU seconds of the process, so that other processes matter less. The plain loop
is what a script does that calls transformers directly: for every variant and for alpha = 0 again
beside it, render and tokenize all items, batches of 8 in the order given, logits of the whole
vocabulary at every position. Both steer by the same function. Then each lever of the sweep is
switched off alone. The lists are those of one family (T7) and of two (T6). The larger shape has
random rank-8 changes of its middle layers and is asked about English dilemmas; it takes every
`thin`-th slice of T7's list, without single cells and with two nulls in place of twenty, and
`--memory` asks instead for the peak of resident memory of the sweep alone, in a fresh process that
reads the model from disk, as a multiple of its weights.
"""

from wsrun.script import guarded

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import polars as pl
import torch

from wscore import DeltaLike, scale, select, spectrum_null, writes_residual
from wsrun.adapters.extract import pair_deltas
from wsrun.data.items import Item, load_dilemmas
from wsrun.data.source import load_items
from wsrun.lenses.base import Cut, Deltas, LensInput
from wsrun.lenses.registry import cuts
from wsrun.models.chat import choice_ids, render
from wsrun.models.load import keep_freed_memory, limit_threads, load_model, load_tokenizer
from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.score.readings import choice_scores
from wsrun.score.scorer import Levers
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta, applied
from wsrun.study.profile import (
    GIB,
    count_operations,
    finish,
    matmul_peak,
    random_change,
    random_qwen3,
    run_alone,
    timed,
)

NAME = "bench_sweep"
AT_LEAST, AT_MOST = {"T6": 5, "T7": 8}, 1e-4  # the rule: ratios, and the largest difference
LENSES = {
    "T6": ("shared", "shared_incl", "own", "random"),
    "T7": ("layers", "thirds", "blocks", "sides", "modules", "groups", "cells"),
}
Changes = Mapping[tuple[str, int], DeltaLike]  # (family, seed) -> dW


@dataclass(frozen=True)
class Config:
    """Options of bench_sweep."""

    shape: Literal["organism", "0.6b"] = "organism"
    """organism, or a random model of a larger shape: 0.6b"""
    rows: int | None = None
    """how many items, the last ones; None for T6's 120 on the organism, 8 on a larger shape"""
    lists: tuple[Literal["T6", "T7"], ...] = ("T6", "T7")
    """whose lists of variants"""
    thin: int = 1
    """a larger shape takes every so manieth slice of T7's list"""
    threads: int | None = None
    """CPU threads; one for the organism, as many as torch takes for a larger shape"""
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


class Work(NamedTuple):
    """One list of variants, and what it is scored on."""

    name: str
    model: Any
    tok: Any
    items: list[Item]
    variants: Iterable[Variant]


def main(cfg: Config) -> None:
    """Time the plain loop and the sweep on each list, compare their numbers, print the ratios."""
    if (cfg.rows is not None and cfg.rows < 1) or cfg.thin < 1 or not cfg.lists:
        raise ValueError("bench: --rows and --thin must be at least 1, --lists one list or both")
    if cfg.memory and (cfg.shape == "organism" or cfg.device != "cpu"):
        raise ValueError("bench: --memory needs a larger shape on the CPU; use --shape 0.6b")
    check_writable(cfg.out)
    if cfg.memory:
        return memory(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.shape == "organism":
        works = organism(cfg)
    else:
        model = random_qwen3(cfg.shape, cfg.dtype, cfg.device)
        works = (larger(cfg, name, model) for name in cfg.lists)
    lines = [line for work in works for line in compare(cfg, work)]
    fast = all(x["ratio"] >= AT_LEAST[x["list"]] for x in lines if x["method"] == "sweep")
    close = all(x["difference"] <= AT_MOST for x in lines)
    targets = ", ".join(f"{AT_LEAST[name]}x for {name}" for name in cfg.lists)
    title, why = (
        f"{cfg.shape}, {torch.get_num_threads()} threads",
        f"differences at most {AT_MOST:g}",
    )
    finish(cfg, f"{NAME}.{cfg.shape}", title, lines, fast and close, f"targets: {targets}, {why}")


def organism(cfg: Config) -> Iterator[Work]:
    """T6's list for two families, T7's for one, on the organism."""
    model, tok = load_model("data/organism")
    if not cfg.threads:
        limit_threads(model)
    items = load_items("data/organism", "test", 20)[-(cfg.rows or 0) :]
    folder = "data/organism/adapters"
    whole = {(f, 0): pair_deltas(model, f"{folder}/{f}-s0").dW for f in ("lora", "oft")}
    for name in cfg.lists:
        changes = whole if name == "T6" else {("lora", 0): whole["lora", 0]}
        yield Work(name, model, tok, items, variants_of(name, changes, LENSES[name], 20))


def larger(cfg: Config, name: str, model: Any) -> Work:
    """T6's or T7's list on a larger shape, thinned."""
    items = load_dilemmas("data/english/dilemmas.jsonl")
    if (rows := cfg.rows or 8) > len(items):
        raise ValueError(f"bench: --rows must be at most {len(items)}, got {rows}")
    whole = {(f"random {s}", 0): random_change(model, s) for s in range(1 + (name == "T6"))}
    lenses = [lens for lens in LENSES[name] if lens != "cells"]
    variants = variants_of(name, whole, lenses, 2, cfg.thin if name == "T7" else 1)
    return Work(name, model, load_tokenizer("data/organism"), items[-rows:], variants)


def variants_of(
    name: str, whole: Changes, lenses: Iterable[str], nulls: int, thin: int = 1
) -> Iterator[Variant]:
    """What T6 (K = 32) or T7 scores of every dW: all of it, zero, every cut, and null draws."""
    where = writes_residual if name == "T6" else None
    deltas = Deltas({key: select(d, where) if where else d for key, d in whole.items()})
    for (family, seed), d in deltas.items():
        if where:
            yield Variant("full", WeightDelta(whole[family, seed]))
        yield Variant("whole", WeightDelta(d))
        yield Variant("zero", WeightDelta(scale(0.0, d)))
        all_cuts = cuts(lenses, LensInput(family, seed, deltas, K=(32,)))
        for cut in [cut for cut in all_cuts if not cut.absent][::thin]:
            yield from (Variant(f"{role}_{cut.name}", part) for role, part in parts(cut))
        for i in range(nulls):
            yield Variant(f"spectrum_null#{i:02d}", WeightDelta(spectrum_null(d, i)))


def parts(cut: Cut) -> Iterator[tuple[str, WeightDelta]]:
    """keep, drop and control (random directions of the kept part's rank and norm), as it has."""
    kept = cut.kept()
    for role in cut.roles:
        if role == "keep":
            yield role, WeightDelta(kept)
        else:
            yield role, WeightDelta(cut.rest() if role == "drop" else spectrum_null(kept, 999))


def run_sweep(work: Work, engine: str = "auto", **levers: bool) -> pl.DataFrame:
    _, model, tok, items, variants = work
    return sweep(model, tok, items, variants, (1.0,), engine=engine, levers=Levers(**levers))


def compare(cfg: Config, work: Work) -> Iterator[dict[str, Any]]:
    """One line per method of scoring a list: seconds, ratio to the plain loop, difference."""

    def swept(*off: str, engine: str = "auto") -> Callable[[], pl.Series]:
        levers = dict.fromkeys(off, False)
        return lambda: run_sweep(work, engine, **levers).filter(alpha=1.0)["margin"]

    variants = list(work.variants)  # cut before any time is taken
    work = work._replace(variants=variants)
    methods = {"plain loop": lambda: plain_loop(work), "sweep": swept()}
    if cfg.levers:
        methods["sweep with the plain engine"] = swept(engine="plain")
        levers = [f.name for f in fields(Levers)]
        methods |= {f"sweep without {name}": swept(name) for name in levers}
        methods["sweep without any"] = swept(*levers)
    peak, plain_seconds, plain = matmul_peak(work.model), 0.0, pl.Series()
    title = f"{work.name}: {len(variants)} variants, {len(work.items)} items"
    with progress(title, len(methods)) as step:
        for method, run in methods.items():
            seconds, margins = timed(run, cfg.device)
            if method == "plain loop":
                plain_seconds, plain = seconds, margins
            yield {
                "list": work.name, "method": method, "seconds": seconds,
                "ratio": plain_seconds / seconds,
                "difference": float((margins - plain).abs().max()),  # type: ignore[arg-type]
                "of_peak": count_operations(run) / seconds / peak if method == "sweep" else None,
            }  # fmt: skip
            step(method)


@torch.no_grad()
def plain_loop(work: Work) -> pl.Series:
    """The margins at alpha = 1: every variant at alpha = 0 and 1, items in batches of 8."""
    margins = []
    for variant in work.variants:
        for alpha in (0.0, 1.0):
            with applied(work.model, variant.intervention, alpha):
                batches = (work.items[i : i + 8] for i in range(0, len(work.items), 8))
                rows = [m for batch in batches for m in plain_batch(work, batch)]
        margins += rows
    return pl.Series(margins)


def plain_batch(work: Work, items: list[Item]) -> list[float]:
    """Margins of a few items, right-padded, from the logits of every position."""
    model, sequences = work.model, [render(work.tok, i.turns, i.prefill) for i in items]
    width = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=model.device)
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask.to(model.device), use_cache=False).logits
    last = logits[torch.arange(len(items)), [len(s) - 1 for s in sequences]]
    return choice_scores(last.float().cpu(), choice_ids(work.tok))[0].tolist()


def memory(cfg: Config) -> None:
    """The peak of a process that reads the model from disk and sweeps T7's list once."""
    with TemporaryDirectory(dir=cfg.out) as folder:
        model = random_qwen3(cfg.shape, cfg.dtype)
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

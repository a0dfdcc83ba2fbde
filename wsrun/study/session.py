"""What the experiments share: options, the model and its items, pairs, one sweep, one record."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import tensors_sha256
from wsrun.adapters.extract import PairDelta, pair_deltas
from wsrun.data.items import Item, load_items
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, progress
from wsrun.report.tables import items_sha256, plain, provenance, write_table
from wsrun.score.sweep import Variant, sweep
from wsrun.study.options import Common
from wsrun.study.shards import HOW, asked, finished, read_shard, run_shards

Pairs = dict[tuple[str, int], PairDelta]  # (family, seed) -> deltas


class Loaded(NamedTuple):
    """The model, and the evaluation items it is asked."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    items: list[Item]


def share(cfg: Common) -> None:
    """With --executor ray, score every shard of this command; `run` then finds the results."""
    if cfg.executor == "ray":
        run_shards(cfg.parts, cfg.device, cfg.workers)


def load(cfg: Common, split: str = "test") -> Loaded:
    """The items of a split and the model of the options."""
    items = load_items(cfg.data, split, cfg.dilemmas)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    return Loaded(model, tok, items)


def read_pairs(model: PreTrainedModel, cfg: Common) -> Pairs:
    """The proved deltas of every family and seed; raises ValueError for a folder misnamed."""
    pairs: Pairs = {}
    with progress("reading adapters", len(cfg.families) * len(cfg.seeds)) as step:
        for family in cfg.families:
            for seed in cfg.seeds:
                folder = cfg.adapters / f"{family}-s{seed}"
                pair = pairs[family, seed] = pair_deltas(model, folder)
                if pair.family != family:
                    raise ValueError(f"{str(folder)!r} holds {pair.family} adapters; rename it")
                step(folder.name)
    return pairs


def run(
    cfg: Common, experiment: str, at: Loaded, variants: Iterable[Variant], runs: int
) -> pl.DataFrame | None:
    """Rows of all variants under a progress bar, None of a shard, which writes no table.

    `runs` is how many (variant, alpha) there are.
    """
    seeds = "seed" if len(cfg.seeds) == 1 else "seeds"
    console.print(
        f"{cfg.model}: {len(at.items)} items, {len(cfg.families)} families, "
        f"{len(cfg.seeds)} {seeds}, {runs} runs"
    )
    context = {"experiment": experiment, "model": cfg.model, "behaviour": cfg.behaviour}
    index, count = read_shard(cfg.shard) if cfg.shard else (0, 1)
    before = finished(cfg.parts)
    with progress("scoring", 1 + -(-runs // count)) as step:
        own = islice(variants, index, None, count)
        rows = sweep(*at, own, cfg.alphas, context=context, results=cfg.parts, progress=step)
    if cfg.shard:
        _say_finished(cfg, len(rows) // len(at.items) - 1, runs)
        return None
    if cfg.executor == "ray" and (late := finished(cfg.parts) - before):
        console.print(f"{late} results scored here: the workers differ in GPU, threads or versions")
    return rows


def _say_finished(cfg: Common, mine: int, runs: int) -> None:
    console.print(
        f"shard {cfg.shard}: {mine} of {runs} runs finished and kept in {cfg.parts}; when all "
        "shards are, run the command without --shard to write the table"
    )


def record(cfg: Common, at: Loaded, pairs: Pairs, **more: Any) -> dict[str, Any]:
    """The provenance of an analysis: options, base, items, and every dW.

    How it was run is left out, so that the tables of shards are those of one process, bit for bit.
    """
    options = {name: value for name, value in asdict(cfg).items() if name not in HOW}
    return provenance(
        plain(options),
        argv=asked(sys.argv),
        base=tensors_sha256(dict(at.model.named_parameters())),
        items=items_sha256(at.items),
        deltas={f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()},
        **more,
    )


def write(
    cfg: Common, experiment: str, rows: pl.DataFrame, table: pl.DataFrame, made: Mapping
) -> Path:
    """Rows and summary as parquet under `out`; returns the path of the summary."""
    rows_path = write_table(rows, cfg.out / f"{experiment}.rows.parquet", dict(made))
    path = write_table(table, cfg.out / f"{experiment}.parquet", dict(made))
    console.print(f"summary table {path}, item rows {rows_path}")
    return path


def draw(figure: Callable[..., str], *args: Any, **more: Any) -> None:
    """Draw a figure beside its table, and say where it is, or why there is none."""
    console.print(figure(*args, **more), markup=False, highlight=False)

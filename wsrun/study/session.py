"""The frame of an experiment: the model and its items, pairs of adapters, one sweep, its tables."""

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import tensors_sha256
from wsrun.adapters.base import BaseWarning
from wsrun.adapters.extract import PairDelta, pair_deltas
from wsrun.adapters.folders import read_folder
from wsrun.data.items import Item, items_sha256
from wsrun.data.source import load_items, read_items
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, progress
from wsrun.report.tables import provenance, write_table
from wsrun.report.verdicts import RuleResult, verdict_table
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.study.options import Common
from wsrun.study.shards import HOW, asked, finished, read_shard, run_on_ray

Pairs = dict[tuple[str, int], PairDelta]  # (family, seed) -> deltas


class Session(NamedTuple):
    """The model, and the evaluation items that it is asked."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    items: list[Item]


def run_shards(cfg: Common) -> None:
    """With --executor ray, score every shard of this command; the sweep then finds the results."""
    if cfg.executor == "ray":
        run_on_ray(cfg.cache_dir, cfg.device, cfg.workers)


def load_session(cfg: Common, split: str = "test") -> Session:
    """The items of a split and the model of the options."""
    items, left_out = read_items(cfg.data, split, cfg.dilemmas, cfg.limit)
    for sentence in left_out:
        console.print(sentence, highlight=False)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    return Session(model, tok, items)


def load_splits(cfg: Common) -> tuple[Session, Session]:
    """(validation, test): one model, the items of both splits, checked to be disjoint."""
    test = load_session(cfg)
    validation = load_items(cfg.data, "validation", cfg.dilemmas, cfg.limit)
    check_disjoint(validation, test.items)
    return test._replace(items=validation), test


def check_disjoint(validation: Sequence[Item], test: Sequence[Item]) -> None:
    """Raises ValueError where a claim or dilemma stands in both splits."""
    known = {(i.dataset, i.cluster) for i in validation}
    if both := sorted({(i.dataset, i.cluster) for i in test} & known):
        raise ValueError(
            f"benchmark: {len(both)} clusters are in the validation and in the test split, such as "
            f"{both[0]}; what is selected on an item must not be reported on it"
        )


def read_pairs(model: PreTrainedModel, cfg: Common) -> Pairs:
    """The proved deltas of every family and seed; raises ValueError for a folder misnamed.

    Says what is not known of an adapter's base.
    """
    pairs: Pairs = {}
    with (
        warnings.catch_warnings(),
        progress("reading adapters", len(cfg.families) * len(cfg.seeds)) as step,
    ):
        warnings.simplefilter("ignore", BaseWarning)  # said below, once, and kept in the record
        for family in cfg.families:
            for seed in cfg.seeds:
                folder = cfg.adapters / f"{family}-s{seed}"
                pair = pairs[family, seed] = read_folder(folder, partial(pair_deltas, model))
                if pair.family != family:
                    raise ValueError(f"{str(folder)!r} holds {pair.family} adapters; rename it")
                step(folder.name)
    for name, notes in notes_of(pairs).items():
        console.print(f"note on {name}: {'; '.join(notes)}")
    return pairs


def notes_of(pairs: Pairs) -> dict[str, list[str]]:
    """Of each pair with something unknown about its base, what that is."""
    return {f"{family}-s{seed}": [*p.notes] for (family, seed), p in pairs.items() if p.notes}


def run_sweep(
    cfg: Common, experiment: str, session: Session, variants: Iterable[Variant]
) -> pl.DataFrame | None:
    """Rows of all variants under a progress bar, None of a shard, which writes no table."""
    variants = list(variants)
    runs = count_runs(cfg, variants)
    seeds = "seed" if len(cfg.seeds) == 1 else "seeds"
    console.print(
        f"{cfg.model}: {len(session.items)} items, {len(cfg.families)} families, "
        f"{len(cfg.seeds)} {seeds}, {runs} runs"
    )
    index, count = read_shard(cfg.shard) if cfg.shard else (0, 1)
    shard_variants, before = variants[index::count], finished(cfg.cache_dir)
    with progress("scoring", 1 + count_runs(cfg, shard_variants)) as step:
        rows = sweep(
            *session,
            shard_variants,
            cfg.alphas,
            experiment=experiment,
            model_name=cfg.model,
            behaviour=cfg.behaviour,
            cache_dir=cfg.cache_dir,
            progress=step,
            warn=console.print,
        )
    if cfg.shard:
        console.print(
            f"shard {cfg.shard}: {count_runs(cfg, shard_variants)} of {runs} runs finished and "
            f"kept in {cfg.cache_dir}; when all shards are, run the command without --shard to "
            "write the table"
        )
        return None
    if cfg.executor == "ray" and (late := finished(cfg.cache_dir) - before):
        console.print(f"{late} results scored here: the workers differ in GPU, threads or versions")
    return rows


def count_runs(cfg: Common, variants: Sequence[Variant]) -> int:
    """How many (variant, alpha) a sweep scores beside the base."""
    return sum(sum(a != 0 for a in v.alphas or cfg.alphas) for v in variants)


def run_record(cfg: Common, session: Session, pairs: Pairs, **more: Any) -> dict[str, Any]:
    """The provenance of a run: options, base, items, and every dW.

    How it was run is left out, so that the tables of shards are those of one process, bit for bit.
    """
    options = {name: value for name, value in asdict(cfg).items() if name not in HOW}
    return provenance(
        options,
        argv=asked(sys.argv),
        base=tensors_sha256(dict(session.model.named_parameters())),
        items=items_sha256(session.items),
        deltas={f"{f}-s{s}": tensors_sha256(p.dW) for (f, s), p in pairs.items()},
        **({"notes": notes} if (notes := notes_of(pairs)) else {}),
        **more,
    )


def write_tables(
    cfg: Common,
    experiment: str,
    rows: pl.DataFrame,
    summary: pl.DataFrame,
    record: dict[str, Any],
    verdicts: Iterable[RuleResult] | None = None,
) -> Path:
    """Rows, summary and verdicts as parquet under `out`; returns the path of the summary."""
    files = {f"{experiment}.rows": rows, experiment: summary}
    if verdicts is not None:
        files[f"{experiment}.verdicts"] = verdict_table(verdicts)
    paths = [write_table(t, cfg.out / f"{name}.parquet", record) for name, t in files.items()]
    what = "item rows", "summary table", "verdicts"
    written = (f"{w} {path}" for w, path in zip(what, paths, strict=False))
    console.print(", ".join(written), highlight=False)
    return paths[1]


def save_figure(figure: Callable[..., str], *args: Any, **more: Any) -> None:
    """Draw a figure beside its table, and say where it is, or why there is none."""
    console.print(figure(*args, **more), highlight=False)

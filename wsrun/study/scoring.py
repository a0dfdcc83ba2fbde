"""One sweep of an experiment, whole or one shard of it."""

from collections.abc import Iterable, Sequence

import polars as pl

from wsrun.report.console import console, progress
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.study.options import Common
from wsrun.study.session import Session
from wsrun.study.shards import finished, read_shard


def run_sweep(
    cfg: Common, experiment: str, session: Session, variants: Iterable[Variant]
) -> pl.DataFrame | None:
    """Rows of all variants under a progress bar, None of a shard, which writes no table."""
    variants = list(variants)
    runs = count_runs(cfg, variants)
    seeds = "seed" if len(cfg.seeds) == 1 else "seeds"
    of = f"{len(cfg.families)} families, {len(cfg.seeds)} {seeds}, " if cfg.families else ""
    console.print(f"{cfg.model}: {len(session.items)} items, {of}{runs} runs")
    index, count = read_shard(cfg.shard) if cfg.shard else (0, 1)
    shard_variants, before = variants[index::count], finished(cfg.cache_dir)
    with progress("scoring", 1 + count_runs(cfg, shard_variants)) as step:
        rows = sweep(
            session.model,
            session.tok,
            session.items,
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

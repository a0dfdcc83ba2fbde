"""Do the rules of T6, T7 and T8 find what was planted, and stay silent where nothing was?

Question:   on adapters whose truth is fixed by construction and whose effect is real, does each
            rule support the claim that is true, naming the right slice, and no claim that is false?
Prediction: every rule detects its own plant in most seeds, and none is supported on random deltas.
Rule:       a rule passes its control where it agrees with the truth in every seed; the detection
            rate and the false-positive rate are reported with Wilson's 95 % interval.

    python experiments/t13_planted.py
    python experiments/t13_planted.py --model smollm2 --data truthfulqa:TruthfulQA.csv --seeds 0 \
        --limit 60 --plants one-layer own-band --lenses layers own_bands

Pairs come from where t0_train has them; rank, rate and steps are those of the model's recipe, and
the last step is kept. The rules read the very cuts that T6, T7 and T8 make (wsrun/lenses). What is
planted: wsrun/lenses/plants.py. Random decoys of equal norm lie beside every plant; whether they
alone have an effect is measured and printed. A supported claim that names another slice than the
planted one is no detection. Two runs side by side: python -m wsrun.study.planted_report
A.confusion.parquet B.confusion.parquet.
"""

from wsrun.script import guarded

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import polars as pl

from wscore import tensors_sha256
from wsrun.data.items import items_sha256
from wsrun.lenses.plants import PLANTS, instance
from wsrun.lenses.weights import base_of, subspace_sizes
from wsrun.models.load import limit_threads, load_model
from wsrun.report import tile_figures
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.options import check_limits
from wsrun.study.planted import (
    LENSES,
    check_lenses,
    confusion,
    judge,
    outputs,
    places,
    sweep_readings,
)
from wsrun.study.planted_report import report
from wsrun.study.planted_start import PlantingOptions, planted_adapters, read_claims
from wsrun.study.session import Session, marked
from wsrun.study.start import checked_reads
from wsrun.study.training import check_recipe, recipe_of, with_recipe

EXPERIMENT = "t13_planted"


@dataclass(frozen=True)
class Config(PlantingOptions):
    """Options of t13_planted."""

    lenses: tuple[str, ...] = LENSES
    """how planted adapters are cut, and so which rules are tried"""
    K: tuple[int, ...] | None = None
    """sizes of T6's subspaces; the recipe's rank and twice that if not given"""
    nulls: int = 20
    """null deltas per whole"""
    resamples: int = 2000
    """bootstrap resamples"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables and the figure"""
    cache_dir: Path = Path("artifacts/cache")
    """folder of finished results: a stopped run, started again, goes on where it was"""


def main(cfg: Config) -> None:
    """Train what is missing, plant, score every part once, apply every rule, count."""
    check(cfg)
    cfg = with_recipe(cfg)
    recipe = recipe_of(cfg)
    K = cfg.K or subspace_sizes(recipe)
    cfg = replace(cfg, steps=recipe.steps, K=K)
    (items, to_check, _), sources = read_claims(cfg), read_sources(cfg)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    base = base_of(model, cfg.members, recipe)
    instances = [instance(plant, seed, base) for plant in cfg.plants for seed in cfg.seeds]
    session = Session(model, tok, to_check)
    reads = checked_reads(session, cfg.data, cfg.pos, cfg.neg, cfg.resamples, cfg.cache_dir)
    pairs = answers(cfg, model, tok, sources, (0,))[0].pairs
    planted = planted_adapters(cfg, model, tok, pairs, base, instances)
    readings = outputs(planted, K, cfg.lenses), places(planted, base, cfg.lenses)

    def scored(name: str, variants: list[Variant]) -> pl.DataFrame:
        console.print(f"{cfg.model}: {len(items)} items, {len(variants)} runs of {name}")
        with progress(f"scoring {name}", 1 + len(variants)) as step:
            return sweep(
                model, tok, items, variants, [1.0], experiment=EXPERIMENT, model_name=cfg.model,
                behaviour=cfg.pos, cache_dir=cfg.cache_dir, progress=step, warn=console.print,
            )  # fmt: skip

    rows = sweep_readings(readings, cfg.nulls, scored)
    summaries = [r.summary(rows, cfg.resamples) for r in readings if r.cuts]
    table = marked(pl.concat(summaries, how="diagonal_relaxed"), reads)
    verdicts = judge(readings, planted, table)
    counts = confusion(verdicts)
    dW = {at.member(i): m.whole for at, ms in planted.items() for i, m in enumerate(ms)}
    made = provenance(
        asdict(cfg),
        answers=items_sha256(pairs),
        base=tensors_sha256(dict(model.named_parameters())),
        items=items_sha256(items),
        deltas={name: tensors_sha256(d) for name, d in dW.items()},
        reads=reads,
    )
    tables = {".rows": rows, "": table, ".verdicts": verdicts, ".confusion": counts}
    paths = [write_table(t, cfg.out / f"{EXPERIMENT}{n}.parquet", made) for n, t in tables.items()]
    report(instances, table, verdicts, counts)
    question = "Do the rules find what was planted, and only that?"
    note = "Blank: the rule was not run there, as it compares several adapters. "
    drawn = tile_figures.confusion(counts, paths[-1], question, note=note)
    console.print(drawn, highlight=False)
    console.print(f"adapters {cfg.adapters}, tables {cfg.out / EXPERIMENT}*.parquet")


def check(cfg: Config) -> None:
    """Refuse options that cannot work before anything is loaded."""
    for flag, got, known in (
        ("--plants", cfg.plants, tuple(PLANTS)),
        ("--lenses", cfg.lenses, LENSES),
        ("--seeds", cfg.seeds, range(10**6)),
        ("--K", (1,) if cfg.K is None else cfg.K, range(1, 10**6)),
        ("--members", (cfg.members,), range(2, 20)),
        ("--nulls", (cfg.nulls,), range(1, 999)),  # 999 is the seed of controls
        ("--resamples", (cfg.resamples,), range(1, 10**9)),
    ):
        if not got or len(set(got)) < len(got) or any(x not in known for x in got):
            given = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(known)
            got_text = " ".join(map(str, got)) or "nothing"
            raise ValueError(f"t13: {flag} must be of {given}, each value once; got {got_text}")
    check_lenses(cfg.lenses, cfg.plants)
    check_limits(cfg, "t13")
    check_recipe(cfg, "t13")
    check_answering(cfg, "t13")
    for folder in (cfg.adapters, cfg.out, cfg.cache_dir):
        check_writable(folder)


if __name__ == "__main__":
    guarded(main, Config)

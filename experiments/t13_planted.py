"""Do the rules of T6, T7 and T8 find what was planted, and stay silent where nothing was?

Question:   on adapters whose truth is fixed by construction and whose effect is real, does each
            rule support the claim that is true, naming the right slice, and no claim that is false?
Prediction: every rule detects its own plant in most seeds, and none is supported on random deltas.
Rule:       a rule passes its control where it agrees with the truth in every seed; the detection
            rate and the false-positive rate are reported with Wilson's 95 % interval.

    python experiments/t13_planted.py
    python experiments/t13_planted.py --model smollm2 --data truthfulqa:TruthfulQA.csv --seeds 0 \
        --limit 60

Pairs come from where t0_train has them, and rank, rate and steps from the model's recipe. The rules
read the very cuts that T6, T7 and T8 make (wsrun/lenses). Plants (wsrun/lenses/plants.py
says how each is made): shared-core and divergent-basins, several adapters that write one subspace,
or one each; one-layer, one-module, base-band and own-band, one adapter in one slice; nothing,
random deltas. Random decoys of equal norm lie beside every plant; whether they alone have an effect
is measured and printed. A supported claim that names another slice than the planted one is no
detection.
"""

from wsrun.script import guarded

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import polars as pl

from wscore import tensors_sha256
from wsrun.adapters.train import train_adapter
from wsrun.data.answering import make_pairs
from wsrun.data.items import items_sha256
from wsrun.data.pairs import load_questions
from wsrun.data.personas import load_personas
from wsrun.data.source import beside, load_items
from wsrun.lenses.planting import Options, read, train_member, untrained
from wsrun.lenses.plants import PLANTS, base_of, instance
from wsrun.models.load import limit_threads, load_model
from wsrun.report import tile_figures
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.study.planted import confusion, judge, outputs, places, sweep_readings
from wsrun.study.planted_report import report
from wsrun.study.session import Session, marked
from wsrun.study.start import checked_reads

EXPERIMENT = "t13_planted"


@dataclass(frozen=True)
class Config(Options):
    """Options of t13_planted."""

    K: tuple[int, ...] = (8, 16)
    """sizes of T6's subspaces"""
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
    items = [i for i in load_items(cfg.data, "test") if i.dataset == "claims"]
    personas = load_personas(beside(cfg.data, "personas.json"), cfg.pos, cfg.neg)
    questions = load_questions(beside(cfg.data, "questions.jsonl"), "train")
    model, tok = load_model(cfg.model)
    limit_threads(model)
    session = Session(model, tok, items)
    reads = checked_reads(session, cfg.data, cfg.pos, cfg.neg, cfg.resamples, cfg.cache_dir)
    base = base_of(model, cfg.members)
    instances = [instance(plant, seed, base) for plant in cfg.plants for seed in cfg.seeds]
    pairs = make_pairs(model, tok, questions, *personas, seed=0)
    missing, count = untrained(cfg, base, instances, items_sha256(pairs))
    console.print(f"{len(missing)} of {count} pairs of adapters to train")
    learn = partial(train_adapter, model, tok, pairs, base_name=cfg.model)
    with progress("training adapters", 2 * len(missing) * cfg.steps) as step:
        for at, settings in missing:
            train_member(cfg, learn, at, base, settings, step)

    planted = {at: read(cfg, model, at, base) for at in instances}
    readings = outputs(planted, cfg.K), places(planted, base)
    tag = {"experiment": EXPERIMENT, "model_name": cfg.model, "behaviour": cfg.pos}

    def scored(name: str, variants: list[Variant]) -> pl.DataFrame:
        console.print(f"{cfg.model}: {len(items)} claims, {len(variants)} runs of {name}")
        with progress(f"scoring {name}", 1 + len(variants)) as step:
            sweep_options = {
                "cache_dir": cfg.cache_dir,
                "progress": step,
                "warn": console.print,
                **tag,
            }
            return sweep(model, tok, items, variants, [1.0], **sweep_options)

    rows = sweep_readings(readings, cfg.nulls, scored)
    summaries = [r.summary(rows, cfg.resamples) for r in readings if r.cuts]
    table = marked(pl.concat(summaries, how="diagonal_relaxed"), reads)
    verdicts = judge(readings, planted, table)
    counts = confusion(verdicts)
    dW = {at.member(i): m.whole for at, ms in planted.items() for i, m in enumerate(ms)}
    made = provenance(
        asdict(cfg),
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
        ("--seeds", cfg.seeds, range(10**6)),
        ("--K", cfg.K, range(1, 10**6)),
        ("--members", (cfg.members,), range(2, 20)),
        ("--steps", (cfg.steps,), range(1, 10**6)),
        ("--nulls", (cfg.nulls,), range(1, 999)),  # 999 is the seed of controls
        ("--resamples", (cfg.resamples,), range(1, 10**9)),
    ):
        if not got or len(set(got)) < len(got) or any(x not in known for x in got):
            given = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(known)
            got_text = " ".join(map(str, got)) or "nothing"
            raise ValueError(f"t13: {flag} must be of {given}, each value once; got {got_text}")
    for folder in (cfg.adapters, cfg.out, cfg.cache_dir):
        check_writable(folder)


if __name__ == "__main__":
    guarded(main, Config)

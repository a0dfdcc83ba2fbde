"""Training of pairs: from options to adapters, dW, tables, and each dW tried on held-out items."""

from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from wscore import effect_table, geometry, save_delta, tensors_sha256
from wscore.stats.schema import KEYS
from wsrun.adapters.extract import PairDelta, pair_deltas
from wsrun.data.items import items_sha256
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, effects, grid, progress
from wsrun.report.tables import check_writable, provenance, write_table
from wsrun.report.verdicts import verdict_table
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.answers import answers, check_answering, read_sources
from wsrun.study.next_command import say_next
from wsrun.study.options import check_limits
from wsrun.study.session import Session, marked
from wsrun.study.start import checked_reads, read_asked
from wsrun.study.training import (
    HEADS,
    Training,
    check_training,
    selects,
    share_right,
    steers,
    train,
    trained_line,
    with_recipe,
    with_right,
)


@dataclass(frozen=True)
class TrainOptions(Training):
    """Options of training pairs and of trying each dW once."""

    alphas: tuple[float, ...] = (-1.0, 1.0)
    """doses at which dW is tried on held-out items"""
    limit: int | None = None
    """how many clusters of held-out items, dilemmas aside, drawn by a hash; None for all"""
    check_limit: int | None = None
    """how many of these clusters the instrument check reads, whatever --limit says; None for all"""
    deltas: Path = Path("artifacts/deltas")
    """folder that receives <family>-s<seed>.safetensors, the dW"""
    out: Path = Path("artifacts/tables")
    """folder that receives the tables"""
    cache_dir: Path = Path("artifacts/cache")
    """folder of finished results: a stopped run, started again, goes on where it was"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""


def run_training(cfg: TrainOptions) -> None:
    """Generate pairs, train, read back with proof, write adapters and dW, try each dW once."""
    check_training(cfg, "t0_train")
    check_answering(cfg, "t0_train")
    cfg = with_recipe(cfg)
    if not cfg.alphas or not all(isfinite(a) and a for a in cfg.alphas):
        raise ValueError("t0_train: --alphas must be finite and not 0, which is the base")
    check_limits(cfg, "t0_train")
    for folder in (cfg.adapters, cfg.deltas, cfg.out, cfg.cache_dir):
        check_writable(folder)
    (items, to_check, _), sources = read_asked(cfg, cfg.data), read_sources(cfg)
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    session = Session(model, tok, to_check)
    reads = checked_reads(session, cfg.data, cfg.pos, cfg.neg, cache_dir=cfg.cache_dir)
    base = tensors_sha256(dict(model.named_parameters()))
    cells = [(seed, family) for seed in cfg.seeds for family in cfg.families]
    answered = answers(cfg, model, tok, sources, cfg.seeds, selects(cfg))
    pairs = {seed: a.pairs for seed, a in answered.items()}
    trained: dict[tuple[int, str], PairDelta] = {}

    def read_back(cell: tuple[int, str], folder: Path) -> None:
        trained[cell] = pair_deltas(model, folder)

    losses = train(cfg, model, tok, answered, cells, read_back)
    for (seed, family), pair in trained.items():
        path = cfg.deltas / f"{family}-s{seed}.safetensors"
        save_delta(pair.dW, path, {"family": family, "seed": str(seed), "base": base})
    variants = [
        Variant("full", WeightDelta(p.dW), family=f, seed=s) for (s, f), p in trained.items()
    ]
    with progress("scoring", 1 + len(variants) * len(cfg.alphas)) as step:
        rows = sweep(
            model, tok, items, variants, cfg.alphas, experiment="t0_train", model_name=cfg.model,
            behaviour=cfg.pos, cache_dir=cfg.cache_dir, progress=step, warn=console.print,
        )  # fmt: skip
    table = marked(with_right(effect_table(rows, KEYS), rows), reads)
    record = provenance(
        asdict(cfg),
        base=base,
        items=items_sha256(items),
        deltas={f"{f}-s{s}": tensors_sha256(p.dW) for (s, f), p in trained.items()},
        pairs={str(s): len(p) for s, p in pairs.items()},
        answers={str(s): items_sha256(p) for s, p in pairs.items()},
        reads=reads,
    )
    results = steers(table, max(cfg.alphas))
    write_table(rows, cfg.out / "t0_train.rows.parquet", record)
    write_table(verdict_table(results), cfg.out / "t0_train.verdicts.parquet", record)
    path = write_table(table, cfg.out / "t0_train.parquet", record)
    shapes = {key: geometry(p.pos, p.neg) for key, p in trained.items()}
    lines = [trained_line(cfg, key, losses[key], g) for key, g in shapes.items()]
    console.print(grid("adapters", HEADS, lines))
    for (dataset,), part in table.group_by("dataset", maintain_order=True):
        right = share_right(rows.filter(variant="base", dataset=dataset))
        title = f"{dataset}: effect of dW, and items answered right ({right:.0%} by the base)"
        console.print(effects(part, title, ("seed", "family", "alpha")))
        steering = {r.family for r in results if r.dataset == dataset and r.outcome == "supported"}
        if max(cfg.alphas) > 0:  # the rule is about a dose towards the behaviour
            alpha = f"alpha = {max(cfg.alphas):g} (interval above 0)"
            console.print(
                f"{dataset}: {len(steering)} of {len(cfg.families)} families steer at {alpha}"
            )
    console.print(f"adapters {cfg.adapters}, deltas {cfg.deltas}, table {path}")
    say_next(cfg, "t6_shared_svd", "what the families share", always=("adapters",))

"""What does a LoRA export keep of each adapter family's change?

Question:   at which rank does a LoRA hold dW = pos - neg, and what is lost below it?
Prediction: twice the trained rank holds lora, pissa and delora; all keep more effect than norm.
Rule:       none; family, rank, relative error |dW - B A| / |dW|, effect, and the share kept.

    python experiments/export_ranks.py --families lora pissa delora dora oft boft ia3
"""

from wsrun.script import guarded

from dataclasses import dataclass

import polars as pl

from wscore import Factored, effect_table
from wsrun.export.lowrank import low_rank
from wsrun.report.console import console, grid
from wsrun.report.wording import with_interval
from wsrun.score.variants import Variant
from wsrun.steer.interventions import WeightDelta
from wsrun.study.options import Common, check_common, check_once
from wsrun.study.scoring import run_sweep
from wsrun.study.session import read_pairs, run_record, write_tables
from wsrun.study.start import load_splits

EXPERIMENT, WHOLE = "export_ranks", "whole"
BY = ("dataset", "family", "variant", "alpha")
HEADS = ("data set", "family", "rank", "alpha", "error", "effect", "kept")


@dataclass(frozen=True)
class Config(Common):
    """Options of export_ranks."""

    ranks: tuple[int, ...] = (4, 16, 64)
    """ranks of the LoRA"""


def main(cfg: Config) -> None:
    """Cut every pair's dW at every rank, and measure on test items."""
    check_common(cfg, EXPERIMENT)
    check_once(EXPERIMENT, {"ranks": cfg.ranks})
    if len(cfg.seeds) != 1 or cfg.shard or cfg.executor != "local" or min(cfg.ranks) < 1:
        raise ValueError(f"{EXPERIMENT}: give one seed, one process, and --ranks of 1 or more")
    _, test = load_splits(cfg)
    pairs, variants, errors = read_pairs(test.model, cfg), [], []
    for (family, _), pair in pairs.items():
        variants.append(Variant(WHOLE, WeightDelta(pair.dW), family=family))
        for rank in cfg.ranks:
            cut, name = low_rank(EXPERIMENT, pair.dW, rank, None), f"rank {rank}"
            variants.append(Variant(name, WeightDelta(Factored(cut.factors)), family=family))
            errors.append((family, name, cut.error))
    rows = run_sweep(cfg, EXPERIMENT, test, variants)
    assert rows is not None  # no shard
    table = effect_table(rows, BY, full=WHOLE, resamples=cfg.resamples)
    lost = pl.DataFrame(errors, schema=["family", "variant", "relative_error"], orient="row")
    table = table.join(lost, on=["family", "variant"], how="left", maintain_order="left")
    write_tables(cfg, EXPERIMENT, rows, table, run_record(cfg, test, pairs))
    shown = [(*(r[k] for k in (*BY, "relative_error")), with_interval(r, "effect", "lo", "hi"),
              r["retained"]) for r in table.to_dicts() if r["alpha"]]  # fmt: skip
    console.print(grid("what a LoRA of a rank keeps of dW", HEADS, shown))


if __name__ == "__main__":
    guarded(main, Config)

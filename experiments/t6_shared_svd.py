"""Do adapter families share one output subspace that carries the behaviour?

Question:   is there, per layer, a K-dimensional subspace of the residual stream, found from OTHER
            families' dW, whose part of a family's dW keeps the steering effect, and without which
            the effect is gone?
Prediction: keep(shared, K) retains most of the effect at K well below d_model, more than a random
            subspace of that size.
Rule:       supported if at one K keep(shared) retains >= 0.7 and drop(shared) <= 0.3 in every
            family of lora, dora, pissa, delora, oft; refuted if for some family, at the largest K,
            keep retains < 0.3 while drop retains >= 0.7; both >= 0.7: not identifiable under this
            basis; each comparison by its 95 % interval; else undetermined.

    python experiments/t6_shared_svd.py --K 32

Only tensors that write to the residual stream enter (o_proj, down_proj); `full` is the whole dW.
The basis used for a family leaves that family out (variants *_shared; *_shared_incl puts it in),
takes the families that change all of its tensors, and deltas enter it with unit norm. Parts are
reported beside the family's own top-K directions, random subspaces (raw and norm-matched to the
shared part), and 20 null deltas with the singular values of the residual part in random directions;
`null %` ranks an effect among theirs. K counts only where a random subspace does not keep as much.
"""

from wsrun.script import guarded

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from wscore import writes_residual
from wsrun.report.retained_figures import retained_by_family
from wsrun.study.ablation import Options, Study, run_ablation
from wsrun.study.options import check_once

NAMES = {
    "keep_shared": "kept: shared subspace",
    "drop_shared": "removed: shared subspace",
    "keep_own": "kept: own top directions",
    "drop_own": "removed: own top directions",
    "keep_random_matched": "kept: random subspace, same norm",
}


@dataclass(frozen=True)
class Config(Options):
    """Options of T6."""

    K: tuple[int, ...] = (8, 32, 64)
    """sizes of the subspace, one or several"""
    lenses: tuple[str, ...] = ("shared", "shared_incl", "own", "random")
    """which subspaces"""


def main(cfg: Config) -> None:
    """Cut the residual-writing part of every dW by subspaces."""
    check_once("t6", {"families": cfg.families}, 2)  # one is left out
    check_once("t6", {"K": cfg.K})
    run_ablation(
        cfg,
        Study(
            "t6_shared_svd",
            cfg.lenses,
            lambda name: None if name in ("shared_incl", "random_matched") else name,
            "keep_shared",
            pictures,
            ("t7_sites", "the same question of layers and modules"),
            where=writes_residual,
            whole="residual_full",
            K=cfg.K,
            columns=columns,
            notes=overlaps,
        ),
    )


def columns(table: pl.DataFrame) -> pl.DataFrame:
    """Null draws have the residual part's spectrum: full has more tensors, zero none of it."""
    other = pl.col("variant").is_in(["full", "zero"])
    return table.with_columns(pl.when(~other).then("null_percentile"))


def overlaps(table: pl.DataFrame) -> Iterator[str]:
    """Whether the own directions of families meet, per K."""
    mean_overlaps = table.filter(variant="keep_own").group_by("k").agg(pl.col("^overlap.*$").mean())
    for r in mean_overlaps.sort("k").iter_rows(named=True):
        seeds = r["overlap_seeds"]
        yield (
            f"own top-{r['k']} directions of two families overlap {r['overlap']:.2f}"
            + ("" if seeds is None else f", two seeds of one family {seeds:.2f}")
            + f" (random subspaces of the same sizes: {r['overlap_random']:.2f})"
        )


def pictures(cfg: Config, table: pl.DataFrame, path: Path, _: list[str]) -> Iterator[str]:
    question = "Does a subspace found from other adapter families carry a family's effect?"
    yield retained_by_family(
        table, path, question, NAMES, "residual_full", cfg.limits, k=max(cfg.K)
    )


if __name__ == "__main__":
    guarded(main, Config)

"""Which layers and modules of dW carry the behaviour?

Question:   is there one layer, one module, or one side of the residual stream whose part of dW
            keeps the steering effect, and without which the effect is gone?
Prediction: no single layer or module does; the MLP carries more than attention.
Rule:       per partition (layers, thirds of the trained band, blocks, sides, modules): supported if
            one slice retains >= 0.7 and its removal leaves <= 0.3 in every family; refuted if
            several disjoint slices each retain >= 0.7 (distributed), or every slice clearly fails
            in some family; each comparison by its 95 % interval; else undetermined.

    python experiments/t7_sites.py
    python experiments/t7_sites.py --seeds 0 1 2 --no-cells

Every slice is kept alone (keep_*), removed (drop_*), and replaced by random directions of its own
rank and norm (control_*); a slice whose control keeps as much supports nothing. keep + drop is
checked against dW in the run. `cell_<layer>_<module>` is one module of one layer. Slices a family
does not have (IA3 adapts k, v and down only) get a line that says so. With 20 null deltas a family,
dW's own singular values in random directions, `null %` ranks an effect among theirs.
"""

from wsrun.script import guarded

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from wsrun.report.retained_figures import retained_by_slice
from wsrun.report.tile_figures import retained_by_layer_and_module
from wsrun.study.ablation import Options, Study, run_ablation

LENSES = ("layers", "thirds", "blocks", "sides", "modules", "groups")
WORDS = {
    "early": "early third of the layers",
    "middle": "middle third",
    "late": "late third",
    "attention": "attention (q, k, v, o)",
    "mlp": "MLP (gate, up, down)",
    "writes": "writing side (o, down)",
    "reads": "reading side (all others)",
    "qkv": "q, k and v",
    "up_gate": "up and gate",
}


@dataclass(frozen=True)
class Config(Options):
    """Options of T7."""

    cells: bool = True
    """score every module of every layer too, for the heat map"""


def main(cfg: Config) -> None:
    """Cut every dW by layers and modules."""
    run_ablation(
        cfg,
        Study(
            "t7_sites",
            LENSES + (("cells",) if cfg.cells else ()),
            lambda name: None if name.startswith("cell_") else name.removesuffix("_proj"),
            "keep_mlp",
            pictures,
            ("t8_coordinates", "the same question of directions"),
        ),
    )


def pictures(cfg: Config, table: pl.DataFrame, path: Path, names: list[str]) -> Iterator[str]:
    """Per data set, the slices with intervals, and the layer x module map."""
    question = "Which slice of dW keeps the effect, and what is left without it?"
    words = {s: WORDS.get(s, s.replace("_", " ")) for s in names if not s.startswith("cell_")}
    yield retained_by_slice(table, path, question, words, whole="full", thresholds=cfg.limits)
    if cfg.cells:
        cells = table.filter(pl.col("layer").is_not_null() & (pl.col("keep_or_drop") == "keep"))
        question = "What does one module of one layer keep of the effect?"
        yield retained_by_layer_and_module(cells, path.with_suffix(".cells.parquet"), question)


if __name__ == "__main__":
    guarded(main, Config)

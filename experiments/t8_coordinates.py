"""Which coordinates of dW carry the behaviour: singular directions, or the adapter's own?

Question:   is there one band of singular directions (of dW itself, or of the base weight), or one
            degree of freedom of the adapter family, whose part of dW keeps the steering effect, and
            without which the effect is gone?
Prediction: the top quarter of dW's own directions carries most of it; in the base's coordinates the
            effect lies in no single band.
Rule:       per coordinate system: supported if one component retains >= 0.7 and its removal leaves
            <= 0.3; refuted if several disjoint components each retain >= 0.7 (distributed), or
            every component clearly fails; each comparison by its 95 % interval; else undetermined.

    python experiments/t8_coordinates.py
    python experiments/t8_coordinates.py --seeds 0 1 2

own:   bands of dW = U S V^T, as shares of its NUMERICAL RANK (the difference of two rank-8 LoRAs
       has rank 16, and its top quarter is 4 directions), or of its energy.
base:  the block of dS = U0^T dW V0 in a band of the base weight's directions; blocks that join two
       bands are in every band's rest.
family: rank components (lora, pissa, delora), magnitude and direction (dora), lambda and direction
       (delora), the best rotation and what it leaves (oft, boft), attention and MLP gates (ia3).
Every component is kept (keep_*), removed (drop_*), and replaced by random directions of its own
rank and norm (control_*). keep + drop is checked against dW in the run. Singular value
decompositions of the base are computed once and kept on disk under the weights' hash.
"""

from wsrun.script import guarded

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from wscore import FAMILIES
from wsrun.report.ablation_summary import best_parts
from wsrun.report.retained_figures import retained_by_energy
from wsrun.study.ablation import Options, Study, run_ablation

WORDS = {
    "own": "bands of dW's own singular directions",
    "base": "bands of the base weight's directions",
    "rank": "rank components",
    "magnitude_direction": "magnitude, direction",
    "lambda_direction": "lambda, direction",
    "rotation": "best rotation, what it leaves",
    "gates": "attention gates, MLP gates",
}
BANDS = ("own", "base")


@dataclass(frozen=True)
class Config(Options):
    """Options of T8."""

    svd_cache: Path = Path("artifacts/cache")
    """folder for the singular value decompositions of the base"""


def main(cfg: Config) -> None:
    """Cut every dW by singular directions and by its family's own parameters."""
    run_ablation(
        cfg,
        Study(
            "t8_coordinates",
            ("own_bands", "base_bands", "parameters"),
            lambda name: name if name.startswith(BANDS) else None,
            "keep_own_top",
            pictures,
            ("t13_planted", "these rules where the truth is known"),
            svd_cache=cfg.svd_cache,
            columns=columns,
            notes=partial(notes, cfg),
        ),
    )


def columns(table: pl.DataFrame) -> pl.DataFrame:
    """energy_frac, and in words what each family's parameters are."""
    kind = pl.col("family").replace_strict({n: f.parameterization for n, f in FAMILIES.items()})
    return table.rename({"energy": "energy_frac"}).with_columns(parameterization_family=kind)


def notes(cfg: Config, table: pl.DataFrame) -> Iterator[Any]:
    """What the family's own parameters keep, and how many directions a quarter is."""
    yield best_parts(table.filter(~pl.col("coordinate_system").is_in(BANDS)), cfg.limits)
    top = table.filter(variant="keep_own_top").sort("family")["family", "rank_or_group"]
    sizes = ", ".join(f"{family} {size}" for family, size in top.iter_rows())
    yield f"the top quarter of dW's own directions, per tensor: {sizes}"


def pictures(cfg: Config, table: pl.DataFrame, path: Path, _: list[str]) -> Iterator[str]:
    """Retained share against energy, of the data sets on which some whole dW steers."""
    kept = table.filter(pl.col("keep_or_drop").is_not_null() & pl.col("retained").is_not_null())
    shown = table.filter(pl.col("dataset").is_in(kept["dataset"].unique().to_list()))
    if shown.is_empty():
        yield "no figure: no effect of a whole dW is clear of 0"
        return
    question = "Does a part of dW keep more of the effect than its share of the squared norm?"
    yield retained_by_energy(shown, path, question, "coordinate_system", WORDS, cfg.limits)


if __name__ == "__main__":
    guarded(main, Config)

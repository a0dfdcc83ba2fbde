"""T6, T7 and T8 as studies: which lenses cut dW, and what is shown of each.

subspaces     does a subspace that families share carry the behaviour? (T6)
sites         which layers and modules do? (T7)
coordinates   which singular directions, or coordinates of the adapter, do? (T8)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from wscore import FAMILIES, writes_residual
from wsrun.report.ablation_summary import best_parts
from wsrun.report.retained_figures import (
    retained_by_energy,
    retained_by_family,
    retained_by_slice,
)
from wsrun.report.tile_figures import retained_by_layer_and_module
from wsrun.study.analysis import Options, Study
from wsrun.study.options import check_once

SUBSPACES = {
    "keep_shared": "kept: shared subspace",
    "drop_shared": "removed: shared subspace",
    "keep_own": "kept: own top directions",
    "drop_own": "removed: own top directions",
    "keep_random_matched": "kept: random subspace, same norm",
}
LENSES = ("layers", "thirds", "blocks", "sides", "modules", "groups")
SITES = {
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
COORDINATES = {
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
class SubspaceOptions(Options):
    """Options of T6."""

    K: tuple[int, ...] = (8, 32, 64)
    """sizes of the subspace, one or several"""
    lenses: tuple[str, ...] = ("shared", "shared_incl", "own", "random")
    """which subspaces"""


@dataclass(frozen=True)
class SiteOptions(Options):
    """Options of T7."""

    cells: bool = True
    """score every module of every layer too, for the heat map"""


@dataclass(frozen=True)
class CoordinateOptions(Options):
    """Options of T8."""

    svd_cache: Path = Path("artifacts/cache")
    """folder for the singular value decompositions of the base"""


def subspaces(cfg: SubspaceOptions) -> Study:
    """The residual-writing part of every dW, cut by subspaces; refuses what T6 cannot do."""
    check_once("t6", {"families": cfg.families}, 2)  # one is left out
    check_once("t6", {"K": cfg.K})
    return Study(
        "t6_shared_svd",
        cfg.lenses,
        lambda name: None if name in ("shared_incl", "random_matched") else name,
        "keep_shared",
        _subspace_pictures,
        ("t7_sites", "the same question of layers and modules"),
        where=writes_residual,
        whole="residual_full",
        K=cfg.K,
        columns=_subspace_columns,
        notes=_overlaps,
    )


def _subspace_columns(table: pl.DataFrame) -> pl.DataFrame:
    """Null draws have the residual part's spectrum: full has more tensors, zero none of it."""
    other = pl.col("variant").is_in(["full", "zero"])
    return table.with_columns(pl.when(~other).then("null_percentile"))


def _overlaps(table: pl.DataFrame) -> Iterator[str]:
    """Whether the own directions of families meet, per K."""
    mean_overlaps = table.filter(variant="keep_own").group_by("k").agg(pl.col("^overlap.*$").mean())
    for r in mean_overlaps.sort("k").iter_rows(named=True):
        seeds = r["overlap_seeds"]
        yield (
            f"own top-{r['k']} directions of two families overlap {r['overlap']:.2f}"
            + ("" if seeds is None else f", two seeds of one family {seeds:.2f}")
            + f" (random subspaces of the same sizes: {r['overlap_random']:.2f})"
        )


def _subspace_pictures(
    cfg: SubspaceOptions, table: pl.DataFrame, path: Path, _: list[str]
) -> Iterator[str]:
    question = "Does a subspace found from other adapter families carry a family's effect?"
    yield retained_by_family(
        table, path, question, SUBSPACES, "residual_full", cfg.limits, k=max(cfg.K)
    )


def sites(cfg: SiteOptions) -> Study:
    """Every dW, cut by layers and modules."""
    return Study(
        "t7_sites",
        LENSES + (("cells",) if cfg.cells else ()),
        lambda name: None if name.startswith("cell_") else name.removesuffix("_proj"),
        "keep_mlp",
        _site_pictures,
        ("t8_coordinates", "the same question of directions"),
    )


def _site_pictures(
    cfg: SiteOptions, table: pl.DataFrame, path: Path, names: list[str]
) -> Iterator[str]:
    """Per data set, the slices with intervals, and the layer x module map."""
    question = "Which slice of dW keeps the effect, and what is left without it?"
    words = {s: SITES.get(s, s.replace("_", " ")) for s in names if not s.startswith("cell_")}
    yield retained_by_slice(table, path, question, words, whole="full", thresholds=cfg.limits)
    if cfg.cells:
        cells = table.filter(pl.col("layer").is_not_null() & (pl.col("keep_or_drop") == "keep"))
        question = "What does one module of one layer keep of the effect?"
        yield retained_by_layer_and_module(cells, path.with_suffix(".cells.parquet"), question)


def coordinates(cfg: CoordinateOptions) -> Study:
    """Every dW, cut by singular directions and by its family's own parameters."""
    return Study(
        "t8_coordinates",
        ("own_bands", "base_bands", "parameters"),
        lambda name: name if name.startswith(BANDS) else None,
        "keep_own_top",
        _coordinate_pictures,
        ("t13_planted", "these rules where the truth is known"),
        svd_cache=cfg.svd_cache,
        columns=_coordinate_columns,
        notes=partial(_coordinate_notes, cfg),
    )


def _coordinate_columns(table: pl.DataFrame) -> pl.DataFrame:
    """energy_frac, and in words what each family's parameters are."""
    kind = pl.col("family").replace_strict({n: f.parameterization for n, f in FAMILIES.items()})
    return table.rename({"energy": "energy_frac"}).with_columns(parameterization_family=kind)


def _coordinate_notes(cfg: CoordinateOptions, table: pl.DataFrame) -> Iterator[Any]:
    """What the family's own parameters keep, and how many directions a quarter is."""
    yield best_parts(table.filter(~pl.col("coordinate_system").is_in(BANDS)), cfg.limits)
    top = table.filter(variant="keep_own_top").sort("family")["family", "rank_or_group"]
    sizes = ", ".join(f"{family} {size}" for family, size in top.iter_rows())
    yield f"the top quarter of dW's own directions, per tensor: {sizes}"


def _coordinate_pictures(
    cfg: CoordinateOptions, table: pl.DataFrame, path: Path, _: list[str]
) -> Iterator[str]:
    """Retained share against energy, of the data sets on which some whole dW steers."""
    kept = table.filter(pl.col("keep_or_drop").is_not_null() & pl.col("retained").is_not_null())
    shown = table.filter(pl.col("dataset").is_in(kept["dataset"].unique().to_list()))
    if shown.is_empty():
        yield "no figure: no effect of a whole dW is clear of 0"
        return
    question = "Does a part of dW keep more of the effect than its share of the squared norm?"
    yield retained_by_energy(shown, path, question, "coordinate_system", COORDINATES, cfg.limits)

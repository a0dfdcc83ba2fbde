"""The figure of dose and response on the page: of the first table that has several doses of dW."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from wscore.files import refusing
from wscore.stats.contrasts import base_lines
from wscore.stats.effects import effect_table
from wsrun.report.document import Block, Figure, Text
from wsrun.report.effect_figures import effects_by_dose
from wsrun.report.sources import Source
from wsrun.report.wording import reads_of
from wsrun.score.names import DW

QUESTION = "How does the effect of dW grow with its dose?"


def dose_figure(sources: Iterable[Source], resamples: int, name: str, otherwise: str) -> Block:
    """The figure of the first of the sources with several doses, else a text that says why not.

    name: of the SVG file. otherwise: the command that makes such a table.
    """
    for s in sources:
        with refusing(f"report: the rows of {s.name} do not pair", "run it again", ValueError):
            table = None if s.rows is None else dose_curves(s.rows, resamples)
        if table is None:
            continue
        with TemporaryDirectory() as folder:
            svg = Path(folder) / name
            drawn = table.join(_reads(s.table), on="dataset", how="left", maintain_order="left")
            sentence = effects_by_dose(drawn, svg, QUESTION)
            if not svg.exists():
                return Text(f"No figure: {sentence}.")
            words = f"From {s.name}: effect by dose, bands are 95 % cluster-bootstrap intervals."
            return Figure(svg.name, svg.read_bytes(), QUESTION, words)
    return Text(f"No table has several doses of dW; {otherwise} makes one.")


def _reads(table: pl.DataFrame) -> pl.DataFrame:
    """(dataset, reads) of a summary."""
    pairs = [*reads_of(table).items()]
    return pl.DataFrame(pairs, {"dataset": pl.String, "reads": pl.String}, orient="row")


def dose_curves(rows: pl.DataFrame, resamples: int) -> pl.DataFrame | None:
    """The effect of each family's dW at every dose of one model; None where all have a single one.

    "-dW" at alpha -2 is dW at -2. A data set that only repeats the items of another is left out.
    """
    first = rows.select("model", "behaviour").row(0, named=True)
    base = rows.filter(**first, alpha=0)
    groups = base.group_by("dataset").agg(pl.col("item").sort()).sort("dataset")
    datasets = groups.unique("item", keep="first", maintain_order=True)["dataset"].to_list()
    whole = pl.col("variant").replace({f"-{DW}": DW, "full": DW})
    steered = rows.filter(**first, method="weights").with_columns(variant=whole)
    steered = steered.filter(pl.col("family").is_not_null(), variant=DW)
    several = steered.group_by("family").agg(pl.col("alpha").n_unique()).filter(pl.col("alpha") > 1)
    if several.is_empty():
        return None
    kept = steered.filter(pl.col("family").is_in(several["family"].to_list()))
    kept = kept.unique(["dataset", "family", "alpha", "seed", "item"], maintain_order=True)
    both = pl.concat([base, kept]).filter(pl.col("dataset").is_in(datasets))
    origin = base_lines(both).drop("family").join(several.select("family"), how="cross")
    table = effect_table(both, resamples=resamples)
    return pl.concat([table, origin], how="diagonal_relaxed")

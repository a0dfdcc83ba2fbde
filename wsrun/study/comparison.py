"""Comparison on test items: what was chosen, beside controls, one line a method against dW."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wscore import tensors_sha256
from wscore.stats.contrasts import benchmark_table
from wscore.stats.schema import CELL
from wsrun.data.source import source_name
from wsrun.score.names import DW
from wsrun.score.variants import Variant
from wsrun.study.options import BenchmarkOptions
from wsrun.study.scoring import run_sweep
from wsrun.study.selected import FOLDER, Selection, Selections, save_selected
from wsrun.study.session import Session


def compare_on_test(
    cfg: BenchmarkOptions,
    experiment: str,
    test: Session,
    chosen: Selections,
    controls: Sequence[Variant] = (),
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rows, table) of what was chosen and of controls at their own doses, on test items.

    The table is that of `benchmark_table` against the chosen dW, with method_name, role
    ("selected", "flagged" or "control") and validation, the effect that selected a line. What
    cannot be made again is kept in <out>/selection/<experiment>, for T11. All seeds of what was
    chosen make one line, and draws of a random control are one variant under several seeds: the
    interval of a line then covers its seeds, or its draws, too.
    """
    variants = [v for s in chosen.values() for v in s.variants] + [*controls]
    rows = run_sweep(cfg, experiment, test, variants)
    assert rows is not None
    _save(cfg, experiment, test, chosen)
    table = benchmark_table(rows, dW_line(chosen), resamples=cfg.resamples)
    keys = {"variant": pl.String, "family": pl.String, "alpha": pl.Float64}
    selected = pl.DataFrame(
        [
            (s.variant.name, s.variant.family, s.alpha, s.role, s.validation)
            for s in chosen.values()
        ],
        schema=keys | {"role": pl.String, "validation": pl.Float64},
        orient="row",
    )
    table = table.join(selected, on=[*keys], how="left", nulls_equal=True, maintain_order="left")
    table = table.with_columns(pl.col("role").fill_null("control"))
    if cfg.match_dose:
        table = _with_doses(cfg.match_dose, table, variants, chosen.unmatched)
    return rows, table.with_columns(method_name=pl.col("variant").str.split("@").list.first())


def dW_line(chosen: Mapping[str, Selection]) -> dict[str, Any]:
    """What names the line of the chosen dW, the reference of all others."""
    dW = chosen[DW]
    return {"variant": DW, "family": dW.variant.family, "alpha": dW.alpha}


def _save(cfg: BenchmarkOptions, experiment: str, test: Session, chosen: Selections) -> None:
    base = tensors_sha256(dict(test.model.named_parameters()))
    about = {
        "experiment": experiment,
        "model": cfg.model,
        "match_dose": cfg.match_dose,
        "behaviour": cfg.behaviour,
        "data": source_name(cfg.data),
    }
    save_selected(cfg.out / FOLDER / experiment, chosen, base, about)


def _with_doses(
    match: str, table: pl.DataFrame, variants: Sequence[Variant], unmatched: Sequence[Variant]
) -> pl.DataFrame:
    """The table with match, dose_norm, kl, converged, and a line for each unmatched candidate.

    Those lines have the role "unmatched" and neither alpha nor effect.
    """
    key_columns = ("method", "variant", "family", "k", "alpha")
    lines = [
        (v.method, v.name, v.family, v.k, (v.alphas or (None,))[0], *v.dose)
        for v in (*variants, *unmatched)
        if v.dose
    ]
    schema = {c: table.schema[c] for c in key_columns}
    schema |= {"dose_norm": pl.Float64, "kl": pl.Float64, "converged": pl.Boolean}
    doses = pl.DataFrame(lines, schema=schema, orient="row").with_columns(match=pl.lit(match))
    table = table.join(
        doses.unique(key_columns),
        on=key_columns,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    if not unmatched:
        return table
    cells = table.select("experiment", *CELL).unique(maintain_order=True)
    lost = doses.tail(len(unmatched)).with_columns(
        alpha=pl.lit(None, pl.Float64), role=pl.lit("unmatched")
    )
    lost = cells.join(lost.unique(maintain_order=True), how="cross")
    return pl.concat([table, lost], how="diagonal_relaxed")

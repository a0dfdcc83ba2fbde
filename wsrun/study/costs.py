"""What steering costs elsewhere (T11): what other scripts chose, and the rule on a cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from wsrun.report.console import console, grid
from wsrun.report.effect_figures import intervals, line_label
from wsrun.report.figure_tables import BARS
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import dataset_name, with_interval
from wsrun.score.capability import CHOICE, TEXT
from wsrun.score.names import setting_of
from wsrun.study.options import BenchmarkOptions
from wsrun.study.selected import FOLDER, OtherBase, Selection, line, load_selected

MEASURES = {"nll": "text, nats a token", "accuracy": "accuracy"}


def chosen_elsewhere(cfg: BenchmarkOptions, base: str, what: str) -> dict[str, Selection]:
    """{method and script: what that script chose}, of the vectors and changes kept by others.

    What two scripts chose alike is taken once, and what was chosen on other base weights, as by a
    replication, is left out. Raises ValueError where one line of the table would be two different
    interventions.
    """
    selections: dict[str, Selection] = {}
    lines: dict[tuple, tuple[str, dict[str, str]]] = {}
    requested = {"match_dose": cfg.match_dose, "behaviour": cfg.behaviour}
    for folder in sorted((cfg.out / FOLDER).glob("*/")):
        try:
            kept = load_selected(folder, base)
        except OtherBase as error:
            console.print(f"left out: {error}")
            continue
        for s, header in kept:
            name = f"{header['method_name']} of {s.source}"
            if odd := {k: header[k] for k, v in requested.items() if header[k] != v}:
                console.print(f"left out: {name}, chosen under {odd}, not {requested}")
                continue
            hashes = s.variant.intervention.fingerprint()
            first, known = lines.setdefault(line(s.variant), (name, hashes))
            if known != hashes:
                raise ValueError(
                    f"{what}: {first} and {name} have one name and coefficient, and differ; run "
                    "both scripts again with the same options"
                )
            if first == name:
                selections[name] = s
    if not selections:
        console.print(
            f"{cfg.out} has no chosen vectors or constructed changes; for their costs run "
            "t1_activation.py, t9_synthetic.py or t10_svd_steering.py before, with the same --out"
        )
    return selections


def bounded(r: Mapping[str, Any], measure: str, at_most: float, unit: str) -> RuleResult:
    """The rule on one measure of a line: below the bound by its interval, above it, or neither."""
    lo, hi = r[f"{measure}_lo"], r[f"{measure}_hi"]
    if measure == "accuracy":  # less of it is worse
        lo, hi = None if hi is None else -hi, None if lo is None else -lo
    what, dataset = ("text", TEXT) if measure == "nll" else ("accuracy", CHOICE)
    claim = f"cost of {r['method_name']} in {what} is below {at_most:g} {unit}"
    if lo is None or hi is None:
        outcome, sentence = "undetermined", f"no interval for {what}"
    else:
        costs = "costs" if lo > 0 else "gains" if hi < 0 else "no clear cost"
        outcome = "supported" if hi < at_most else "refuted" if lo > at_most else "undetermined"
        below = "below" if hi < at_most else "not bounded by"
        sentence = f"{what}: {costs}, {below} {at_most:g} {unit}"
    return RuleResult(dataset, claim, None, outcome, sentence, r["variant"])


def cost_grids(table: pl.DataFrame) -> list[Table]:
    """The printed tables: effect on held-out items, and change of text and of accuracy."""
    datasets = sorted(set(table["dataset"]))
    effects, costs = [], []
    lines = table.sort("effect", descending=True, nulls_last=True).group_by(
        "method_name", "variant", "family", "k", "alpha", maintain_order=True
    )
    for _, part in lines:
        r = part.row(0, named=True)
        chosen_cells = [r["method_name"], setting_of(r), r["alpha"]]
        effect_cells = {
            p["dataset"]: with_interval(p, "effect", "lo", "hi") for p in part.iter_rows(named=True)
        }
        effects.append([*chosen_cells, *(effect_cells[d] for d in datasets)])
        costs.append(
            [*chosen_cells, *(with_interval(r, m, f"{m}_lo", f"{m}_hi") for m in MEASURES)]
        )
    heads = ("method", "chosen", "alpha")
    return [
        grid("effect on held-out items, nats", (*heads, *datasets), effects),
        grid("change of neutral text and of multiple choice", (*heads, *MEASURES.values()), costs),
    ]


def cost_figure(table: pl.DataFrame, path: Path, question: str) -> str:
    """The cost of every method: nats a token of neutral text, and points of accuracy."""
    one = table.filter(dataset=table["dataset"][0]).drop_nulls("nll").sort("effect")
    lines = [
        {
            "panel": panel,
            "label": line_label(r),
            "role": r["role"],
            **dict(zip(("value", "lo", "hi"), (r[m], r[f"{m}_lo"], r[f"{m}_hi"]), strict=True)),
        }
        for r in one.iter_rows(named=True)
        for m, panel in MEASURES.items()
    ]
    caption = (
        "Change against the base, on neutral texts (above 0 is worse) and on multiple choice "
        f"(below 0 is worse), at the coefficients chosen on validation items. {BARS}Methods in the "
        f"order of their effect on {dataset_name(one.row(0, named=True))}. "
        f"Model: {one['model'][0]}. "
    )
    return intervals(pl.DataFrame(lines), path, question, "change", caption)

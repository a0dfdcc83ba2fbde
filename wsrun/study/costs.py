"""What steering costs elsewhere (T11): what other scripts chose, what is measured, and the rule."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from wscore.stats.spread import wilson
from wsrun.data.cost_sets import drawn, read_cost_sets
from wsrun.data.multiple_choice import QUESTIONS, Question, load_questions
from wsrun.data.replies import NEUTRAL, load_neutral
from wsrun.data.source import beside, source_name
from wsrun.report.console import console, grid, progress
from wsrun.report.effect_figures import intervals, line_label
from wsrun.report.figure_tables import BARS
from wsrun.report.row_identity import LINE
from wsrun.report.verdicts import RuleResult
from wsrun.report.wording import dataset_name, with_interval
from wsrun.score.capability import CHOICE, TEXT, Capability, Entries
from wsrun.score.names import setting_of
from wsrun.score.variants import Variant
from wsrun.study.options import BenchmarkOptions
from wsrun.study.selected import FOLDER, OtherBase, Selection, line, load_selected
from wsrun.study.session import Session

Measures = dict[str, Entries]  # by data set
NATS, ACCURACY = "nats a token", "accuracy"
WORDS = {TEXT: "text", CHOICE: "accuracy"}
PANELS = {TEXT: "text, nats a token", CHOICE: "accuracy"}
ON = {TEXT: "neutral texts"}
MEASURES = {"nll": "text, nats a token", "accuracy": "accuracy"}


def chosen_elsewhere(cfg: BenchmarkOptions, base: str, what: str) -> dict[str, Selection]:
    """{method and script: what that script chose}, of the vectors and changes kept by others.

    What two scripts chose alike is taken once, and what was chosen on other base weights, as by a
    replication, on other data, or under another dose is left out. Raises ValueError where one line
    of the table would be two different interventions.
    """
    selections: dict[str, Selection] = {}
    lines: dict[tuple, tuple[str, dict[str, str]]] = {}
    requested = {"match_dose": cfg.match_dose, "behaviour": cfg.behaviour}
    requested["data"] = source_name(cfg.data)  # not in files of earlier versions
    for folder in sorted((cfg.out / FOLDER).glob("*/")):
        try:
            kept = load_selected(folder, base)
        except OtherBase as error:
            console.print(f"left out: {error}")
            continue
        for s, header in kept:
            name = f"{header['method_name']} of {s.source}"
            if odd := {k: header[k] for k, v in requested.items() if header.get(k, v) != v}:
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


def check_bounds(nats: float | int, points: float | int, what: str) -> None:
    """Refuse bounds of costs that are not above 0."""
    if not (nats > 0 and points > 0):
        raise ValueError(f"{what}: --nats-at-most and --points-at-most must be above 0")


def measured(
    cfg: BenchmarkOptions, costs: Sequence[str] | None, limit: int | None, questions: bool = True
) -> Measures:
    """{data set: its entries}: the neutral texts and questions beside --data, the sets of --costs.

    Says what was left out of a public set.
    """
    measures: Measures = {TEXT: drawn(load_neutral(beside(cfg.data, NEUTRAL), "test"), limit)}
    if questions:
        measures[CHOICE] = drawn(load_questions(beside(cfg.data, QUESTIONS), "test"), limit)
    for name, (entries, left_out) in read_cost_sets(costs).items():
        measures[name] = drawn(entries, limit)
        for sentence in left_out:
            console.print(sentence, highlight=False)
    return measures


def cost_rows(
    cfg: BenchmarkOptions, experiment: str, test: Session, measures: Measures, vs: Sequence[Variant]
) -> pl.DataFrame:
    """Rows of every measure under the base and under each variant, under a progress bar."""
    with progress("measuring costs", len(vs)) as done:
        asked = Capability(
            test.model, test.tok, measures, cache_dir=cfg.cache_dir, warn=console.print
        )
        names = {"model_name": cfg.model, "behaviour": cfg.behaviour}
        return asked.rows(vs, experiment=experiment, **names, done=done)


def cost_lines(
    table: pl.DataFrame, rows: pl.DataFrame, lines: pl.DataFrame, measures: Measures
) -> pl.DataFrame:
    """The long table of costs: a line for each measure of every line of `lines`.

    measure: what is measured, "nats a token" (above 0 is worse) or "accuracy" (below 0 is worse);
    base: its mean of the base; chance: the accuracy of a guess; change [lo, hi]: the mean paired
    change, null where a system prompt has no place; n entries in so many clusters. table: the
    effect table of `rows`.
    """
    whose = ("model", "behaviour", "method_name", "role", *LINE)
    once = lines.select(whose).unique(LINE, maintain_order=True)
    base = (
        rows.filter(alpha=0.0)
        .group_by("dataset", maintain_order=True)
        .agg(base=pl.col("margin").mean(), n=pl.len(), clusters=pl.col("cluster").n_unique())
    )
    kinds = pl.DataFrame(
        [(d, NATS if (c := chance(e)) is None else ACCURACY, c) for d, e in measures.items()],
        schema={"dataset": pl.String, "measure": pl.String, "chance": pl.Float64},
        orient="row",
    )
    changes = table.select("dataset", *LINE, "lo", "hi", change="effect")
    long = once.join(kinds, how="cross", maintain_order="left_right")
    long = long.join(base, on="dataset", how="left", maintain_order="left")
    keys = ["dataset", *LINE]
    long = long.join(changes, on=keys, how="left", nulls_equal=True, maintain_order="left")
    facts = ("base", "chance", "change", "lo", "hi", "n", "clusters")
    return long.select(*whose, "dataset", "measure", *facts)


def chance(entries: Entries) -> float | None:
    """The accuracy of a guess, the mean of 1 / options; None for texts."""
    shares = [1 / len(e.options) for e in entries if isinstance(e, Question)]
    return sum(shares) / len(shares) if shares else None


def bounded(line: Mapping[str, Any], nats: float, points: float) -> RuleResult:
    """The rule on one line of `cost_lines`: its cost is below the bound by its interval, above it,
    or neither; nats a token, or percentage points of accuracy.

    What the base does not know cannot be lost: undetermined where chance lies in Wilson's interval
    of its accuracy, or above.
    """
    lo, hi, dataset = line["lo"], line["hi"], line["dataset"]
    at_most, unit = nats, "nats a token"
    if line["measure"] == ACCURACY:  # less of it is worse
        lo, hi = None if hi is None else -hi, None if lo is None else -lo
        at_most, unit = points / 100, "of accuracy"
    what = WORDS.get(dataset, dataset)
    claim = f"cost of {line['method_name']} in {what} is below {at_most:g} {unit}"
    if lo is None or hi is None:
        lacking = "no interval for" if line["change"] is not None else "a prompt has no place in"
        outcome, sentence = "undetermined", f"{lacking} {what}"
    else:
        costs = "costs" if lo > 0 else "gains" if hi < 0 else "no clear cost"
        outcome = "supported" if hi < at_most else "refuted" if lo > at_most else "undetermined"
        below = "below" if hi < at_most else "not bounded by"
        sentence = f"{what}: {costs}, {below} {at_most:g} {unit}"
        if line["measure"] == ACCURACY and wilson(line["base"], line["n"])[0] <= line["chance"]:
            outcome, sentence = "undetermined", f"{what}: the base is no better than chance"
    return RuleResult(dataset, claim, None, outcome, sentence, line["variant"])


def cost_grids(table: pl.DataFrame, measured: pl.DataFrame) -> list[Table]:
    """The printed tables: effect on held-out items, change of text and of accuracy, public sets."""
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
        *_public_grids(measured, table),
    ]


def _public_grids(lines: pl.DataFrame, table: pl.DataFrame) -> list[Table]:
    """A printed table for each public set: its change under every method, and the base's value."""
    order, grids = table.sort("effect", descending=True, nulls_last=True), []
    for (dataset,), part in _in_order(lines, order).group_by("dataset", maintain_order=True):
        first = part.row(0, named=True)
        if dataset not in WORDS:
            base = f"base {first['base']:.3f}"
            base += "" if first["chance"] is None else f", chance {first['chance']:.2f}"
            size = f"{first['n']} in {first['clusters']} clusters"
            title = f"{dataset}: change of {first['measure']} ({base}, {size})"
            cells = [
                [
                    r["method_name"],
                    setting_of(r),
                    r["alpha"],
                    with_interval(r, "change", "lo", "hi"),
                ]
                for r in part.iter_rows(named=True)
            ]
            grids.append(grid(title, ("method", "chosen", "alpha", first["measure"]), cells))
    return grids


def cost_figure(lines: pl.DataFrame, table: pl.DataFrame, path: Path, question: str) -> str:
    """The cost of every method in lines of `cost_lines`, a panel a measure."""
    first = table.filter(dataset=table["dataset"][0])
    panels = [
        {
            "panel": PANELS.get(r["dataset"], f"{r['dataset']}, {r['measure']}"),
            "label": line_label(r),
            "value": r["change"],
            **{c: r[c] for c in ("role", "lo", "hi")},
        }
        for r in _in_order(lines, first.sort("effect")).drop_nulls("change").iter_rows(named=True)
    ]
    kinds = lines.select("dataset", "measure").unique(maintain_order=True).iter_rows()
    worse = [f"{ON.get(d, d)} ({'above' if m == NATS else 'below'} 0 is worse)" for d, m in kinds]
    caption = (
        f"Change against the base, on {' and on '.join(worse)}, at the coefficients chosen on "
        f"validation items. {BARS}Methods in the order of their effect on "
        f"{dataset_name(first.row(0, named=True))}. Model: {first['model'][0]}. "
    )
    return intervals(pl.DataFrame(panels), path, question, "change", caption)


def _in_order(lines: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """The lines of costs in the order of a table's lines."""
    order = table.select(LINE).unique(maintain_order=True)
    return order.join(lines, on=LINE, how="left", nulls_equal=True, maintain_order="left_right")

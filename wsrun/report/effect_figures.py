"""Figures of effects with their intervals: by seed, by dose, by method, and of any values.

Each takes a table, its path (the suffix is replaced) and the question as title, writes PNG and SVG
beside the table, and returns a sentence to print, as those of retained_figures.py. Raises
ValueError for a table of several models, behaviours or prompt styles.
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import polars as pl

from wsrun.report.drawing import (
    COLOURS,
    DARK,
    FAINT,
    MARKERS,
    Estimate,
    Look,
    assign_looks,
    draw_estimate,
    name_rows,
)
from wsrun.report.figure_tables import (
    BARS,
    EFFECT,
    FAMILIES,
    SAME_RUN,
    check_table,
    facts_of,
    in_order,
    in_words,
    limits_of,
    lines_by,
)
from wsrun.report.frames import Frame, draw_panels
from wsrun.report.wording import dataset_name, dataset_names
from wsrun.score.names import setting_of

ENDS = ("effect", "lo", "hi")
TITLE = 60  # letters that all titles of panels side by side have room for


def effects_by_seed(table: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One panel per dataset, x = families, y = effect: seeds pooled, and each seed beside it.

    Lines without a seed are the pooled ones. Raises ValueError for several variants.
    """
    figure, keys = "effects_by_seed", ("dataset", "family", "seed")
    check_table(figure, table, (*keys, "variant", *ENDS), (*SAME_RUN, "alpha", "variant"))
    lines = lines_by(figure, table, keys)
    families, datasets = in_order(table["family"], FAMILIES), in_order(table["dataset"])
    names = dataset_names(table)
    seeds = [None, *table["seed"].drop_nulls().unique().sort()]
    looks = [Look("all seeds, over items and seeds", COLOURS[0], "o", COLOURS[0])]
    looks += [Look(f"seed {s}", FAINT, MARKERS[1 + s % 7], "white") for s in seeds[1:]]
    limits, step = limits_of(table, ENDS, 0.06), 0.7 / len(seeds)

    def panel(ax: Any, dataset: str) -> None:
        for x, family in enumerate(families):
            for i, (seed, look) in enumerate(zip(seeds, looks, strict=True)):
                estimate = Estimate.of(lines.get((dataset, family, seed)), *ENDS)
                draw_estimate(ax, x + (i - (len(seeds) - 1) / 2) * step, estimate, look, limits)
        ax.set_xticks(range(len(families)), [in_words(f) for f in families])
        ax.axhline(0, color=DARK, linewidth=0.8)
        ax.set(xlim=(-0.5, len(families) - 0.5), ylim=limits)
        ax.set_title(f"data set: {names[dataset]}")

    caption = EFFECT + BARS + facts_of(table.filter(pl.col("seed").is_null())) + note
    frame = Frame(question, "adapter family", "effect (nats)", caption, 2.4 * len(datasets))
    return draw_panels(path, frame, panel, datasets, 1, looks)


def effects_by_dose(table: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One panel per family, x = alpha, y = effect with its interval as a band, a line a data set.

    Raises ValueError where two lines have one family, data set and dose.
    """
    figure, keys = "effects_by_dose", ["family", "dataset", "alpha"]
    check_table(figure, table, (*keys, *ENDS), SAME_RUN)
    lines = lines_by(figure, table, keys)
    families, datasets = in_order(table["family"], FAMILIES), in_order(table["dataset"])
    names = dataset_names(table)
    looks = assign_looks({d: f"data set {names[d]}" for d in datasets})
    limits = limits_of(table, ENDS, 0.05)

    def panel(ax: Any, family: str) -> None:
        for dataset, look in looks.items():
            curve = [lines[key] for key in sorted(lines) if key[:2] == (family, dataset)]
            x, y = ([line[c] for line in curve] for c in ("alpha", "effect"))
            lo, hi = (
                [line["effect"] if line[c] is None else line[c] for line in curve]
                for c in ("lo", "hi")
            )
            ax.fill_between(x, lo, hi, color=look.colour, alpha=0.2, linewidth=0)
            ax.plot(x, y, color=look.colour, linewidth=1.2)
            look.draw(ax, x, y, markersize=3.5)
        ax.axhline(0, color=DARK, linewidth=0.8, linestyle=":")
        ax.set(ylim=limits, title=in_words(family))

    caption = (
        f"{EFFECT}Dose 0 is the model as it is. Bands: 95 % cluster-bootstrap intervals "
        f"(cluster: items of one subject). {facts_of(table.drop('alpha'))}"
    )
    cols = min(4, len(families))
    height = -(-len(families) // cols) * 1.6 + 0.2
    frame = Frame(question, "dose alpha of dW", "effect (nats)", caption + note, height)
    return draw_panels(path, frame, panel, families, cols, [*looks.values()])


def effects_by_method(table: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One panel per dataset, a line per method of a benchmark table: its effect and interval."""
    columns = ("dataset", "method_name", "variant", "family", "alpha", "role", *ENDS)
    check_table("effects_by_method", table, columns, SAME_RUN)
    table = table.drop_nulls(["effect", "alpha"])
    lines = [
        {
            "panel": f"data set: {dataset_name(r)}",
            "label": line_label(r),
            "value": r["effect"],
            **{c: r[c] for c in ("lo", "hi", "role")},
        }
        for r in table.sort("effect").iter_rows(named=True)
    ]
    caption = (
        f"{EFFECT}In brackets: what was chosen on validation items, and the dose. {BARS}"
        f"{facts_of(table)}"
    )
    return intervals(pl.DataFrame(lines), path, question, "effect (nats)", caption + note)


def line_label(line: Mapping[str, Any]) -> str:
    """A method, what was chosen of it, and the dose."""
    return f"{line['method_name']} ({setting_of(line) or '-'}, {line['alpha']:g})"


def intervals(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    across: str,
    caption: str,
    what: str = "chosen",
) -> str:
    """One panel per `panel`, a line per `label`, x = `value` with [`lo`, `hi`], grey for controls.

    Labels stand in the table's order from below, in all panels alike. `role` is "control" for a
    control, anything else for what is shown, called `what` in the legend.
    """
    ends = ("value", "lo", "hi")
    check_table("intervals", table, ("panel", "label", *ends, "role"))
    lines = lines_by("intervals", table, ["panel", "label"])
    labels = list(dict.fromkeys(table["label"]))[::-1]
    panels = sorted(set(table["panel"]))
    shown = Look(what, COLOURS[0], "o", COLOURS[0])
    control = Look("control", FAINT, "o", "white")
    limits = limits_of(table, ends, 0.05)

    def panel(ax: Any, name: str) -> None:
        ax.axvline(0, color=DARK, linewidth=0.8, linestyle=":")
        for y, label in enumerate(labels):
            if line := lines.get((name, label)):
                look = control if line["role"] == "control" else shown
                draw_estimate(ax, float(y), Estimate.of(line, *ends), look, limits, sideways=True)
        name_rows(ax, labels)
        ax.tick_params(axis="y", labelsize=6.8)
        ax.set(xlim=limits, title=fill(name, TITLE // len(panels)))

    frame = Frame(question, across, "", caption, 0.4 + 0.19 * len(labels))
    return draw_panels(path, frame, panel, panels, len(panels), [shown, control])

"""The figure of effect against cost: a curve a method, a mark a dose, and the bound of the cost.

Takes a table, its path (the suffix is replaced) and the question as title, writes PNG and SVG
beside the table, and returns a sentence to print.
"""

from pathlib import Path
from typing import Any

import polars as pl

from wsrun.report.drawing import COLOURS, DARK, MARKERS, Look
from wsrun.report.figure_tables import EFFECT, SAME_RUN, check_table, facts_of, in_order, in_words
from wsrun.report.frames import Frame, draw_panels
from wsrun.report.wording import dataset_names
from wsrun.score.names import DW, method_name

METHOD = ["method", "variant", "family", "k"]
SHOWN = ("cost", "cost_lo", "cost_hi", "effect", "lo", "hi", "alpha", "largest")


def effects_by_cost(table: pl.DataFrame, path: str | Path, question: str, bound: float) -> str:
    """One panel per dataset, x = cost with its interval, y = effect with its; a line a method.

    Marks are doses, joined from 0 upwards; the largest that is allowed is filled. The dashed line
    is `bound`. Doses that cost ten times the bound are left out, and the caption says how many.
    """
    check_table("effects_by_cost", table, (*METHOD, *SHOWN, "dataset", "measure", "unit"), SAME_RUN)
    datasets, names = in_order(table["dataset"]), dataset_names(table)
    measured = table.drop_nulls(["cost", "effect"])
    near = measured.filter(pl.col("cost").abs() <= 10 * abs(bound))
    lines = near.sort(*METHOD, pl.col("alpha").abs()).partition_by(
        ["dataset", *METHOD], maintain_order=True
    )
    labels = dict.fromkeys(_label(part) for part in lines)
    looks = {
        name: Look(name, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], "white")
        for i, name in enumerate(labels)
    }

    def panel(ax: Any, dataset: str) -> None:
        for part in (p for p in lines if p["dataset"][0] == dataset):
            look = looks[_label(part)]
            if len(part) > 1:
                x, y = ([0.0, *part[c]] for c in ("cost", "effect"))
                ax.plot(x, y, color=look.colour, linewidth=0.9)
            for r in part.iter_rows(named=True):
                whole = None not in (r["lo"], r["hi"], r["cost_lo"], r["cost_hi"])
                if whole:
                    faint = {"color": look.colour, "linewidth": 0.6, "alpha": 0.6}
                    ax.plot([r["cost"]] * 2, [r["lo"], r["hi"]], **faint)
                    ax.plot([r["cost_lo"], r["cost_hi"]], [r["effect"]] * 2, **faint)
                mark = look._replace(face=look.colour if r["largest"] else "white")
                mark.draw(ax, [r["cost"]], [r["effect"]], markersize=4.5, zorder=3)
        ax.axhline(0, color=DARK, linewidth=0.8, linestyle=":")
        ax.axvline(bound, color=DARK, linewidth=0.8, linestyle="--")
        ax.set_title(f"data set: {names[dataset]}")

    left_out = len(measured) - len(near)
    caption = (
        f"{EFFECT}Marks: doses, joined from 0 upwards; filled: the largest whose cost stays below "
        "the bound (dashed) by its interval. Bars: 95 % cluster-bootstrap intervals. "
        + f"{left_out} marks beyond ten times the bound are not shown. " * bool(left_out)
        + facts_of(table.drop("alpha"))
    )
    unit, on = (table[c].drop_nulls().first() for c in ("unit", "measure"))
    across = f"cost: change of {unit}, {on}"
    frame = Frame(question, across, "effect (nats)", caption, 2.8 * len(datasets))
    return draw_panels(path, frame, panel, datasets, 1, [*looks.values()])


def _label(part: pl.DataFrame) -> str:
    """A method in words: dW, LoRA; mean_diff_all; simple@0."""
    r = part.row(0, named=True)
    return f"{DW}, {in_words(r['family'])}" if method_name(r["variant"]) == DW else r["variant"]

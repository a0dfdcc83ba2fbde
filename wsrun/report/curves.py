"""Figures of effects over doses, seeds and layers: PNG and SVG beside the table, as figures.py.

by_seed, doses, layers and ways take a table, its path (the suffix is replaced) and the question as
title, write both files, and return a sentence to print. They raise ValueError for a table of
several models, behaviours or prompt styles.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from wsrun.report import page
from wsrun.report.figures import (
    ALIKE,
    BARS,
    EFFECT,
    FAMILIES,
    MEANING,
    by_keys,
    check_table,
    facts_of,
    ordered,
    word_of,
)
from wsrun.report.page import DARK, RETAINED, Look, Page
from wsrun.score.names import setting_of

SAME = ALIKE[:-1]  # doses differ


def by_seed(table: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One panel per dataset, x = families, y = effect: seeds pooled, and each seed beside it.

    Lines without a seed are the pooled ones. Raises ValueError for several variants.
    """
    keys = ("dataset", "family", "seed")
    check_table("by_seed", table, (*keys, "variant", "effect", "lo", "hi"), (*ALIKE, "variant"))
    at = by_keys("by_seed", table, keys)
    families, datasets = ordered(table["family"], FAMILIES), ordered(table["dataset"], ())
    seeds = [None, *table["seed"].drop_nulls().unique().sort()]
    looks = [page.Look("all seeds, over items and seeds", page.COLOURS[0], "o", page.COLOURS[0])]
    looks += [
        page.Look(f"seed {s}", page.FAINT, page.MARKERS[1 + s % 7], "white") for s in seeds[1:]
    ]
    ends = [x for c in ("effect", "lo", "hi") for x in table[c].drop_nulls()] + [0.0]
    margin = 0.06 * (max(ends) - min(ends) or 1.0)
    limits, step = (min(ends) - margin, max(ends) + margin), 0.7 / len(seeds)

    def panel(ax: Any, dataset: str) -> None:
        for x, family in enumerate(families):
            for i, (seed, look) in enumerate(zip(seeds, looks, strict=True)):
                line = at.get((dataset, family, seed), {})
                share = dict(zip(RETAINED, map(line.get, ("effect", "lo", "hi")), strict=True))
                page.mark(ax, x + (i - (len(seeds) - 1) / 2) * step, share, look, limits)
        ax.set_xticks(range(len(families)), [word_of(f) for f in families])
        ax.axhline(0, color=DARK, linewidth=0.8)
        ax.set(xlim=(-0.5, len(families) - 0.5), ylim=limits, title=f"data set: {dataset}")

    caption = (
        MEANING.partition("Effect kept")[0]
        + BARS
        + facts_of(table.filter(pl.col("seed").is_null()))
        + note
    )
    frame = Page(question, "adapter family", "effect (nats)", caption, 2.4 * len(datasets))
    return page.paint(path, frame, panel, datasets, 1, looks)


def doses(table: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One panel per family, x = alpha, y = effect with its interval as a band, a line a data set.

    Raises ValueError where two lines have one family, data set and dose.
    """
    columns = ("dataset", "family", "alpha", "effect", "lo", "hi")
    check_table("doses", table, columns, SAME)
    at = by_keys("doses", table, ["family", "dataset", "alpha"])
    families, datasets = ordered(table["family"], FAMILIES), ordered(table["dataset"], ())
    looks = page.looks_of({d: f"data set {d}" for d in datasets})
    ends = [v for c in ("effect", "lo", "hi") for v in table[c].drop_nulls()]
    room = 0.05 * (max(ends) - min(ends) or 1)

    def panel(ax: Any, family: str) -> None:
        for dataset, look in looks.items():
            lines = [at[key] for key in sorted(at) if key[:2] == (family, dataset)]
            x, y = ([line[c] for line in lines] for c in ("alpha", "effect"))
            lo, hi = (
                [line["effect"] if line[c] is None else line[c] for line in lines]
                for c in ("lo", "hi")
            )
            ax.fill_between(x, lo, hi, color=look.colour, alpha=0.2, linewidth=0)
            ax.plot(x, y, color=look.colour, linewidth=1.2)
            page.dot(ax, x, y, look, markersize=3.5)
        ax.axhline(0, color=DARK, linewidth=0.8, linestyle=":")
        ax.set(ylim=(min(ends) - room, max(ends) + room), title=word_of(family))

    caption = (
        f"{EFFECT}Dose 0 is the model as it is. Bands: 95 % cluster-bootstrap intervals "
        f"(cluster: items of one subject). {facts_of(table.drop('alpha'))}"
    )
    cols = min(4, len(families))
    height = -(-len(families) // cols) * 1.6 + 0.2
    frame = Page(question, "dose alpha of dW", "effect (nats)", caption + note, height)
    return page.paint(path, frame, panel, families, cols, [*looks.values()])


def layers(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    most_flagged: float = 1.0,
    note: str = "",
) -> str:
    """One map per way, row = layer, column = coefficient, number = effect, the mean of data sets.

    Lines are those of variants "way@layer 3" or "way@all layers" with coefficients above 0. A cell
    with a larger share of flagged rows than `most_flagged` is hatched, the largest effect of the
    others framed, and one without a line is empty.
    """
    table = table.filter(pl.col("variant").str.contains("@"), pl.col("alpha") > 0)
    check_table("layers", table, ("dataset", "variant", "alpha", "effect", "flagged_share"), SAME)
    by_keys("layers", table, ["dataset", "variant", "alpha"])
    means = table.group_by("variant", "alpha", maintain_order=True).agg(
        effect=pl.col("effect").mean(), flagged=pl.col("flagged_share").max()
    )
    at: dict[str, dict[tuple[str, float], tuple[float, bool]]] = {}
    for variant, alpha, effect, flagged in means.iter_rows():
        way, _, place = variant.partition("@")
        cell = effect, flagged <= most_flagged
        at.setdefault(way, {})[place.removeprefix("layer "), alpha] = cell
    found = {place for cells in at.values() for place, _ in cells}
    rows = sorted(found, key=lambda r: (not r.isdigit(), int(r) if r.isdigit() else 0))
    coefficients = sorted(means["alpha"].unique())
    shown = [effect for cells in at.values() for effect, good in cells.values() if good]
    lo, hi = min([0.0, *shown]), max([0.1, *shown])
    if not page.available():
        return page.MISSING
    from matplotlib import colormaps

    def colour(effect: float) -> tuple[float, ...]:
        return colormaps["cividis"]((effect - lo) / (hi - lo))[:3]

    def panel(ax: Any, way: str) -> None:
        allowed = {key: effect for key, (effect, good) in at[way].items() if good}
        best = max(allowed, key=lambda key: allowed[key], default=None)
        for key, (effect, good) in at[way].items():
            x, y = coefficients.index(key[1]), rows.index(key[0])
            page.tile(ax, x, y, colour(effect) if good else None, f"{effect:.1f}", 6.0)
            if key == best:
                frame = {"facecolor": "none", "edgecolor": page.COLOURS[6], "linewidth": 1.6}
                ax.bar(x, 1, 1, y - 0.5, zorder=4, **frame)
        page.lattice(ax, [f"{c:g}" for c in coefficients], [r.partition(" ")[0] for r in rows])
        ax.set_title(word_of(way))

    caption = (
        f"{EFFECT}Numbers: its mean over data sets, in nats. Framed: the largest of a way. Hatched:"
        f" more than {most_flagged:.0%} of the rows have little mass on Yes and No, so it is not "
        f"chosen. Empty: not tried. {facts_of(table.drop('alpha'))}"
    )
    cols = min(3, len(at))
    height = -(-len(at) // cols) * (0.4 + 0.19 * len(rows)) + 0.4
    frame = Page(question, "coefficient", "layer (0 is the first)", caption + note, height)
    scale = [Look(f"{e:+.1f} nats", DARK, "s", colour(e)) for e in (lo, (lo + hi) / 2, hi)]
    return page.paint(path, frame, panel, list(at), cols, scale)


def ways(table: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One panel per dataset, a line per way of a benchmark table: its effect with its interval."""
    columns = ("dataset", "way", "variant", "family", "alpha", "role", "effect", "lo", "hi")
    check_table("ways", table, columns, SAME)
    table = table.drop_nulls(["effect", "alpha"])
    lines = [
        {
            "panel": f"data set: {r['dataset']}",
            "label": label_of(r),
            "value": r["effect"],
            **{c: r[c] for c in ("lo", "hi", "role")},
        }
        for r in table.sort("effect").iter_rows(named=True)
    ]
    caption = (
        f"{EFFECT}In brackets: what was chosen on validation items, and the dose. {BARS}"
        f"{facts_of(table)}"
    )
    return ranges(pl.DataFrame(lines), path, question, "effect (nats)", caption + note)


def label_of(line: Mapping[str, Any]) -> str:
    """A way, what was chosen of it, and the dose."""
    return f"{line['way']} ({setting_of(line) or '-'}, {line['alpha']:g})"


def ranges(
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
    check_table("ranges", table, ("panel", "label", "value", "lo", "hi", "role"))
    at = by_keys("ranges", table, ["panel", "label"])
    labels = list(dict.fromkeys(table["label"]))[::-1]
    panels = sorted(set(table["panel"]))
    shown = Look(what, page.COLOURS[0], "o", page.COLOURS[0])
    control = Look("control", page.FAINT, "o", "white")
    ends = [x for c in ("value", "lo", "hi") for x in table[c].drop_nulls()] + [0.0]
    room = 0.05 * (max(ends) - min(ends) or 1.0)
    limits = (min(ends) - room, max(ends) + room)

    def panel(ax: Any, name: str) -> None:
        ax.axvline(0, color=DARK, linewidth=0.8, linestyle=":")
        for y, label in enumerate(labels):
            if line := at.get((name, label)):
                share = dict(zip(RETAINED, map(line.get, ("value", "lo", "hi")), strict=True))
                look = control if line["role"] == "control" else shown
                page.mark(ax, float(y), share, look, limits, flat=True)
        page.lattice(ax, None, labels)
        ax.tick_params(axis="y", labelsize=6.8)
        ax.set(xlim=limits, title=name)

    height = 0.4 + 0.19 * len(labels)
    frame = Page(question, across, "", caption, height)
    return page.paint(path, frame, panel, panels, len(panels), [shown, control])

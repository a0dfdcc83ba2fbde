"""Figures of tiles: shares by layer and module, effects by layer and coefficient, rules by plant.

Each takes a table, its path (the suffix is replaced) and the question as title, writes PNG and SVG
beside the table, and returns a sentence to print, as those of retained_figures.py.
"""

from pathlib import Path
from textwrap import fill
from typing import Any

import polars as pl

from wsrun.report.drawing import (
    COLOURS,
    DARK,
    Look,
    agreement_colour,
    colour_scale,
    draw_tile,
    name_rows,
)
from wsrun.report.figure_tables import (
    EFFECT,
    FAMILIES,
    MEANING,
    SAME_RUN,
    Words,
    check_table,
    check_values,
    each_dataset,
    facts_of,
    in_order,
    in_words,
    lines_by,
)
from wsrun.report.frames import MISSING, Frame, draw_panels, has_matplotlib

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
TRUTH = {"supported": "yes", "not supported": "no"}


@each_dataset
def retained_by_layer_and_module(
    cells: pl.DataFrame, path: str | Path, question: str, note: str = ""
) -> str:
    """One map per family: row = layer, column = module, number = 100 * retained; datasets apart.

    `cells` has dataset, family, layer, module ("q" or "q_proj"), retained; a null or absent cell is
    hatched. n, clusters, seeds, alpha, model, behaviour enter the caption where it has them.
    """
    figure = "retained_by_layer_and_module"
    columns = ("dataset", "family", "layer", "module", "retained")
    check_table(figure, cells, columns, (*SAME_RUN, "alpha"))
    cells = cells.with_columns(pl.col("module").str.strip_suffix("_proj"))
    cells = cells.drop_nulls(["layer", "module"])
    check_table(figure, cells, what=" with layer and module")
    lines = lines_by(figure, cells, ["family", "layer", "module"])
    families, modules = in_order(cells["family"], FAMILIES), in_order(cells["module"], MODULES)
    layers, shares = sorted(cells["layer"].unique()), cells["retained"].drop_nulls().to_list()
    lo, hi = max(min([0.0, *shares]), -0.5), min(max([0.1, *shares]), 1.5)
    cols, cell = (3, 0.26) if len(layers) <= 12 else (4, 0.16)
    if not has_matplotlib():
        return MISSING
    colour = colour_scale(lo, hi)

    def panel(ax: Any, family: str) -> None:
        for y, layer in enumerate(layers):
            for x, module in enumerate(modules):
                share = lines.get((family, layer, module), {}).get("retained")
                shown = (None, "") if share is None else (colour(share), f"{round(100 * share)}")
                draw_tile(ax, x, y, *shown, min(8.0, 45 * cell))
        name_rows(ax, layers, modules)
        ax.tick_params(axis="x", rotation=90)
        ax.set_title(in_words(family))

    caption = (
        f"{MEANING}Numbers: kept by one module of one layer alone, in % of the whole's. Hatched: "
        f"the family does not change it, or its whole effect is not clear of 0. {facts_of(cells)}"
    )
    height = -(-len(families) // cols) * (0.35 + cell * len(layers)) + 0.6
    frame = Frame(question, "module", "layer (0 is the first)", caption + note, height)
    scale = [Look(f"{100 * s:.0f} % kept", DARK, "s", colour(s)) for s in (lo, (lo + hi) / 2, hi)]
    return draw_panels(path, frame, panel, families, min(cols, len(families)), scale)


def effects_by_layer(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    most_flagged: float = 1.0,
    note: str = "",
) -> str:
    """One map per method, row = layer, column = coefficient, number = effect, mean of data sets.

    Lines are those of variants "x@layer 3" or "x@all layers" with coefficients above 0. A cell
    with a larger share of flagged rows than `most_flagged` is hatched, the largest effect of the
    others framed, and one without a line is empty.
    """
    figure = "effects_by_layer"
    table = table.filter(pl.col("variant").str.contains("@"), pl.col("alpha") > 0)
    columns = ("dataset", "variant", "alpha", "effect", "flagged_share")
    check_table(figure, table, columns, SAME_RUN)
    lines_by(figure, table, ["dataset", "variant", "alpha"])
    means = table.group_by("variant", "alpha", maintain_order=True).agg(
        effect=pl.col("effect").mean(), flagged=pl.col("flagged_share").max()
    )
    maps: dict[str, dict[tuple[str, float], tuple[float, bool]]] = {}
    for variant, alpha, effect, flagged in means.iter_rows():
        method, _, place = variant.partition("@")
        cell = effect, flagged <= most_flagged
        maps.setdefault(method, {})[place.removeprefix("layer "), alpha] = cell
    places = {place for cells in maps.values() for place, _ in cells}
    rows = sorted(places, key=lambda r: (not r.isdigit(), int(r) if r.isdigit() else 0))
    coefficients = sorted(means["alpha"].unique())
    shown = [effect for cells in maps.values() for effect, allowed in cells.values() if allowed]
    lo, hi = min([0.0, *shown]), max([0.1, *shown])
    if not has_matplotlib():
        return MISSING
    colour = colour_scale(lo, hi)

    def panel(ax: Any, method: str) -> None:
        effects = {key: effect for key, (effect, allowed) in maps[method].items() if allowed}
        best = max(effects, key=lambda key: effects[key], default=None)
        for key, (effect, allowed) in maps[method].items():
            x, y = coefficients.index(key[1]), rows.index(key[0])
            draw_tile(ax, x, y, colour(effect) if allowed else None, f"{effect:.1f}", 6.0)
            if key == best:
                edge = {"facecolor": "none", "edgecolor": COLOURS[6], "linewidth": 1.6}
                ax.bar(x, 1, 1, y - 0.5, zorder=4, **edge)
        name_rows(ax, [r.partition(" ")[0] for r in rows], [f"{c:g}" for c in coefficients])
        ax.set_title(in_words(method))

    caption = (
        f"{EFFECT}Numbers: its mean over data sets, in nats. Framed: the largest of a method. "
        f"Hatched: more than {most_flagged:.0%} of the rows have little mass on Yes and No, so it "
        f"is not chosen. Empty: not tried. {facts_of(table.drop('alpha'))}"
    )
    cols = min(3, len(maps))
    height = -(-len(maps) // cols) * (0.4 + 0.19 * len(rows)) + 0.4
    frame = Frame(question, "coefficient", "layer (0 is the first)", caption + note, height)
    scale = [Look(f"{e:+.1f} nats", DARK, "s", colour(e)) for e in (lo, (lo + hi) / 2, hi)]
    return draw_panels(path, frame, panel, list(maps), cols, scale)


@each_dataset
def confusion(
    table: pl.DataFrame, path: str | Path, question: str, words: Words | None = None, note: str = ""
) -> str:
    """Row = plant, column = rule, text = supported / refuted / undetermined, tint = agreement.

    `expected` is "supported" (agrees: supported), "not supported" (agrees: the others) or null
    (hatched); a column `agree` counts the agreeing runs instead, as some of `supported` may name
    the wrong part, `misplaced`. `words` maps plants and rules to words, in the table's order.
    """
    outcomes = ("supported", "refuted", "undetermined")
    check_table("confusion", table, ("plant", "rule", *outcomes, "seeds", "expected"))
    check_values("confusion", table["expected"], TRUTH)
    lines = lines_by("confusion", table, ["plant", "rule"])
    plants, rules = (list(dict.fromkeys(table[c].to_list())) for c in ("plant", "rule"))

    def panel(ax: Any, _: str) -> None:
        for (plant, rule), line in lines.items():
            counts, truth = [line[o] for o in outcomes], line["expected"]
            right = counts[0] if truth == "supported" else sum(counts[1:])
            right = right if line.get("agree") is None else line["agree"]
            colour = agreement_colour(right / sum(counts)) if truth and sum(counts) else None
            text = " / ".join(map(str, counts)) + f"\ntruth: {TRUTH.get(truth, 'open')}"
            text += f"\n{line['misplaced']} misplaced" if line.get("misplaced") else ""
            draw_tile(ax, rules.index(rule), plants.index(plant), colour, text, 8.0)
        across = [fill(in_words(rule, words), max(8, 75 // len(rules))) for rule in rules]
        name_rows(ax, [fill(in_words(plant, words), 18) for plant in plants], across)

    caption = (
        "Each cell: in how many runs the rule said supported / refuted / undetermined, and whether "
        "its claim is true there by construction (open: neither). Tint: share of the runs that "
        "agree; where the claim is not true, refuted and undetermined both agree. "
    )
    if any(line.get("misplaced") for line in lines.values()):
        caption += "Misplaced: supported, but of another part than the planted one; disagrees. "
    caption, height = caption + facts_of(table) + note, 0.5 + 0.48 * len(plants)
    frame = Frame(question, "decision rule", "what was planted", caption, height)
    shares = (1.0, 0.5, 0.0)
    tints = [Look(f"{100 * s:.0f} % agree", DARK, "s", agreement_colour(s)) for s in shares]
    return draw_panels(path, frame, panel, ["all"], 1, tints)

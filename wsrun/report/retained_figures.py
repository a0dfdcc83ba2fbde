"""Figures of the share of the effect that a part of dW keeps: by family, by slice, by energy.

Each takes a summary table, its path (the suffix is replaced) and the question as title, writes PNG
and SVG beside the table, and returns a sentence to print: what was written, or that matplotlib, an
optional extra, is missing. Raises ValueError for a table of several models, behaviours, prompt
styles or doses.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wsrun.report.drawing import (
    COLOURS,
    CONTROL,
    DARK,
    KEPT,
    REMOVED,
    Estimate,
    Look,
    assign_looks,
    draw_estimate,
    draw_null_band,
    draw_thresholds,
    name_rows,
)
from wsrun.report.figure_tables import (
    BARS,
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
)
from wsrun.report.frames import Frame, draw_panels
from wsrun.report.shares import RETAINED, SHARE_LABEL, null_bands, read_shares, share_limits
from wsrun.report.wording import dataset_names


def retained_by_family(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    variants: Words,
    whole: str,
    thresholds: Sequence[float] = (0.7, 0.3),
    k: int | None = None,
    note: str = "",
) -> str:
    """One panel per dataset, x = families, y = `retained` with its interval, one mark a variant.

    `variants` maps names to words; "kept: x" and "removed: x" look alike, the removed one hollow.
    `whole` is the variant that counts as 1; its effect is printed. `k` picks the lines of one k and
    those without. `note` ends the caption. Raises ValueError where the table lacks what is asked.
    """
    shares = read_shares("retained_by_family", table, variants, whole, thresholds, k)
    looks, step = assign_looks(variants), 0.84 / len(variants)
    titles = dataset_names(table)

    def panel(ax: Any, dataset: str) -> None:
        for x, family in enumerate(shares.families):
            ends = shares.bands.get((dataset, family))
            draw_null_band(ax.fill_between, (x - 0.46, x + 0.46), ends)
            for i, (variant, look) in enumerate(looks.items()):
                estimate = Estimate.of(shares.lines.get((dataset, family, variant)), *RETAINED)
                at = x + (i - (len(looks) - 1) / 2) * step
                draw_estimate(ax, at, estimate, look, shares.limits)
        names = [f"{in_words(f)}\n{shares.effect(dataset, f, whole)}" for f in shares.families]
        ax.set_xticks(range(len(names)), names)
        ax.tick_params(axis="x", length=0)
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=shares.limits)
        ax.set_title(f"data set: {titles[dataset]}")
        draw_thresholds(ax.axhline, thresholds)

    across = "adapter family; below it, the effect of its whole weight change (nats)"
    height = 2.6 * len(shares.datasets)
    frame = Frame(question, across, SHARE_LABEL, shares.caption + note, height)
    return draw_panels(path, frame, panel, shares.datasets, 1, looks.values())


@each_dataset
def retained_by_slice(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    names: Words,
    whole: str,
    thresholds: Sequence[float] = (0.7, 0.3),
    k: int | None = None,
    note: str = "",
) -> str:
    """One panel per family, y = slices in their order, x = `retained`; datasets apart.

    `names` maps slices to words; those of x are the variants keep_x (filled), drop_x (hollow) and,
    where the table has it, control_x (grey). Otherwise as `retained_by_family`.
    """
    looks = {
        "keep": (-0.25, Look(KEPT + "the slice alone", COLOURS[0], "o", COLOURS[0])),
        "drop": (0.25, Look(REMOVED + "all but the slice", COLOURS[6], "s", "white")),
        "control": (0.0, CONTROL),
    }
    known = set(table["variant"]) if "variant" in table.columns else set()
    rows = {f"{part}_{name}": (y, part) for y, name in enumerate(names) for part in looks}
    rows = {v: (y, part) for v, (y, part) in rows.items() if part != "control" or v in known}
    shares = read_shares("retained_by_slice", table, rows, whole, thresholds, k)

    def panel(ax: Any, family: str) -> None:
        key = shares.datasets[0], family
        draw_null_band(ax.fill_betweenx, (-0.5, len(names) - 0.5), shares.bands.get(key))
        for variant, (y, part) in rows.items():
            (offset, look), line = looks[part], shares.lines.get((*key, variant))
            if line or part != "control":
                estimate = Estimate.of(line, *RETAINED)
                draw_estimate(ax, y + offset, estimate, look, shares.limits, sideways=True)
        name_rows(ax, [*names.values()])
        edges = [y - 0.5 for y in range(1, len(names))]
        ax.hlines(edges, *shares.limits, "#E4E4E4", linewidth=0.5)
        ax.set(xlim=shares.limits, xticks=(0, 1))
        ax.set_title(f"{in_words(family)} ({shares.effect(*key, whole)})", fontsize=8.5)
        draw_thresholds(ax.axvline, thresholds)

    caption = f"{shares.caption}In brackets: effect of the whole weight change, in nats. {note}"
    cols = min(4, len(shares.families))
    height = -(-len(shares.families) // cols) * (0.35 + 0.19 * len(names)) + 0.2
    drawn = {part for _, part in rows.values()}
    shown = [look for part, (_, look) in looks.items() if part in drawn]
    frame = Frame(question, SHARE_LABEL, "", caption, height)
    return draw_panels(path, frame, panel, shares.families, cols, shown)


@each_dataset
def retained_by_energy(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    by: str,
    words: Words | None = None,
    thresholds: Sequence[float] = (0.7, 0.3),
    note: str = "",
) -> str:
    """One panel per family, x = `energy`, y = `retained`, colour and marker = `by`; datasets apart.

    Column `keep_or_drop` says keep (filled), drop (hollow), control (grey), or null: not drawn.
    `words` maps the values of `by` to words. `energy` may be called `energy_frac`.
    """
    figure, table = "retained_by_energy", table.rename({"energy_frac": "energy"}, strict=False)
    columns = ("dataset", "family", "variant", "energy", "keep_or_drop", by, *RETAINED)
    check_table(figure, table, columns, (*SAME_RUN, "alpha"))
    check_values(figure, table["keep_or_drop"], ("keep", "drop", "control"))
    table = table.with_columns(pl.col(by).cast(pl.String).fill_null("other"))
    parts = table.filter(pl.col("keep_or_drop").is_not_null())
    drawn = parts.drop_nulls(["retained", "energy"]).sort("family", "variant")
    check_table(figure, drawn, what=" with keep_or_drop, energy and retained")
    kinds = drawn.filter(pl.col("keep_or_drop") != "control")[by].unique().sort().to_list()
    looks = assign_looks({kind: in_words(kind, words) for kind in kinds})
    families, (bands, null_words) = in_order(drawn["family"], FAMILIES), null_bands(table)
    (limits, outside), cols = share_limits(drawn, bands, thresholds), min(3, len(families))

    def panel(ax: Any, family: str) -> None:
        ends = bands.get((drawn["dataset"][0], family))
        draw_null_band(ax.fill_between, (-0.06, 1.06), ends)
        ax.plot([0, 1], [0, 1], ":", color=DARK, linewidth=1, label="effect kept = energy")
        for line in drawn.filter(pl.col("family") == family).iter_rows(named=True):
            part = line["keep_or_drop"]
            look = CONTROL if part == "control" else looks[line[by]]
            look = look._replace(face="white") if part == "drop" else look
            draw_estimate(ax, line["energy"], Estimate.of(line, *RETAINED), look, limits)
        ax.set(xlim=(-0.06, 1.06), ylim=limits, title=in_words(family))
        draw_thresholds(ax.axhline, thresholds)

    caption = (
        f"{MEANING}On the dotted diagonal a part keeps as much effect as it has energy; above it, "
        f"it carries more. {BARS}{null_words}{facts_of(drawn)}{outside}"
    )
    if left_out := len(parts) - len(drawn):
        caption += f"Left out, as the effect of the whole is not clear of 0: {left_out} lines. "
    roles = [Look(KEPT + "the part alone", DARK, "o", DARK)]
    roles += [Look(REMOVED + "all but the part", DARK, "o", "white"), CONTROL]
    across, rows = "energy (share of the whole's squared norm)", -(-len(families) // cols)
    height = max(2.9, rows * 2.0)  # the label of a single row needs more than the row
    frame = Frame(question, across, SHARE_LABEL, caption + note, height + 0.2)
    return draw_panels(path, frame, panel, families, cols, [*looks.values(), *roles])

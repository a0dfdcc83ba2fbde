"""Figures of summary tables: PNG and SVG beside the table, each readable without anything else.

points, slices, heat, scatter and confusion take a table, its path (the suffix is replaced) and the
question as title, write both files, and return a sentence to print: what was written, or that
matplotlib, an optional extra, is missing. All but confusion raise ValueError for a table of several
models, behaviours, prompt styles or doses. Figures over doses and seeds are in curves.py; how
things look is in page.py.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from textwrap import fill
from typing import Any, Concatenate, NamedTuple, ParamSpec

import polars as pl

from wsrun.report import page
from wsrun.report.page import CONTROL, DARK, KEPT, REMOVED, RETAINED, Look, Page

FAMILIES = {"lora": "LoRA", "dora": "DoRA", "pissa": "PiSSA", "delora": "DeLoRA"}
FAMILIES |= {"oft": "OFT", "boft": "BOFT", "ia3": "IA³"}
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
ALIKE = ("model", "behaviour", "prompt_style", "alpha")  # one value each within a figure
SHARE = "effect kept (share of the whole's effect)"
EFFECT = (
    "Effect: mean rise, under steering, of the log odds of the answer that shows the behaviour, "
    "over yes/no items. "
)
MEANING = f"{EFFECT}Effect kept: that of a part of the weight change over that of the whole. "
BARS = "Bars: 95 % cluster-bootstrap intervals (cluster: items of one subject). "
ABSENT = "n/a: the family has no such part, or the effect of its whole is not clear of 0. "
TRUTH = {"supported": "yes", "not supported": "no"}
P = ParamSpec("P")
Floats = Sequence[float]
Limits = tuple[float, float]
Words = Mapping[str, str]


class Shares(NamedTuple):
    """Lines by (dataset, family, variant), null bands by (dataset, family), and the rest."""

    at: dict[tuple, dict[str, Any]]
    bands: dict[tuple, Limits]
    datasets: list[str]
    families: list[str]
    limits: Limits
    caption: str

    def effect(self, *key: str) -> str:
        """The effect of a line as text, a dash where there is none."""
        found = self.at.get(key, {}).get("effect")
        return "-" if found is None else f"{found:+.2f}"


def points(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    variants: Words,
    whole: str,
    thresholds: Floats = (0.7, 0.3),
    k: int | None = None,
    note: str = "",
) -> str:
    """One panel per dataset, x = families, y = `retained` with its interval, one mark a variant.

    `variants` maps names to words; "kept: x" and "removed: x" look alike, the removed one hollow.
    `whole` is the variant that counts as 1; its effect is printed. `k` picks the lines of one k and
    those without. `note` ends the caption. Raises ValueError where the table lacks what is asked.
    """
    shares = _shares("points", table, variants, whole, thresholds, k)
    looks, step = page.looks_of(variants), 0.84 / len(variants)

    def panel(ax: Any, dataset: str) -> None:
        for x, family in enumerate(shares.families):
            page.band(ax.fill_between, (x - 0.46, x + 0.46), shares.bands.get((dataset, family)))
            for i, (variant, look) in enumerate(looks.items()):
                at = x + (i - (len(looks) - 1) / 2) * step
                page.mark(ax, at, shares.at.get((dataset, family, variant)), look, shares.limits)
        names = [f"{word_of(f)}\n{shares.effect(dataset, f, whole)}" for f in shares.families]
        ax.set_xticks(range(len(names)), names)
        ax.tick_params(axis="x", length=0)
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=shares.limits, title=f"data set: {dataset}")
        page.dashes(ax.axhline, thresholds)

    across = "adapter family; below it, the effect of its whole weight change (nats)"
    frame = Page(question, across, SHARE, shares.caption + note, 2.6 * len(shares.datasets))
    return page.paint(path, frame, panel, shares.datasets, 1, looks.values())


def each_dataset(
    figure: Callable[Concatenate[pl.DataFrame, str | Path, P], str],
) -> Callable[Concatenate[pl.DataFrame, str | Path, P], str]:
    """A figure per dataset; from a table of several, t.parquet gives t.claims.png and so on."""

    @wraps(figure)
    def drawn(table: pl.DataFrame, path: str | Path, *args: P.args, **more: P.kwargs) -> str:
        names = ordered(table["dataset"], ()) if "dataset" in table.columns else []
        if len(names) < 2:
            return figure(table, path, *args, **more)
        paths = {n: Path(path).with_suffix(f".{n.replace('/', '-')}.parquet") for n in names}
        said = [figure(table.filter(dataset=n), paths[n], *args, **more) for n in names]
        return "; ".join(dict.fromkeys(said))

    return drawn


@each_dataset
def slices(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    names: Words,
    whole: str,
    thresholds: Floats = (0.7, 0.3),
    k: int | None = None,
    note: str = "",
) -> str:
    """One panel per family, y = slices in their order, x = `retained`; datasets apart.

    `names` maps slices to words; those of x are the variants keep_x (filled), drop_x (hollow) and,
    where the table has it, control_x (grey). Otherwise as `points`.
    """
    looks = {
        "keep": (-0.25, Look(KEPT + "the slice alone", page.COLOURS[0], "o", page.COLOURS[0])),
        "drop": (0.25, Look(REMOVED + "all but the slice", page.COLOURS[6], "s", "white")),
        "control": (0.0, CONTROL),
    }
    has = set(table["variant"]) if "variant" in table.columns else set()
    at = {f"{part}_{name}": (y, part) for y, name in enumerate(names) for part in looks}
    at = {v: (y, part) for v, (y, part) in at.items() if part != "control" or v in has}
    shares = _shares("slices", table, at, whole, thresholds, k)

    def panel(ax: Any, family: str) -> None:
        key = shares.datasets[0], family
        page.band(ax.fill_betweenx, (-0.5, len(names) - 0.5), shares.bands.get(key))
        for variant, (y, part) in at.items():
            (off, look), line = looks[part], shares.at.get((*key, variant))
            if line or part != "control":
                page.mark(ax, y + off, line, look, shares.limits, flat=True)
        page.lattice(ax, None, [*names.values()])
        edges = [y - 0.5 for y in range(1, len(names))]
        ax.hlines(edges, *shares.limits, "#E4E4E4", linewidth=0.5)
        ax.set(xlim=shares.limits, xticks=(0, 1))
        ax.set_title(f"{word_of(family)} ({shares.effect(*key, whole)})", fontsize=8.5)
        page.dashes(ax.axvline, thresholds)

    caption = f"{shares.caption}In brackets: effect of the whole weight change, in nats. {note}"
    cols = min(4, len(shares.families))
    height = -(-len(shares.families) // cols) * (0.35 + 0.19 * len(names)) + 0.2
    shown = [look for part, (_, look) in looks.items() if part in {p for _, p in at.values()}]
    frame = Page(question, SHARE, "", caption, height)
    return page.paint(path, frame, panel, shares.families, cols, shown)


@each_dataset
def heat(cells: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One map per family: row = layer, column = module, number = 100 * retained; datasets apart.

    `cells` has dataset, family, layer, module ("q" or "q_proj"), retained; a null or absent cell is
    hatched. n, clusters, seeds, alpha, model, behaviour enter the caption where it has them.
    """
    check_table("heat", cells, ("dataset", "family", "layer", "module", "retained"), ALIKE)
    cells = cells.with_columns(pl.col("module").str.strip_suffix("_proj"))
    cells = cells.drop_nulls(["layer", "module"])
    check_table("heat", cells, what=" with layer and module")
    at = by_keys("heat", cells, ["family", "layer", "module"])
    families, modules = ordered(cells["family"], FAMILIES), ordered(cells["module"], MODULES)
    layers, found = sorted(cells["layer"].unique()), cells["retained"].drop_nulls().to_list()
    lo, hi = max(min([0.0, *found]), -0.5), min(max([0.1, *found]), 1.5)
    cols, cell = (3, 0.26) if len(layers) <= 12 else (4, 0.16)
    if not page.available():
        return page.MISSING
    from matplotlib import colormaps

    def colour(share: float) -> tuple[float, ...]:
        return colormaps["cividis"]((share - lo) / (hi - lo))[:3]

    def panel(ax: Any, family: str) -> None:
        for y, layer in enumerate(layers):
            for x, module in enumerate(modules):
                share = at.get((family, layer, module), {}).get("retained")
                shown = (None, "") if share is None else (colour(share), f"{round(100 * share)}")
                page.tile(ax, x, y, *shown, min(8.0, 45 * cell))
        page.lattice(ax, modules, layers)
        ax.tick_params(axis="x", rotation=90)
        ax.set_title(word_of(family))

    caption = (
        f"{MEANING}Numbers: kept by one module of one layer alone, in % of the whole's. Hatched: "
        f"the family does not change it, or its whole effect is not clear of 0. {facts_of(cells)}"
    )
    height = -(-len(families) // cols) * (0.35 + cell * len(layers)) + 0.6
    frame = Page(question, "module", "layer (0 is the first)", caption + note, height)
    scale = [Look(f"{100 * s:.0f} % kept", DARK, "s", colour(s)) for s in (lo, (lo + hi) / 2, hi)]
    return page.paint(path, frame, panel, families, min(cols, len(families)), scale)


@each_dataset
def scatter(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    by: str,
    words: Words | None = None,
    thresholds: Floats = (0.7, 0.3),
    note: str = "",
) -> str:
    """One panel per family, x = `energy`, y = `retained`, colour and marker = `by`; datasets apart.

    Column `keep_or_drop` says keep (filled), drop (hollow), control (grey), or null: not drawn.
    `words` maps the values of `by` to words. `energy` may be called `energy_frac`.
    """
    table = table.rename({"energy_frac": "energy"}, strict=False)
    columns = ("dataset", "family", "variant", "energy", "keep_or_drop", by, *RETAINED)
    check_table("scatter", table, columns, ALIKE)
    _among("scatter", table["keep_or_drop"], ("keep", "drop", "control"))
    table = table.with_columns(pl.col(by).cast(pl.String).fill_null("other"))
    parts = table.filter(pl.col("keep_or_drop").is_not_null())
    drawn = parts.drop_nulls(["retained", "energy"]).sort("family", "variant")
    check_table("scatter", drawn, what=" with keep_or_drop, energy and retained")
    systems = drawn.filter(pl.col("keep_or_drop") != "control")[by].unique().sort().to_list()
    looks = page.looks_of({s: word_of(s, words) for s in systems})
    families, (bands, of_nulls) = ordered(drawn["family"], FAMILIES), _nulls(table)
    (limits, beyond), cols = _limits(drawn, bands, thresholds), min(3, len(families))

    def panel(ax: Any, family: str) -> None:
        page.band(ax.fill_between, (-0.06, 1.06), bands.get((drawn["dataset"][0], family)))
        ax.plot([0, 1], [0, 1], ":", color=DARK, linewidth=1, label="effect kept = energy")
        for line in drawn.filter(pl.col("family") == family).iter_rows(named=True):
            part = line["keep_or_drop"]
            look = CONTROL if part == "control" else looks[line[by]]
            look = look._replace(face="white") if part == "drop" else look
            page.mark(ax, line["energy"], line, look, limits)
        ax.set(xlim=(-0.06, 1.06), ylim=limits, title=word_of(family))
        page.dashes(ax.axhline, thresholds)

    caption = (
        f"{MEANING}On the dotted diagonal a part keeps as much effect as it has energy; above it, "
        f"it carries more. {BARS}{of_nulls}{facts_of(drawn)}{beyond}"
    )
    if left_out := len(parts) - len(drawn):
        caption += f"Left out, as the effect of the whole is not clear of 0: {left_out} lines. "
    roles = [Look(KEPT + "the part alone", DARK, "o", DARK)]
    roles += [Look(REMOVED + "all but the part", DARK, "o", "white"), CONTROL]
    across, rows = "energy (share of the whole's squared norm)", -(-len(families) // cols)
    height = max(2.9, rows * 2.0)  # the label of a single row needs more than the row
    frame = Page(question, across, SHARE, caption + note, height + 0.2)
    return page.paint(path, frame, panel, families, cols, [*looks.values(), *roles])


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
    _among("confusion", table["expected"], TRUTH)
    at = by_keys("confusion", table, ["plant", "rule"])
    plants, rules = (list(dict.fromkeys(table[c].to_list())) for c in ("plant", "rule"))

    def panel(ax: Any, _: str) -> None:
        for (plant, rule), line in at.items():
            counts, truth = [line[o] for o in outcomes], line["expected"]
            right = counts[0] if truth == "supported" else sum(counts[1:])
            right = right if line.get("agree") is None else line["agree"]
            colour = page.blend(right / sum(counts)) if truth and sum(counts) else None
            text = " / ".join(map(str, counts)) + f"\ntruth: {TRUTH.get(truth, 'open')}"
            text += f"\n{line['misplaced']} misplaced" if line.get("misplaced") else ""
            page.tile(ax, rules.index(rule), plants.index(plant), colour, text, 8.0)
        across = [fill(word_of(rule, words), max(8, 75 // len(rules))) for rule in rules]
        page.lattice(ax, across, [fill(word_of(plant, words), 18) for plant in plants])

    caption = (
        "Each cell: in how many runs the rule said supported / refuted / undetermined, and whether "
        "its claim is true there by construction (open: neither). Tint: share of the runs that "
        "agree; where the claim is not true, refuted and undetermined both agree. "
    )
    if any(line.get("misplaced") for line in at.values()):
        caption += "Misplaced: supported, but of another part than the planted one; disagrees. "
    caption, height = caption + facts_of(table) + note, 0.5 + 0.48 * len(plants)
    frame = Page(question, "decision rule", "what was planted", caption, height)
    tints = [Look(f"{100 * s:.0f} % agree", DARK, "s", page.blend(s)) for s in (1.0, 0.5, 0.0)]
    return page.paint(path, frame, panel, ["all"], 1, tints)


def check_table(
    where: str, table: pl.DataFrame, columns: Iterable[str] = (), alike=(), what: str = ""
) -> None:
    """Refuse a table that lacks columns, has no lines, or several values where one is shown."""
    if lacking := [c for c in columns if c not in table.columns]:
        raise ValueError(f"figures.{where}: the table lacks {lacking}; pass a summary table")
    if table.is_empty():
        raise ValueError(f"figures.{where}: the table has no lines{what}; score first")
    for column in alike:
        if column in table.columns and table[column].n_unique() > 1:
            found = table[column].unique().sort().to_list()
            raise ValueError(
                f"figures.{where}: shows one {column}, found {found}; filter the table first"
            )


def _among(where: str, values: pl.Series, known: Iterable[str]) -> None:
    """Refuse a value, other than null, that is not known."""
    if odd := sorted(set(values.drop_nulls()) - set(known)):
        said = f"{values.name} says {odd}; write {', '.join(known)} or null"
        raise ValueError(f"figures.{where}: {said}")


def by_keys(where: str, table: pl.DataFrame, keys: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """The lines by their keys; refuses two of one key."""
    if len(twice := table.filter(table.select(keys).is_duplicated())):
        raise ValueError(
            f"figures.{where}: several lines of {twice.select(keys).row(0)}; "
            "give k, or filter the table to one of them"
        )
    return {tuple(line[key] for key in keys): line for line in table.iter_rows(named=True)}


def _shares(
    where: str, table: pl.DataFrame, parts: Collection[str], whole: str, t: Floats, k: int | None
) -> Shares:
    """The lines of variants `parts`, checked, with the limits and the caption of their figure."""
    keys = ["dataset", "family", "variant"]
    check_table(where, table, (*keys, "k", "effect", *RETAINED), ALIKE)
    of_k = pl.lit(True) if k is None else pl.col("k").is_null() | (pl.col("k") == k)
    drawn = table.filter(pl.col("variant").is_in([*parts, whole]) & of_k)
    lines = drawn.filter(pl.col("variant").is_in(list(parts)))
    check_table(where, lines, what=f" of {list(parts)}" + ("" if k is None else f" with k = {k}"))
    datasets, families = drawn["dataset"].unique().sort(), ordered(drawn["family"], FAMILIES)
    complete = len(datasets) * len(families) * len(parts)
    bands, note = _nulls(table)
    limits, beyond = _limits(lines, bands, t)
    caption = MEANING + BARS + note
    caption += (ABSENT if len(lines.drop_nulls("retained")) < complete else "") + beyond
    caption += ("" if k is None else f"Size of a subspace: k = {k}. ") + facts_of(drawn)
    return Shares(by_keys(where, drawn, keys), bands, datasets.to_list(), families, limits, caption)


def _nulls(table: pl.DataFrame) -> tuple[dict[tuple, Limits], str]:
    """(lowest, highest) share among the null draws by (dataset, family), and the words for it."""
    of_null = pl.col("variant").str.contains(r"^spectrum_null#\d+$")
    found = table.filter(of_null).drop_nulls("retained").group_by("dataset", "family")
    ends = found.agg(lo=pl.col("retained").min(), hi=pl.col("retained").max(), n=pl.len())
    kind = "null changes (same singular values as the whole, random directions)"
    note = f"Grey band: lowest to highest of {_span(ends['n'])} {kind}. " if len(ends) else ""
    return {(dataset, family): (lo, hi) for dataset, family, lo, hi, _ in ends.iter_rows()}, note


def facts_of(table: pl.DataFrame) -> str:
    """What was measured, from those of its columns that the table has."""
    has, found = set(table.columns), []
    table = table.filter(pl.col("n") > 0) if "n" in has else table  # 0: not scored
    for dataset in table["dataset"].unique().sort() if "dataset" in has else ():
        part = table.filter(pl.col("dataset") == dataset)
        size = f": {_span(part['n'])} items" if "n" in has else ""
        size += f" in {_span(part['clusters'])} clusters" if "clusters" in has else ""
        found.append(f"Data set {dataset}{size}. ")
    words = {"seeds": "Seeds", "alpha": "Dose alpha", "model": "Model", "behaviour": "Behaviour"}
    return "".join(
        found + [f"{word}: {_span(table[c])}. " for c, word in words.items() if c in has]
    )


def _span(values: pl.Series) -> str:
    """48, or 48 to 60 where they differ."""
    found = values.drop_nulls().unique().sort().to_list() or ["unknown"]
    ends = dict.fromkeys(v if isinstance(v, str) else f"{v:g}" for v in (found[0], found[-1]))
    return " to ".join(ends)


def ordered(values: pl.Series, known: Iterable[str]) -> list[str]:
    """The values, known ones first in their order, the others after them by name."""
    found = values.drop_nulls().unique().sort().to_list()
    return [v for v in known if v in found] + [v for v in found if v not in known]


def _limits(lines: pl.DataFrame, bands: Mapping, thresholds: Floats) -> tuple[Limits, str]:
    """A range that holds 0, 1, thresholds, bands and intervals, but nothing beyond -1 to 2; and a
    sentence where a share lies outside."""
    values = [v for c in RETAINED for v in lines[c].drop_nulls()] + [0.0, 1.0, *thresholds]
    values += [end for ends in bands.values() for end in ends]
    limits = max(min(values), -1.0) - 0.06, min(max(values), 2.0) + 0.06
    outside = ~lines["retained"].drop_nulls().is_between(*limits)
    return limits, "A number at the edge: a share beyond the axis. " if outside.any() else ""


def word_of(name: str, words: Words | None = FAMILIES) -> str:
    return words[name] if words and name in words else name.replace("_", " ")

"""Figures of summary tables: PNG and SVG beside the table, each readable without anything else.

points, slices, heat, scatter and confusion take a table, its path (the suffix is replaced) and the
question as title, write both files, and return a sentence to print: what was written, or that
matplotlib, an optional extra, is missing. The same table gives the same bytes. Colours are those of
Okabe & Ito 2008; a marker, a hatch or a number says the same in grey. All but confusion raise
ValueError for a table of several models, behaviours, prompt styles or doses.
"""

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec

import polars as pl

from wscore.store import write_whole

MISSING = "figures need matplotlib: pip install 'wscore[plot]'"
FAMILIES = {"lora": "LoRA", "dora": "DoRA", "pissa": "PiSSA", "delora": "DeLoRA"}
FAMILIES |= {"oft": "OFT", "boft": "BOFT", "ia3": "IA³"}
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = "os^DvPX<"  # one more than colours, so that a pair comes back late
BAND, DARK, FAINT = "#D9D9D9", "#555555", "#8A8A8A"
WRONG, RIGHT = (0.84, 0.37, 0.0), (0.87, 0.93, 0.98)  # vermillion to pale blue, dark to light
WIDTH, EDGE = 6.4, 0.06  # inches: of a page, and of its margin
STYLE: Any = {
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "wscore",  # same figure, same bytes
    "savefig.dpi": 200,
}
RETAINED = ("retained", "retained_lo", "retained_hi")
ALIKE = ("model", "behaviour", "prompt_style", "alpha")  # one value each within a figure
P = ParamSpec("P")
KEPT, REMOVED = "kept: ", "removed: "
SHARE = "effect kept (share of the whole's effect)"
MEANING = (
    "Effect: mean rise, under steering, of the log odds of the answer that shows the behaviour, "
    "over yes/no items. Effect kept: that of a part of the weight change over that of the whole. "
)
BARS = "Bars: 95 % cluster-bootstrap intervals (cluster: items of one subject). "
ABSENT = "n/a: the family has no such part, or the effect of its whole is not clear of 0. "


TRUTH = {"supported": "yes", "not supported": "no"}


class Look(NamedTuple):
    """How a kind of mark is drawn: its words in the legend, its line, marker and filling."""

    label: str
    colour: str
    marker: str
    face: Any


CONTROL = Look("control: random part of the same norm", FAINT, "x", FAINT)


class Shares(NamedTuple):
    """Lines by (dataset, family, variant), null bands by (dataset, family), and the rest."""

    at: dict[tuple, dict[str, Any]]
    bands: dict[tuple, tuple[float, float]]
    datasets: list[str]
    families: list[str]
    limits: tuple[float, float]
    caption: str

    def effect(self, *key: str) -> str:
        """The effect of a line as text, a dash where there is none."""
        found = self.at.get(key, {}).get("effect")
        return "-" if found is None else f"{found:+.2f}"


class Page(NamedTuple):
    """The frame of a figure; `height` is that of its panels, in inches."""

    question: str
    across: str
    up: str
    caption: str
    height: float


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def points(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    variants: Mapping[str, str],
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
    shares = _shares("points", table, variants, whole, thresholds, k)
    looks, step = _looks(variants), 0.84 / len(variants)

    def panel(ax: Any, dataset: str) -> None:
        for x, family in enumerate(shares.families):
            _band(ax.fill_between, (x - 0.46, x + 0.46), shares.bands.get((dataset, family)))
            for i, (variant, look) in enumerate(looks.items()):
                at = x + (i - (len(looks) - 1) / 2) * step
                _mark(ax, at, shares.at.get((dataset, family, variant)), look, shares.limits)
        names = [f"{_word(f)}\n{shares.effect(dataset, f, whole)}" for f in shares.families]
        ax.set_xticks(range(len(names)), names)
        ax.tick_params(axis="x", length=0)
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=shares.limits, title=f"data set: {dataset}")
        _dashes(ax.axhline, thresholds)

    across = "adapter family; below it, the effect of its whole weight change (nats)"
    page = Page(question, across, SHARE, shares.caption + note, 2.6 * len(shares.datasets))
    return _draw(path, page, panel, shares.datasets, 1, looks.values())


def each_dataset(
    figure: Callable[Concatenate[pl.DataFrame, str | Path, P], str],
) -> Callable[Concatenate[pl.DataFrame, str | Path, P], str]:
    """A figure per dataset; from a table of several, t.parquet gives t.claims.png and so on."""

    @wraps(figure)
    def drawn(table: pl.DataFrame, path: str | Path, *args: P.args, **more: P.kwargs) -> str:
        names = _order(table["dataset"], ()) if "dataset" in table.columns else []
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
    names: Mapping[str, str],
    whole: str,
    thresholds: Sequence[float] = (0.7, 0.3),
    k: int | None = None,
    note: str = "",
) -> str:
    """One panel per family, y = slices in their order, x = `retained`; datasets apart.

    `names` maps slices to words; those of x are the variants keep_x (filled), drop_x (hollow) and,
    where the table has it, control_x (grey). Otherwise as `points`.
    """
    looks = {
        "keep": Look(KEPT + "the slice alone", COLOURS[0], "o", COLOURS[0]),
        "drop": Look(REMOVED + "all but the slice", COLOURS[6], "s", "white"),
        "control": CONTROL,
    }
    at = {f"{part}_{name}": (y, part) for y, name in enumerate(names) for part in looks}
    has = set(table["variant"]) if "variant" in table.columns else set()
    at = {v: (y, part) for v, (y, part) in at.items() if part != "control" or v in has}
    shares = _shares("slices", table, at, whole, thresholds, k)

    def panel(ax: Any, family: str) -> None:
        key = shares.datasets[0], family
        _band(ax.fill_betweenx, (-0.5, len(names) - 0.5), shares.bands.get(key))
        for variant, (y, part) in at.items():
            off = {"keep": -0.25, "control": 0.0, "drop": 0.25}[part]
            line = shares.at.get((*key, variant))
            if line or part != "control":
                _mark(ax, y + off, line, looks[part], shares.limits, flat=True)
        _lattice(ax, None, [*names.values()])
        edges = [y - 0.5 for y in range(1, len(names))]
        ax.hlines(edges, *shares.limits, "#E4E4E4", linewidth=0.5)
        ax.set(xlim=shares.limits, xticks=(0, 1))
        ax.set_title(f"{_word(family)} ({shares.effect(*key, whole)})", fontsize=8.5)
        _dashes(ax.axvline, thresholds)

    caption = f"{shares.caption}In brackets: effect of the whole weight change, in nats. {note}"
    cols = min(4, len(shares.families))
    height = -(-len(shares.families) // cols) * (0.35 + 0.19 * len(names)) + 0.2
    page = Page(question, SHARE, "", caption, height)
    shown = [look for part, look in looks.items() if part in {part for _, part in at.values()}]
    return _draw(path, page, panel, shares.families, cols, shown)


@each_dataset
def heat(cells: pl.DataFrame, path: str | Path, question: str, note: str = "") -> str:
    """One map per family: row = layer, column = module, number = 100 * retained; datasets apart.

    `cells` has dataset, family, layer, module ("q" or "q_proj"), retained; a null or absent cell is
    hatched. n, clusters, seeds, alpha, model, behaviour enter the caption where it has them.
    """
    _check("heat", cells, ("dataset", "family", "layer", "module", "retained"))
    _alike("heat", cells, ALIKE)
    cells = cells.with_columns(pl.col("module").str.strip_suffix("_proj"))
    cells = cells.drop_nulls(["layer", "module"])
    _check("heat", cells, (), "with layer and module")
    at = _unique("heat", cells, ["family", "layer", "module"])
    families, modules = _order(cells["family"], FAMILIES), _order(cells["module"], MODULES)
    layers, found = sorted(cells["layer"].unique()), cells["retained"].drop_nulls().to_list()
    lo, hi = max(min([0.0, *found]), -0.5), min(max([0.1, *found]), 1.5)
    cols, cell = (3, 0.26) if len(layers) <= 12 else (4, 0.16)
    if not available():
        return MISSING
    import matplotlib

    def colour(share: float) -> tuple[float, ...]:
        return matplotlib.colormaps["cividis"]((share - lo) / (hi - lo))[:3]

    def panel(ax: Any, family: str) -> None:
        for y, layer in enumerate(layers):
            for x, module in enumerate(modules):
                share = at.get((family, layer, module), {}).get("retained")
                text = "" if share is None else f"{round(100 * share)}"
                _tile(ax, x, y, None if share is None else colour(share), text, min(8.0, 45 * cell))
        _lattice(ax, modules, layers)
        ax.tick_params(axis="x", rotation=90)
        ax.set_title(_word(family))

    caption = (
        f"{MEANING}Numbers: kept by one module of one layer alone, in % of the whole's. Hatched: "
        f"the family does not change it, or its whole effect is not clear of 0. {_facts(cells)}"
    )
    height = -(-len(families) // cols) * (0.35 + cell * len(layers)) + 0.6
    page = Page(question, "module", "layer (0 is the first)", caption + note, height)
    scale = [Look(f"{100 * s:.0f} % kept", DARK, "s", colour(s)) for s in (lo, (lo + hi) / 2, hi)]
    return _draw(path, page, panel, families, min(cols, len(families)), scale)


@each_dataset
def scatter(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    by: str,
    words: Mapping[str, str] | None = None,
    thresholds: Sequence[float] = (0.7, 0.3),
    note: str = "",
) -> str:
    """One panel per family, x = `energy`, y = `retained`, colour and marker = `by`; datasets apart.

    Column `keep_or_drop` says keep (filled), drop (hollow), control (grey), or null: not drawn.
    `words` maps the values of `by` to words. `energy` may be called `energy_frac`.
    """
    table = table.rename({"energy_frac": "energy"}, strict=False)
    _check(
        "scatter", table, ("dataset", "family", "variant", "energy", "keep_or_drop", by, *RETAINED)
    )
    _alike("scatter", table, ALIKE)
    _among("scatter", table["keep_or_drop"], ("keep", "drop", "control"))
    table = table.with_columns(pl.col(by).cast(pl.String).fill_null("other"))
    parts = table.filter(pl.col("keep_or_drop").is_not_null())
    drawn = parts.drop_nulls(["retained", "energy"]).sort("family", "variant")
    _check("scatter", drawn, (), "with keep_or_drop, energy and retained")
    systems = drawn.filter(pl.col("keep_or_drop") != "control")[by].unique().sort().to_list()
    looks = _looks({s: _word(s, words) for s in systems})
    families, bands = _order(drawn["family"], FAMILIES), _bands(table)
    limits, cols = _limits(drawn, bands, thresholds), min(3, len(families))

    def panel(ax: Any, family: str) -> None:
        _band(ax.fill_between, (-0.06, 1.06), bands.get((drawn["dataset"][0], family)))
        ax.plot([0, 1], [0, 1], ":", color=DARK, linewidth=1, label="effect kept = energy")
        for line in drawn.filter(pl.col("family") == family).iter_rows(named=True):
            part = line["keep_or_drop"]
            look = CONTROL if part == "control" else looks[line[by]]
            look = look._replace(face="white") if part == "drop" else look
            _mark(ax, line["energy"], line, look, limits)
        ax.set(xlim=(-0.06, 1.06), ylim=limits, title=_word(family))
        _dashes(ax.axhline, thresholds)

    caption = (
        f"{MEANING}On the dotted diagonal a part keeps as much effect as it has energy; above it, "
        f"it carries more. {BARS}{_band_note(table)}{_facts(drawn)}{_beyond(drawn, limits)}"
    )
    if left_out := len(parts) - len(drawn):
        caption += f"Left out, as the effect of the whole is not clear of 0: {left_out} lines. "
    roles = [Look(KEPT + "the part alone", DARK, "o", DARK)]
    roles += [Look(REMOVED + "all but the part", DARK, "o", "white"), CONTROL]
    across, height = "energy (share of the whole's squared norm)", -(-len(families) // cols) * 2.0
    page = Page(question, across, SHARE, caption + note, height + 0.2)
    return _draw(path, page, panel, families, cols, [*looks.values(), *roles])


def confusion(
    table: pl.DataFrame,
    path: str | Path,
    question: str,
    words: Mapping[str, str] | None = None,
    note: str = "",
) -> str:
    """Row = plant, column = rule, text = supported / refuted / undetermined, tint = agreement.

    `expected` is "supported" (agrees: supported), "not supported" (agrees: the others) or null
    (hatched); a column `agree` counts the agreeing runs instead, as some of `supported` may name
    the wrong part, `misplaced`. `words` maps plants and rules to words, in the table's order.
    """
    outcomes = ("supported", "refuted", "undetermined")
    _check("confusion", table, ("plant", "rule", *outcomes, "seeds", "expected"))
    _among("confusion", table["expected"], TRUTH)
    at = _unique("confusion", table, ["plant", "rule"])
    plants, rules = (list(dict.fromkeys(table[c].to_list())) for c in ("plant", "rule"))

    def panel(ax: Any, _: str) -> None:
        for (plant, rule), line in at.items():
            counts, truth = [line[o] for o in outcomes], line["expected"]
            right = counts[0] if truth == "supported" else sum(counts[1:])
            right = right if line.get("agree") is None else line["agree"]
            colour = _blend(right / sum(counts)) if truth and sum(counts) else None
            text = " / ".join(map(str, counts)) + f"\ntruth: {TRUTH.get(truth, 'open')}"
            text += f"\n{line['misplaced']} misplaced" if line.get("misplaced") else ""
            _tile(ax, rules.index(rule), plants.index(plant), colour, text, 8.0)
        across = [_wrap(_word(rule, words), max(8, 75 // len(rules))) for rule in rules]
        _lattice(ax, across, [_wrap(_word(plant, words), 18) for plant in plants])

    caption = (
        "Each cell: in how many runs the rule said supported / refuted / undetermined, and whether "
        "its claim is true there by construction (open: neither). Tint: share of the runs that "
        "agree; where the claim is not true, refuted and undetermined both agree. "
    )
    if any(line.get("misplaced") for line in at.values()):
        caption += "Misplaced: supported, but of another part than the planted one; disagrees. "
    page = Page(question, "decision rule", "what was planted", caption + _facts(table) + note, 0)
    page = page._replace(height=0.5 + 0.48 * len(plants))
    tints = [Look(f"{100 * s:.0f} % agree", DARK, "s", _blend(s)) for s in (1.0, 0.5, 0.0)]
    return _draw(path, page, panel, ["all"], 1, tints)


def _check(where: str, table: pl.DataFrame, columns: Iterable[str], what: str = "") -> None:
    """Refuse a table that lacks columns or has no lines."""
    if lacking := [c for c in columns if c not in table.columns]:
        raise ValueError(f"figures.{where}: the table lacks {lacking}; pass a summary table")
    if table.is_empty():
        raise ValueError(
            f"figures.{where}: the table has no lines {what}".rstrip() + "; score first"
        )


def _alike(where: str, table: pl.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table with several values in one of these columns."""
    for column in columns:
        if column in table.columns and table[column].n_unique() > 1:
            found = table[column].unique().sort().to_list()
            raise ValueError(
                f"figures.{where}: shows one {column}, found {found}; filter the table first"
            )


def _among(where: str, values: pl.Series, known: Iterable[str]) -> None:
    """Refuse a value, other than null, that is not known."""
    if odd := sorted(set(values.drop_nulls()) - set(known)):
        raise ValueError(
            f"figures.{where}: {values.name} says {odd}; write {', '.join(known)} or null"
        )


def _unique(where: str, table: pl.DataFrame, keys: Sequence[str]) -> dict[tuple, dict[str, Any]]:
    """The lines by their keys; refuses two of one key."""
    if len(twice := table.filter(table.select(keys).is_duplicated())):
        raise ValueError(
            f"figures.{where}: several lines of {twice.select(keys).row(0)}; "
            "give k, or filter the table to one of them"
        )
    return {tuple(line[key] for key in keys): line for line in table.iter_rows(named=True)}


def _shares(
    where: str,
    table: pl.DataFrame,
    variants: Collection[str],
    whole: str,
    thresholds: Sequence[float],
    k: int | None,
) -> Shares:
    """The lines that a figure of `variants` shows, checked, with its limits and caption."""
    keys = ["dataset", "family", "variant"]
    _check(where, table, (*keys, "k", "effect", *RETAINED))
    _alike(where, table, ALIKE)
    of_k = pl.lit(True) if k is None else pl.col("k").is_null() | (pl.col("k") == k)
    drawn = table.filter(pl.col("variant").is_in([*variants, whole]) & of_k)
    parts = drawn.filter(pl.col("variant").is_in(list(variants)))
    _check(where, parts, (), f"of {list(variants)}" + ("" if k is None else f" with k = {k}"))
    bands, facts = _bands(table), ("" if k is None else f"Size of a subspace: k = {k}. ")
    datasets, families = drawn["dataset"].unique().sort(), _order(drawn["family"], FAMILIES)
    complete = len(datasets) * len(families) * len(variants)
    absent = ABSENT if len(parts.drop_nulls("retained")) < complete else ""
    limits = _limits(parts, bands, thresholds)
    caption = MEANING + BARS + _band_note(table) + absent + _beyond(parts, limits)
    caption += facts + _facts(drawn)
    return Shares(_unique(where, drawn, keys), bands, datasets.to_list(), families, limits, caption)


def _draws(table: pl.DataFrame) -> Any:
    """The null draws that have a share, by dataset and family."""
    of_null = pl.col("variant").str.contains(r"^spectrum_null#\d+$")
    return table.filter(of_null).drop_nulls("retained").group_by("dataset", "family")


def _bands(table: pl.DataFrame) -> dict[tuple, tuple[float, float]]:
    """(lowest, highest) share among the null draws, by (dataset, family)."""
    ends = _draws(table).agg(lo=pl.col("retained").min(), hi=pl.col("retained").max())
    return {(dataset, family): (lo, hi) for dataset, family, lo, hi in ends.iter_rows()}


def _band_note(table: pl.DataFrame) -> str:
    counts = _draws(table).len()["len"]
    kind = "null changes (same singular values as the whole, random directions)"
    return "" if counts.is_empty() else f"Grey band: lowest to highest of {_span(counts)} {kind}. "


def _facts(table: pl.DataFrame) -> str:
    """What was measured, from those of its columns that the table has."""
    has, found = set(table.columns), []
    table = table.filter(pl.col("n") > 0) if "n" in has else table  # 0: not scored
    for dataset in table["dataset"].unique().sort() if "dataset" in has else ():
        part = table.filter(pl.col("dataset") == dataset)
        size = f": {_span(part['n'])} items" if "n" in has else ""
        size += f" in {_span(part['clusters'])} clusters" if "clusters" in has else ""
        found.append(f"Data set {dataset}{size}. ")
    words = {"seeds": "Seeds: ", "alpha": "Dose alpha: ", "model": "Model: "}
    words |= {"behaviour": "Behaviour: "}
    return "".join(found + [f"{word}{_span(table[c])}. " for c, word in words.items() if c in has])


def _span(values: pl.Series) -> str:
    """48, or 48 to 60 where they differ."""
    found = values.drop_nulls().unique().sort().to_list() or ["unknown"]
    ends = dict.fromkeys(v if isinstance(v, str) else f"{v:g}" for v in (found[0], found[-1]))
    return " to ".join(ends)


def _order(values: pl.Series, known: Iterable[str]) -> list[str]:
    """The values, known ones first in their order, the others after them by name."""
    found = values.drop_nulls().unique().sort().to_list()
    return [v for v in known if v in found] + [v for v in found if v not in known]


def _limits(
    lines: pl.DataFrame, bands: Mapping[tuple, tuple[float, float]], thresholds: Sequence[float]
) -> tuple[float, float]:
    """A range that holds 0, 1, thresholds, bands and intervals, but nothing beyond -1 to 2."""
    values = [v for c in RETAINED for v in lines[c].drop_nulls()] + [0.0, 1.0, *thresholds]
    values += [end for band in bands.values() for end in band]
    return max(min(values), -1.0) - 0.06, min(max(values), 2.0) + 0.06


def _beyond(lines: pl.DataFrame, limits: tuple[float, float]) -> str:
    outside = ~lines["retained"].drop_nulls().is_between(*limits)
    return "A number at the edge: a share beyond the axis. " if outside.any() else ""


def _word(name: str, words: Mapping[str, str] | None = FAMILIES) -> str:
    return words[name] if words and name in words else name.replace("_", " ")


def _thing(label: str) -> str:
    return label.removeprefix(KEPT).removeprefix(REMOVED)


def _looks(labels: Mapping[str, str]) -> dict[str, Look]:
    """A colour and marker for each thing kept or removed, hollow where it is removed."""
    things = list(dict.fromkeys(map(_thing, labels.values())))
    looks = {}
    for name, label in labels.items():
        i = things.index(_thing(label))
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        looks[name] = Look(label, colour, marker, "white" if label.startswith(REMOVED) else colour)
    return looks


def _mark(
    ax: Any,
    x: float,
    line: Mapping[str, Any] | None,
    look: Look,
    limits: tuple[float, float],
    flat: bool = False,
) -> None:
    """A share with its interval at x, or n/a; one beyond the limits stands at the edge, named."""

    def at(x: Any, y: Any) -> tuple[Any, Any]:
        return (y, x) if flat else (x, y)

    def say(text: str, x: float, y: float, inward: int) -> None:
        side = ("left", "bottom")[not flat] if inward > 0 else ("right", "top")[not flat]
        put = {"ha": side, "va": "center"} if flat else {"ha": "center", "va": side, "rotation": 90}
        put |= {"fontsize": 7, "color": DARK, "textcoords": "offset points"}
        ax.annotate(text, at(x, y), xytext=at(0, inward), **put)

    share, lo, hi = ((line or {}).get(c) for c in RETAINED)
    if share is None:  # n/a once for kept and removed on one line
        return say("n/a", round(x, 0) if flat else x, limits[0], 2)
    if lo is not None and hi is not None:
        ax.plot(*at([x, x], [lo, hi]), color=look.colour, linewidth=1.2)
    y = min(max(share, limits[0]), limits[1])
    _dot(ax, *at([x], [y]), look, markersize=4.5, zorder=3, clip_on=False)
    if y != share:
        say(f"{share:.1f}", x, y, 5 if share < y else -5)


def _dot(ax: Any, x: Sequence[float], y: Sequence[float], look: Look, **more: Any) -> None:
    more |= {"markeredgecolor": look.colour, "markerfacecolor": look.face}
    ax.plot(x, y, look.marker, **more)


def _band(fill: Callable[..., Any], along: Sequence[float], band: Sequence[float] | None) -> None:
    if band is not None:
        fill(along, *band, color=BAND, linewidth=0, zorder=0, label="null changes")


def _dashes(line: Callable[..., Any], thresholds: Sequence[float]) -> None:
    label = "thresholds of the rule: " + " and ".join(f"{t:g}" for t in thresholds)
    for t in thresholds:
        line(t, color=DARK, linewidth=0.8, linestyle="--", zorder=1, label=label)


def _tile(ax: Any, x: int, y: int, colour: Sequence[float] | None, text: str, size: float) -> None:
    """A cell with text in black or white; without a colour it is grey and hatched."""
    face, box, ink = colour, None, "black"
    if colour is None:
        face = "#F2F2F2"
        box = {"facecolor": face, "edgecolor": "none", "pad": 1.5}
        ax.bar(x, 1, 1, y - 0.5, facecolor=face, edgecolor="#BBBBBB", hatch="////", linewidth=0)
    elif sum(c * part for c, part in zip(colour, (0.3, 0.59, 0.11), strict=True)) < 0.46:
        ink = "white"
    fill = "none" if colour is None else face
    ax.bar(x, 1, 1, y - 0.5, facecolor=fill, edgecolor="white", linewidth=1)
    if text:
        put = {"ha": "center", "va": "center", "fontsize": size, "linespacing": 1.3}
        ax.text(x, y, text, color=ink, bbox=box, **put)


def _lattice(ax: Any, columns: Sequence[Any] | None, rows: Sequence[Any]) -> None:
    """Names of rows, the first on top, and of columns where they have names."""
    ax.set(ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(axis="y", length=0)
    if columns is not None:
        ax.set(xlim=(-0.5, len(columns) - 0.5))
        ax.set_xticks(range(len(columns)), columns)
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)


def _blend(share: float) -> tuple[float, ...]:
    """WRONG at 0, RIGHT at 1."""
    return tuple(w + share * (r - w) for w, r in zip(WRONG, RIGHT, strict=True))


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _draw(
    path: str | Path,
    page: Page,
    panel: Callable[[Any, str], None],
    keys: Sequence[str],
    cols: int,
    looks: Iterable[Look],
) -> str:
    """panel(axes, key) for each key, in `cols` columns, framed and saved; the sentence to print."""
    if not available():
        return MISSING
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():  # whatever the user's settings are, and leaving them alone
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        fig = Figure((WIDTH, page.height), layout="constrained")
        FigureCanvasAgg(fig)
        for i, key in enumerate(keys):
            ax = fig.add_subplot(-(-len(keys) // cols), cols, i + 1)
            for look in () if i else looks:
                _dot(ax, [], [], look, label=look.label)
            panel(ax, key)
            if cols > 1:  # names only at the left and lower edge of the grid
                ax.tick_params(labelleft=i % cols == 0, labelbottom=i + cols >= len(keys))
        _frame(fig, page)
        return _save(fig, Path(path), page.question)


def _frame(fig: Any, page: Page) -> None:
    """Title and legend above the panels, axis labels and caption below: strips, in inches."""
    rows = len(textwrap.wrap(page.question, 60))  # of even length: no last word alone
    even = next(w for w in range(1, 61) if len(textwrap.wrap(page.question, w)) <= rows)
    title, caption = _wrap(page.question, even), _wrap(page.caption, 100)
    legend, key = _legend(fig)
    above = 0.12 + 0.2 * len(title.split("\n")) + key
    below = 0.35 + 0.145 * len(caption.split("\n"))
    total, left = above + page.height + below, 0.26 if page.up else EDGE
    fig.set_size_inches(WIDTH, total)
    rect = (left / WIDTH, below / total, 1 - left / WIDTH, page.height / total)
    fig.get_layout_engine().set(rect=rect)

    def put(x: float, y: float, text: str, **look: Any) -> None:
        fig.text(x / WIDTH, y / total, text, **look)

    put(EDGE, total - EDGE, title, va="top", fontsize=12, fontweight="bold")
    put((left + WIDTH) / 2, below, page.across, va="top", ha="center")
    put(EDGE, below + page.height / 2, page.up, rotation=90, va="center")
    put(EDGE, EDGE, caption, va="bottom", fontsize=8.5, color="#222222")
    if legend:
        legend.set_bbox_to_anchor((EDGE / WIDTH, 1 - (above - key) / total), fig.transFigure)
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:  # the solver's last digits differ from run to run
        ax.set_position([round(end, 4) for end in ax.get_position().bounds])


def _legend(fig: Any) -> tuple[Any, float]:
    """One legend of all panels in as few rows as fit, and its height; None and 0 without labels."""
    entries: dict[str, Any] = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    look: dict[str, Any] = {"loc": "upper left", "borderaxespad": 0, "borderpad": 0}
    look |= {"frameon": False, "fontsize": 9, "handletextpad": 0.4, "columnspacing": 1.2}
    for columns in range(len(entries), 0, -1):
        legend = fig.legend(entries.values(), entries, ncols=columns, **look)
        size = legend.get_window_extent()
        if columns == 1 or size.width / fig.dpi < WIDTH - 2 * EDGE:
            return legend, size.height / fig.dpi + 0.1
        legend.remove()
    return None, 0


def _save(fig: Any, path: Path, title: str) -> str:
    """Both files, without dates and versions inside."""
    stamps = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    written = []
    for kind, stamp in stamps.items():
        meta = {"Title": title, **stamp}

        def write(partial: Path, kind: str = kind, meta: dict = meta) -> None:
            fig.savefig(partial, format=kind, metadata=meta)

        written.append(write_whole(path.with_suffix(f".{kind}"), write))
    return "figures {} and {}".format(*written)

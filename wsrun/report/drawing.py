"""Marks on the axes of a figure: points with intervals, bands, dashes, tiles. Frames: frames.py.

Colours are those of Okabe & Ito 2008; a marker, a hatch or a number says the same in grey.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = "os^DvPX<"  # one more than colours, so that a pair comes back late
BAND, DARK, FAINT = "#D9D9D9", "#555555", "#8A8A8A"
WRONG, RIGHT = (0.84, 0.37, 0.0), (0.87, 0.93, 0.98)  # vermillion to pale blue, dark to light
KEPT, REMOVED = "kept: ", "removed: "


class Look(NamedTuple):
    """How a kind of mark is drawn: its words in the legend, its line, marker and filling."""

    label: str
    colour: str
    marker: str
    face: Any

    def draw(self, ax: Any, x: Sequence[float], y: Sequence[float], **more: Any) -> None:
        """Markers at (x, y)."""
        more |= {"markeredgecolor": self.colour, "markerfacecolor": self.face}
        ax.plot(x, y, self.marker, **more)


class Estimate(NamedTuple):
    """A value with its interval; value is None where there is nothing to show."""

    value: float | None = None
    lo: float | None = None
    hi: float | None = None

    @classmethod
    def of(cls, line: Mapping[str, Any] | None, value: str, lo: str, hi: str) -> "Estimate":
        """Three columns of a line of a table; empty without a line."""
        return cls(*((line or {}).get(c) for c in (value, lo, hi)))


CONTROL = Look("control: random part of the same norm", FAINT, "x", FAINT)


def assign_looks(labels: Mapping[str, str]) -> dict[str, Look]:
    """A colour and marker for each thing kept or removed, hollow where it is removed."""
    things = {n: label.removeprefix(KEPT).removeprefix(REMOVED) for n, label in labels.items()}
    order, looks = list(dict.fromkeys(things.values())), {}
    for name, label in labels.items():
        i = order.index(things[name])
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        looks[name] = Look(label, colour, marker, "white" if label.startswith(REMOVED) else colour)
    return looks


def draw_estimate(
    ax: Any,
    at: float,
    estimate: Estimate,
    look: Look,
    limits: tuple[float, float],
    sideways: bool = False,
) -> None:
    """A value with its interval, or n/a; one beyond the limits stands at the edge, as a number.

    It stands at x = at, or at y = at where the values run sideways.
    """

    def place(x: Any, y: Any) -> tuple[Any, Any]:
        return (y, x) if sideways else (x, y)

    def write(text: str, x: float, y: float, inward: int) -> None:
        side = (("right", "left") if sideways else ("top", "bottom"))[inward > 0]
        align = dict(zip(("va", "ha"), place(side, "center"), strict=True))
        look = {"rotation": 0 if sideways else 90, "fontsize": 7, "color": DARK}
        offset = {"xytext": place(0, inward), "textcoords": "offset points"}
        ax.annotate(text, place(x, y), **align, **look, **offset)

    value, lo, hi = estimate
    if value is None:  # n/a once for kept and removed on one line
        return write("n/a", round(at, 0) if sideways else at, limits[0], 2)
    if lo is not None and hi is not None:
        ax.plot(*place([at, at], [lo, hi]), color=look.colour, linewidth=1.2)
    shown = min(max(value, limits[0]), limits[1])
    look.draw(ax, *place([at], [shown]), markersize=4.5, zorder=3, clip_on=False)
    if shown != value:
        write(f"{value:.1f}", at, shown, 5 if value < shown else -5)


def draw_null_band(
    fill: Callable[..., Any], along: Sequence[float], ends: Sequence[float] | None
) -> None:
    """A grey band between `ends`, by fill_between or fill_betweenx; nothing without ends."""
    if ends is not None:
        fill(along, *ends, color=BAND, linewidth=0, zorder=0, label="null changes")


def draw_thresholds(line: Callable[..., Any], thresholds: Sequence[float]) -> None:
    """A dashed line at each threshold, by axhline or axvline."""
    label = "thresholds of the rule: " + " and ".join(f"{t:g}" for t in thresholds)
    for t in thresholds:
        line(t, color=DARK, linewidth=0.8, linestyle="--", zorder=1, label=label)


def draw_tile(
    ax: Any, x: int, y: int, colour: Sequence[float] | None, text: str, size: float
) -> None:
    """A cell with text in black or white; without a colour it is grey and hatched."""
    cell, box, ink = partial(ax.bar, x, 1, 1, y - 0.5), None, "black"
    if colour is None:
        box = {"facecolor": "#F2F2F2", "edgecolor": "none", "pad": 1.5}
        cell(facecolor="#F2F2F2", edgecolor="#BBBBBB", hatch="////", linewidth=0)
    elif sum(c * part for c, part in zip(colour, (0.3, 0.59, 0.11), strict=True)) < 0.46:
        ink = "white"
    cell(facecolor="none" if colour is None else colour, edgecolor="white", linewidth=1)
    if text:
        look = {"ha": "center", "va": "center", "fontsize": size, "linespacing": 1.3}
        ax.text(x, y, text, color=ink, bbox=box, **look)


def name_rows(ax: Any, rows: Sequence[Any], columns: Sequence[Any] | None = None) -> None:
    """Names of rows, the first on top, and of the columns of tiles where they have names."""
    ax.set(ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(axis="y", length=0)
    if columns is not None:
        ax.set(xlim=(-0.5, len(columns) - 0.5))
        ax.set_xticks(range(len(columns)), columns)
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)


def agreement_colour(share: float) -> tuple[float, ...]:
    """WRONG at 0, RIGHT at 1, mixed between."""
    return tuple(w + share * (r - w) for w, r in zip(WRONG, RIGHT, strict=True))


def colour_scale(lo: float, hi: float) -> Callable[[float], tuple[float, ...]]:
    """value -> its colour between lo and hi, dark to light."""
    from matplotlib import colormaps  # an optional extra, asked for only when something is drawn

    return lambda value: colormaps["cividis"]((value - lo) / (hi - lo))[:3]

"""The drawing kit of figures.py: marks, tiles, and the page with its title, legend and caption.

Colours are those of Okabe & Ito 2008; a marker, a hatch or a number says the same in grey. The same
drawing gives the same bytes.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wscore.store import write_whole

MISSING = "figures need matplotlib: pip install 'wscore[plot]'"
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
KEPT, REMOVED = "kept: ", "removed: "


class Look(NamedTuple):
    """How a kind of mark is drawn: its words in the legend, its line, marker and filling."""

    label: str
    colour: str
    marker: str
    face: Any


CONTROL = Look("control: random part of the same norm", FAINT, "x", FAINT)


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


def looks_of(labels: Mapping[str, str]) -> dict[str, Look]:
    """A colour and marker for each thing kept or removed, hollow where it is removed."""
    things = {n: label.removeprefix(KEPT).removeprefix(REMOVED) for n, label in labels.items()}
    order, looks = list(dict.fromkeys(things.values())), {}
    for name, label in labels.items():
        i = order.index(things[name])
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        looks[name] = Look(label, colour, marker, "white" if label.startswith(REMOVED) else colour)
    return looks


def mark(
    ax: Any, x: float, line: Mapping | None, look: Look, limits: tuple[float, float], flat=False
) -> None:
    """A share with its interval at x, or n/a; one beyond the limits stands at the edge, named."""

    def at(x: Any, y: Any) -> tuple[Any, Any]:
        return (y, x) if flat else (x, y)

    def say(text: str, x: float, y: float, inward: int) -> None:
        side = (("right", "left") if flat else ("top", "bottom"))[inward > 0]
        put = dict(zip(("va", "ha"), at(side, "center"), strict=True), rotation=0 if flat else 90)
        put |= {"fontsize": 7, "color": DARK, "textcoords": "offset points"}
        ax.annotate(text, at(x, y), xytext=at(0, inward), **put)

    share, lo, hi = ((line or {}).get(c) for c in RETAINED)
    if share is None:  # n/a once for kept and removed on one line
        return say("n/a", round(x, 0) if flat else x, limits[0], 2)
    if lo is not None and hi is not None:
        ax.plot(*at([x, x], [lo, hi]), color=look.colour, linewidth=1.2)
    y = min(max(share, limits[0]), limits[1])
    dot(ax, *at([x], [y]), look, markersize=4.5, zorder=3, clip_on=False)
    if y != share:
        say(f"{share:.1f}", x, y, 5 if share < y else -5)


def dot(ax: Any, x: Sequence[float], y: Sequence[float], look: Look, **more: Any) -> None:
    more |= {"markeredgecolor": look.colour, "markerfacecolor": look.face}
    ax.plot(x, y, look.marker, **more)


def band(fill: Callable[..., Any], along: Sequence[float], ends: Sequence[float] | None) -> None:
    if ends is not None:
        fill(along, *ends, color=BAND, linewidth=0, zorder=0, label="null changes")


def dashes(line: Callable[..., Any], thresholds: Sequence[float]) -> None:
    label = "thresholds of the rule: " + " and ".join(f"{t:g}" for t in thresholds)
    for t in thresholds:
        line(t, color=DARK, linewidth=0.8, linestyle="--", zorder=1, label=label)


def tile(ax: Any, x: int, y: int, colour: Sequence[float] | None, text: str, size: float) -> None:
    """A cell with text in black or white; without a colour it is grey and hatched."""
    cell, box, ink = partial(ax.bar, x, 1, 1, y - 0.5), None, "black"
    if colour is None:
        box = {"facecolor": "#F2F2F2", "edgecolor": "none", "pad": 1.5}
        cell(facecolor="#F2F2F2", edgecolor="#BBBBBB", hatch="////", linewidth=0)
    elif sum(c * part for c, part in zip(colour, (0.3, 0.59, 0.11), strict=True)) < 0.46:
        ink = "white"
    cell(facecolor="none" if colour is None else colour, edgecolor="white", linewidth=1)
    if text:
        put = {"ha": "center", "va": "center", "fontsize": size, "linespacing": 1.3}
        ax.text(x, y, text, color=ink, bbox=box, **put)


def lattice(ax: Any, columns: Sequence[Any] | None, rows: Sequence[Any]) -> None:
    """Names of rows, the first on top, and of columns where they have names."""
    ax.set(ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(axis="y", length=0)
    if columns is not None:
        ax.set(xlim=(-0.5, len(columns) - 0.5))
        ax.set_xticks(range(len(columns)), columns)
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)


def blend(share: float) -> tuple[float, ...]:
    """WRONG at 0, RIGHT at 1."""
    return tuple(w + share * (r - w) for w, r in zip(WRONG, RIGHT, strict=True))


def paint(
    path: str | Path, page: Page, panel: Callable, keys: Sequence[str], cols: int, looks: Iterable
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
                dot(ax, [], [], look, label=look.label)
            panel(ax, key)
            if cols > 1:  # names only at the left and lower edge of the grid
                ax.tick_params(labelleft=i % cols == 0, labelbottom=i + cols >= len(keys))
        _frame(fig, page)
        return _save(fig, Path(path), page.question)


def _frame(fig: Any, page: Page) -> None:
    """Title and legend above the panels, axis labels and caption below: strips, in inches."""
    rows = len(textwrap.wrap(page.question, 60))  # of even length: no last word alone
    even = next(w for w in range(1, 61) if len(textwrap.wrap(page.question, w)) <= rows)
    title, caption = textwrap.fill(page.question, even), textwrap.fill(page.caption, 100)
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
    """Both files, without dates and versions inside; the sentence that names them."""
    written = []
    for kind, stamp in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        write = partial(fig.savefig, format=kind, metadata={"Title": title, **stamp})
        written.append(write_whole(path.with_suffix(f".{kind}"), write))
    return "figures {} and {}".format(*written)

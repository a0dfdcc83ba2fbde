"""The frame of a figure: panels under a title and legend, over a caption, saved as PNG and SVG.

What stands inside the panels comes from drawing.py. The same drawing gives the same bytes.
"""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wscore.files import write_whole

MISSING = "figures need matplotlib: pip install 'weight-steering[plot]'"
WIDTH, EDGE = 6.4, 0.06  # inches: of a figure, and of its margin
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


class Frame(NamedTuple):
    """Title, axis labels and caption of a figure; `height` is that of its panels, in inches."""

    question: str
    across: str
    up: str
    caption: str
    height: float


def has_matplotlib() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def draw_panels(
    path: str | Path, frame: Frame, panel: Callable, keys: Sequence[str], cols: int, looks: Iterable
) -> str:
    """panel(axes, key) for each key, in `cols` columns, framed and saved; the sentence to print.

    `looks` are those of the legend (`drawing.Look`).
    """
    if not has_matplotlib():
        return MISSING
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():  # whatever the user's settings are, and leaving them alone
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        fig = Figure((WIDTH, frame.height), layout="constrained")
        FigureCanvasAgg(fig)
        for i, key in enumerate(keys):
            ax = fig.add_subplot(-(-len(keys) // cols), cols, i + 1)
            for look in () if i else looks:
                look.draw(ax, [], [], label=look.label)
            panel(ax, key)
            if cols > 1:  # names only at the left and lower edge of the grid
                ax.tick_params(labelleft=i % cols == 0, labelbottom=i + cols >= len(keys))
        _add_texts(fig, frame)
        return _save(fig, Path(path), frame.question)


def _add_texts(fig: Any, frame: Frame) -> None:
    """Title and legend above the panels, axis labels and caption below: strips, in inches."""
    rows = len(textwrap.wrap(frame.question, 60))  # of even length: no last word alone
    even = next(w for w in range(1, 61) if len(textwrap.wrap(frame.question, w)) <= rows)
    title, caption = textwrap.fill(frame.question, even), textwrap.fill(frame.caption, 100)
    legend, legend_height = _legend(fig)
    above = 0.12 + 0.2 * len(title.split("\n")) + legend_height
    below = 0.35 + 0.145 * len(caption.split("\n"))
    total, left = above + frame.height + below, 0.26 if frame.up else EDGE
    fig.set_size_inches(WIDTH, total)
    rect = (left / WIDTH, below / total, 1 - left / WIDTH, frame.height / total)
    fig.get_layout_engine().set(rect=rect)

    def put(x: float, y: float, text: str, **look: Any) -> None:
        fig.text(x / WIDTH, y / total, text, **look)

    put(EDGE, total - EDGE, title, va="top", fontsize=12, fontweight="bold")
    put((left + WIDTH) / 2, below, frame.across, va="top", ha="center")
    put(EDGE, below + frame.height / 2, frame.up, rotation=90, va="center")
    put(EDGE, EDGE, caption, va="bottom", fontsize=8.5, color="#222222")
    if legend:
        top = 1 - (above - legend_height) / total
        legend.set_bbox_to_anchor((EDGE / WIDTH, top), fig.transFigure)
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

"""Console: progress bars, summaries, and how a script starts and ends."""

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import polars as pl
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from wsrun.models.load import keep_freed_memory
from wsrun.report.tables import WRITTEN

# Piped output has no width of its own; 120 columns hold every summary line.
console = Console(width=None if sys.stdout.isatty() else 120)
C = TypeVar("C")


def grid(title: str, heads: Sequence[str], lines: Iterable[Sequence]) -> Table:
    """A table of values: floats with three significant digits, None as a dash."""
    columns = (Column(head, no_wrap=True) for head in heads)
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table(*columns, title=title, title_justify="left", **look)
    for line in lines:
        table.add_row(*(_text(value) for value in line))
    return table


def effects(table: pl.DataFrame, title: str, keys: Sequence[str]) -> Table:
    """Lines of an effect table: its keys, then effect and retained with intervals, and gates."""
    more = [c for c in ("null_percentile", "mass", "flagged_share") if c in table.columns]
    short = {"null_percentile": "null %", "flagged_share": "flagged", "k_over_d": "K/d", "k": "K"}
    spans = ["effect"] + ["retained"] * ("retained" in table.columns)
    heads = [short.get(c, c) for c in (*keys, *spans, *more)]
    lines = (
        [r[k] for k in keys] + [_span(r, s) for s in spans] + [r[c] for c in more]
        for r in table.iter_rows(named=True)
    )
    return grid(title, heads, lines)


def _span(row: dict, name: str) -> str:
    prefix = "" if name == "effect" else f"{name}_"
    lo, hi = row[f"{prefix}lo"], row[f"{prefix}hi"]
    if row[name] is None:
        return "-"
    sign = "+" if name == "effect" else ""
    interval = "" if lo is None else f" [{lo:{sign}.2f}, {hi:{sign}.2f}]"
    return f"{row[name]:{sign}.2f}{interval}"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr; call the yielded function with a short note after each step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


def guarded(main: Callable[[C], None], config: type[C]) -> None:
    """Parse flags into `config`, run `main`, and end every refusal as one sentence, exit code 1.

    A ValueError is a refusal: its message goes to stderr. Ctrl-C ends with exit code 130 and says
    which tables were written before it. Any other exception is a defect and keeps its traceback.
    """
    doc = main.__globals__.get("__doc__") or ""
    # a blank line before each label, or the help would run them together
    doc = re.sub(r"\n(?=(Prediction|Rule|Differences):)", "\n\n", doc)
    cfg = tyro.cli(config, description=doc)
    # neither is for the user: BOFT's missing CUDA extension, and a rename inside transformers
    warnings.filterwarnings("ignore", module=r"peft\.tuners\.boft")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    keep_freed_memory()
    WRITTEN.clear()
    try:
        main(cfg)
    except ValueError as error:
        message = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        names = ", ".join(path.name for path in WRITTEN)
        said = f"stopped after {names}" if names else "stopped; no table was written"
        if hasattr(cfg, "parts"):
            said += ", what was scored is kept and the same command goes on from there"
        Console(stderr=True, soft_wrap=True).print(said)
        sys.exit(130)

"""Console: progress, and tables of values. Nothing printed is read as markup.

Tables wrap inside their cells where the terminal is narrow. Where the output is no terminal they
have 120 columns, or COLUMNS, and sentences are left to whatever shows them.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

WIDTH = int(os.environ.get("COLUMNS") or 120)  # of tables where the output is no terminal
EVERY = 30.0  # seconds between two lines of progress where there is no terminal
TERMINAL = sys.stdout.isatty()
PLAIN: dict[str, Any] = {"markup": False, "emoji": False}  # names of users stay as they are
console = Console(width=None if TERMINAL else WIDTH, soft_wrap=not TERMINAL, **PLAIN)


def strong(text: str) -> Text:
    """The text in bold."""
    return Text(text, "bold")


def grid(title: str, heads: Sequence[str], lines: Iterable[Sequence]) -> Table:
    """A table of values: floats with three significant digits, None as a dash.

    One that is wider than the console has narrow gaps, and cells of several lines.
    """
    cells = [[_text(value) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    gap = 1 if sum(widths) + 2 * len(widths) <= console.width else 0
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, gap, 0, 0), "pad_edge": False}
    columns = (Column(head, overflow="fold") for head in heads)
    table = Table(*columns, title=title, title_justify="left", **look)
    for line in cells:
        table.add_row(*line)
    return table


def effects(table: pl.DataFrame, title: str, keys: Sequence[str]) -> Table:
    """Lines of an effect table: keys, effect and retained with intervals, what is known of rows."""
    names = ("right", "null_percentile", "mass", "flagged_share")
    gates = [c for c in names if c in table.columns and table[c].is_not_null().any()]
    short = {"null_percentile": "null %", "flagged_share": "flagged", "k_over_d": "K/d", "k": "K"}
    spans = ["effect"] + ["retained"] * ("retained" in table.columns)
    heads = [short.get(c, c) for c in (*keys, *spans, *gates)]
    lines = (
        [r[k] for k in keys] + [_estimate(r, s) for s in spans] + [r[c] for c in gates]
        for r in table.iter_rows(named=True)
    )
    return grid(title, heads, lines)


def _estimate(row: dict, name: str) -> str:
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
    """Progress on stderr; call the yielded function with a short note after each step.

    On a terminal a bar, which goes when all is done; elsewhere a line at once, one every EVERY
    seconds, and one at the end.
    """
    if not sys.stderr.isatty():
        with _progress_lines(title, total) as step:
            yield step
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True, **PLAIN), transient=True) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda note: bar.update(task, advance=1, note=note)


@contextmanager
def _progress_lines(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """scoring: 120 of 808 done, about 3 min left (lora-s0): lines for a file, or for another tool.

    What is left is told from the steps since the line before: the first ones may only be read from
    a cache.
    """
    done, note, start, stop = 0, "", time.monotonic(), Event()

    def write(text: str) -> None:
        try:
            print(f"{title}: {text}", file=sys.stderr, flush=True)
        except OSError:
            silence(sys.stderr)

    def step(text: str) -> None:
        nonlocal done, note
        done, note = done + 1, text

    def report() -> None:
        before, since = 0, start
        while not stop.wait(EVERY):
            now, steps = time.monotonic(), done - before
            rest = (now - since) / steps * (total - done) if steps else None
            left = "" if rest is None else f", about {duration(rest)} left"
            write(f"{done} of {total} done{left}" + (f" ({note})" if note else ""))
            if steps:
                before, since = done, now

    write(f"0 of {total} done")
    thread = Thread(target=report, daemon=True)
    thread.start()
    try:
        yield step
    finally:
        stop.set()
        thread.join()
    write(f"{done} of {total} done in {duration(time.monotonic() - start)}")


def silence(stream: Any) -> None:
    """Let a stream that cannot be written write to nowhere, also when the process ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def duration(seconds: float) -> str:
    """40 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

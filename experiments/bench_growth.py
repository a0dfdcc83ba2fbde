"""How does the time of a sweep grow with the number of variants and of rows?

Question:   is it linear in both, and what does one more variant, or one more row, cost?
Prediction: linear, since every variant is one pass over one batch plan from its first layer on.
Rule:       reported, not judged: least-squares slope, and the largest deviation from the line.

    python experiments/bench_growth.py

Variants are spectrum nulls of the organism's LoRA dW, all of them different, at alpha = 1; rows are
the first of its held-out claims and dilemmas, mixed. CPU seconds of one thread, after one warm-up.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wscore import DeltaLike, spectrum_null
from wsrun.adapters.extract import pair_deltas
from wsrun.data.items import Item, load_items
from wsrun.models.load import limit_threads, load_model
from wsrun.report import page
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, plain, provenance, write_table
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.study.session import draw

NAME = "bench_growth"


@dataclass(frozen=True)
class Config:
    """Options of bench_growth."""

    variants: tuple[int, ...] = (5, 10, 20, 40)
    """numbers of variants, on all rows"""
    rows: tuple[int, ...] = (20, 40, 80, 160)
    """numbers of rows, under ten variants"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """Time a sweep at every size, fit a line to each series, print its slope."""
    if len(cfg.variants) < 2 or len(cfg.rows) < 2 or min(*cfg.variants, *cfg.rows) < 1:
        raise ValueError("bench: --variants and --rows need two sizes or more, each 1 or more")
    check_writable(cfg.out)
    model, tok = load_model("data/organism")
    limit_threads(model)
    items = load_items("data/organism", "test")
    items = [i for pair in zip(items[:80], items[80:], strict=True) for i in pair]
    if max(cfg.rows) > len(items):
        raise ValueError(f"bench: --rows {max(cfg.rows)} asked; there are {len(items)}")
    dW = pair_deltas(model, "data/organism/adapters/lora-s0").dW
    nulls = [spectrum_null(dW, i) for i in range(max(*cfg.variants, 10))]
    sizes = [("variants", n, n, max(cfg.rows)) for n in cfg.variants]
    sizes += [("rows", n, 10, n) for n in cfg.rows]
    lines = []
    with progress("sweeps", len(sizes) + 1) as step:
        seconds(model, tok, items[:20], nulls[:2])
        step("warm-up")
        for series, n, variants, rows in sizes:
            took = seconds(model, tok, items[:rows], nulls[:variants])
            lines.append({"series": series, "n": n, "variants": variants, "rows": rows, "s": took})
            step(f"{variants} variants, {rows} rows")
    table = pl.DataFrame(lines)
    path = write_table(table, cfg.out / f"{NAME}.parquet", provenance(plain(asdict(cfg))))
    console.print(grid("time of a sweep", ("series", "variants", "rows", "seconds"), table.select(
        "series", "variants", "rows", "s").iter_rows()))  # fmt: skip
    for (series,), part in table.group_by("series", maintain_order=True):
        slope, start, off = line(part["n"].to_numpy(), part["s"].to_numpy())
        console.print(
            f"{series}: {1000 * slope:.1f} ms each, {start:.2f} s to start, "
            f"at most {100 * off:.0f} % off the line"
        )
    draw(picture, table, path)
    console.print(f"table {path}")


def picture(table: pl.DataFrame, path: Path) -> str:
    """Both series with their lines."""

    def panel(ax: Any, series: str) -> None:
        part = table.filter(series=series)
        n, s = part["n"].to_numpy(), part["s"].to_numpy()
        slope, start, _ = line(n, s)
        ax.plot([0, max(n)], [start, start + slope * max(n)], color=page.DARK, linewidth=1)
        page.dot(ax, n.tolist(), s.tolist(), looks[series], markersize=5)
        other = "rows" if series == "variants" else "variants"
        fixed = f"{part[other][0]} {other}"
        ax.set(xlim=(0, 1.05 * max(n)), ylim=(0, 1.1 * max(table["s"])))
        ax.set_title(f"{series}, {fixed}: {1000 * slope:.0f} ms each")

    looks = page.looks_of({"variants": "a sweep of n variants", "rows": "a sweep over n rows"})
    caption = (
        "CPU seconds of one thread on the embedded model, whose layers 2 to 4 of 6 every variant "
        "changes. Lines: least squares. "
    )
    question = "How does the time of a sweep grow?"
    frame = page.Page(question, "number n of variants, of rows", "seconds", caption, 2.6)
    return page.paint(path, frame, panel, list(looks), 2, looks.values())


def seconds(model, tok, items: list[Item], nulls: Sequence[DeltaLike]) -> float:
    """CPU seconds of one sweep."""
    context = {"experiment": NAME, "model": "organism", "behaviour": "honest"}
    variants = [Variant(f"null#{i:02d}", d) for i, d in enumerate(nulls)]
    start = time.process_time()
    sweep(model, tok, items, variants, (1.0,), context=context)
    return time.process_time() - start


def line(n: np.ndarray, s: np.ndarray) -> tuple[float, float, float]:
    """(slope, value at 0, largest |s - line| / s) of the least-squares line."""
    slope, start = np.polyfit(n, s, 1)
    return float(slope), float(start), float(np.abs((slope * n + start - s) / s).max())


if __name__ == "__main__":
    guarded(main, Config)

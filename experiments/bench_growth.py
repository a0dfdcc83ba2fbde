"""How does the time of a sweep grow with the number of variants and of rows?

Question:   is it linear in both, and what does one more variant, or one more row, cost?
Prediction: linear, since every variant is one pass over one batch plan from its first layer on.
Rule:       reported, not judged: least-squares slope, and the largest deviation from the line.

    python experiments/bench_growth.py

Variants are spectrum nulls of the organism's LoRA dW, all of them different, at alpha = 1; rows are
the first of its held-out claims and dilemmas, mixed. CPU seconds of one thread, after one warm-up.
"""

from wsrun.script import guarded

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wscore import DeltaLike, spectrum_null
from wsrun.adapters.extract import pair_deltas
from wsrun.data.items import Item
from wsrun.data.source import load_items
from wsrun.models.load import limit_threads, load_model
from wsrun.report.console import console, progress
from wsrun.report.tables import check_writable
from wsrun.score.sweep import sweep
from wsrun.study.profile import conclude, line_figure, line_fit, save_lines, show, timed

NAME = "bench_growth"
CAPTION = (
    "CPU seconds of one thread on the embedded model, whose layers 2 to 4 of 6 every variant "
    "changes. Lines: least squares. "
)


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
        raise ValueError("bench: --variants and --rows need at least two sizes, each at least 1")
    check_writable(cfg.out)
    model, tok = load_model("data/organism")
    limit_threads(model)
    items = load_items("data/organism", "test")
    items = [i for pair in zip(items[:80], items[80:], strict=True) for i in pair]
    if max(cfg.rows) > len(items):
        raise ValueError(f"bench: --rows must be at most {len(items)}, got {max(cfg.rows)}")
    dW = pair_deltas(model, "data/organism/adapters/lora-s0").dW
    nulls = [spectrum_null(dW, i) for i in range(max(*cfg.variants, 10))]
    sizes = [("variants", n, n, max(cfg.rows)) for n in cfg.variants]
    sizes += [("rows", n, 10, n) for n in cfg.rows]
    lines = []
    with progress("sweeps", len(sizes) + 1) as step:
        seconds(model, tok, items[:20], nulls[:2])
        step("warm-up")
        for series, n, variants, rows in sizes:
            s = seconds(model, tok, items[:rows], nulls[:variants])
            lines.append(
                {"series": series, "n": n, "variants": variants, "rows": rows, "seconds": s}
            )
            step(f"{variants} variants, {rows} rows")
    table, path = save_lines(cfg, NAME, lines)
    show("time of a sweep", table.drop("n"))
    for (series,), part in table.group_by("series", maintain_order=True):
        slope, start, off = line_fit(part["n"], part["seconds"])
        console.print(
            f"{series}: {1000 * slope:.1f} ms each, {start:.2f} s to start, "
            f"at most {100 * off:.0f} % off the line"
        )
    fixed = {"variants": "rows", "rows": "variants"}
    console.print(line_figure(path, table, fixed, CAPTION), highlight=False)
    conclude(path)


def seconds(model, tok, items: list[Item], nulls: Sequence[DeltaLike]) -> float:
    """CPU seconds of one sweep."""
    variants = {f"null#{i:02d}": d for i, d in enumerate(nulls)}
    return timed(lambda: sweep(model, tok, items, variants, (1.0,)))[0]


if __name__ == "__main__":
    guarded(main, Config)

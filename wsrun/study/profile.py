"""What the bench scripts share: seconds, peak memory, the machine's speed, one table and its rule.

Every bench compares with the plain way in the same run: a time on another machine, or beside other
work, says nothing.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from wscore import Factored, Factors, norm, stream
from wsrun.models.load import DTYPES
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.console import console, grid
from wsrun.report.drawing import DARK, assign_looks
from wsrun.report.frames import Frame, draw_panels
from wsrun.report.tables import provenance, write_table

GIB = 2**30
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": dict(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "gemma-1b": dict(
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        vocab_size=262144,
    ),
    "4b": dict(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
}
"""the numbers of Qwen3-0.6B's, Gemma-3-1B's and Qwen3-4B's config.json"""
T = TypeVar("T")


# ------------------------------------------------------------------------------------ measuring
def timed(work: Callable[[], T], device: str = "cpu") -> tuple[float, T]:
    """(seconds, result) of work(): on a CPU the process's CPU seconds, so that other processes
    matter less. On a GPU the work must end with a result on the CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    result = work()
    return clock() - start, result


def run_alone(job: Callable[..., Any], *args: Any, threads: int = 1) -> dict[str, float]:
    """Run job(*args) in a fresh process: its seconds, its peak of resident memory in GiB, and what
    measures it returns, if any."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, job, threads, *args).result()


def _measured(job: Callable[..., Any], threads: int, *args: Any) -> dict[str, float]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    measures = job(*args) or {}
    return {"seconds": time.perf_counter() - start, "peak_gib": peak_gib(), **measures}


def peak_gib() -> float:
    """The peak of this process's resident memory so far."""
    with suppress(OSError):  # Linux; its ru_maxrss would count what the parent had, too
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM:")).split()[1]) * 1024 / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB  # macOS counts bytes


def count_operations(work: Callable[[], Any]) -> float:
    """Floating point operations of work(), as torch counts them: two per multiply-add of a matrix
    product, attention's where torch knows them, nothing else."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def matmul_peak(model: PreTrainedModel, n: int = 1024) -> float:
    """The best of 20 products of n x n matrices in the model's dtype, operations a second."""
    a = torch.randn(n, n, device=model.device, dtype=model.dtype)
    # float() waits for the device
    seconds = (timed(lambda: float((a @ a)[0, 0]), model.device.type)[0] for _ in range(20))
    return 2 * n**3 / min(seconds)


def random_model(
    shape: str, dtype: str = "float32", device: str = "cpu", **changes: Any
) -> PreTrainedModel:
    """A Qwen3 or a Gemma 3 of a real model's shape with random weights."""
    make = tiny_gemma3 if shape.startswith("gemma") else tiny_qwen3
    config = SHAPES[shape] | {"initializer_range": 0.02, "max_position_embeddings": 4096} | changes
    if make is tiny_gemma3:  # every sixth layer attends to all positions
        kinds = ("sliding_attention",) * 5 + ("full_attention",)
        config["layer_types"] = [kinds[n % 6] for n in range(config["num_hidden_layers"])]
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        model: Any = make(0, **config)
    finally:
        torch.set_default_dtype(before)
    return model.to(device)


def random_change(model: PreTrainedModel, seed: int) -> Factored:
    """A rank-8 change of all linear maps in the layers from 0.3 to 0.8 of the depth, 1 % of |W|."""
    n, out = model.config.num_hidden_layers, {}
    for name, w in model.named_parameters():
        parts = name.split(".")
        if "layers" in parts and w.ndim == 2 and 0.3 <= int(parts[2]) / n < 0.8:
            random = stream(seed, name)
            L, R = (torch.randn(s, generator=random) for s in ((len(w), 8), (8, w.shape[1])))
            size = 0.01 * float(w.float().norm()) / norm(Factored({name: Factors(L, R)}))
            out[name] = (size * L, R)
    return Factored(out)


# ------------------------------------------------------------------------------------ reporting
def save_lines(
    cfg: Any, name: str, lines: Sequence[Mapping[str, Any]]
) -> tuple[pl.DataFrame, Path]:
    """(table, path) of the lines of a bench, written to `cfg.out` with its options."""
    table = pl.DataFrame(list(lines), infer_schema_length=None)
    return table, write_table(table, cfg.out / f"{name}.parquet", provenance(asdict(cfg)))


def show(title: str, table: pl.DataFrame) -> None:
    """Print a table; `_` in the names of columns is a space."""
    heads = [column.replace("_", " ") for column in table.columns]
    console.print(grid(title, heads, table.iter_rows()))


def conclude(path: Path, holds: bool | None = None, why: str = "") -> None:
    """Print whether the rule of the script holds, where it has one, and where the table is."""
    if holds is not None:
        console.print(f"rule {'holds' if holds else 'does not hold'}: {why}")
    console.print(f"table {path}")


def finish(
    cfg: Any, name: str, title: str, lines: Sequence[Mapping[str, Any]],
    holds: bool | None = None, why: str = "",
) -> None:  # fmt: skip
    """Write the lines of a bench, print them, and conclude."""
    table, path = save_lines(cfg, name, lines)
    show(title, table)
    conclude(path, holds, why)


def line_fit(n: pl.Series, s: pl.Series) -> tuple[float, float, float]:
    """(slope, value at 0, largest |s - line| / s) of the least-squares line through (n, s)."""
    slope, start = np.polyfit(n, s, 1)
    return float(slope), float(start), float(((slope * n + start - s) / s).abs().max())  # type: ignore


def line_through(points: Mapping[int, float], at: int) -> float:
    """The value at `at` of the line through two points {n: value}."""
    (n, a), (m, b) = points.items()
    return a + (b - a) * (at - n) / (m - n)


def line_figure(path: Path, table: pl.DataFrame, fixed: Mapping[str, str], caption: str) -> str:
    """Seconds against n with their lines, a panel a series; `fixed` names the column that one
    series holds fixed."""
    looks = assign_looks({s: f"a sweep over n {s}" for s in fixed})

    def panel(ax: Any, series: str) -> None:
        part = table.filter(series=series)
        slope, start, _ = line_fit(part["n"], part["seconds"])
        end = int(part["n"].max())  # type: ignore[arg-type]
        ax.plot([0, end], [start, start + slope * end], color=DARK, linewidth=1)
        looks[series].draw(ax, part["n"].to_list(), part["seconds"].to_list(), markersize=5)
        ax.set(xlim=(0, 1.05 * end), ylim=(0, 1.1 * float(table["seconds"].max())))  # type: ignore
        other = f"{part[fixed[series]][0]} {fixed[series]}"
        ax.set_title(f"{series}, {other}: {1000 * slope:.0f} ms each")

    question = "How does the time of a sweep grow?"
    words = f"number n of {', of '.join(fixed)}", "seconds"
    frame = Frame(question, *words, caption, 2.6)
    return draw_panels(path, frame, panel, list(looks), 2, looks.values())

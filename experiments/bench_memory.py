"""Question: does the algebra of a 4B model's deltas fit in 2 GiB of memory, from disk to disk?

Random deltas of the shapes of a 4B model (36 layers, d_model 2560, all seven projections), as
factors of rank 32, and with --dense also as whole float32 matrices. Each operation runs in a
process of its own that reads two deltas from disk:
  start         nothing: what Python, torch and wscore take
  difference    dW = pos - neg, written to disk
  save          pos scaled by 0.5, as whole matrices also where it is factored, written to disk
  shared basis  the top 32 output directions of both, on o_proj and down_proj, written to disk
Reported are the seconds and the peak of the resident memory, beside what the plain way needs: both
deltas and the result as whole float32 matrices at once, by arithmetic.

Rule: every peak stays below 2 GiB.

    python experiments/bench_memory.py
    python experiments/bench_memory.py --dense
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

import wscore as ws
from wsrun.report.console import console, grid, guarded, progress
from wsrun.report.tables import check_writable, plain, provenance, write_table
from wsrun.study.profile import GIB, alone

NAME = "bench_memory"
D_MODEL, HEADS, KEYS, MLP = 2560, 4096, 1024, 9728
SHAPES = {  # [d_out, d_in] of one layer
    "self_attn.q_proj": (HEADS, D_MODEL),
    "self_attn.k_proj": (KEYS, D_MODEL),
    "self_attn.v_proj": (KEYS, D_MODEL),
    "self_attn.o_proj": (D_MODEL, HEADS),
    "mlp.gate_proj": (MLP, D_MODEL),
    "mlp.up_proj": (MLP, D_MODEL),
    "mlp.down_proj": (D_MODEL, MLP),
}
WRITES = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Config:
    """Options of the memory bench."""

    layers: tuple[int, ...] = (9, 36)
    """numbers of layers of the factored deltas"""
    rank: int = 32
    """rank of the factored deltas"""
    dense: bool = False
    """also run whole matrices: 0.4 GB per layer and delta"""
    dense_layers: tuple[int, ...] = (2, 4)
    """numbers of layers of the dense deltas"""
    k: int = 32
    """columns of the shared basis"""
    at_most: float = 2.0
    """GiB that no process may exceed"""
    threads: int = 1
    """threads of each process"""
    seed: int = 0
    """seed of the deltas"""
    folder: Path = Path("artifacts/bench")
    """where the deltas are written; emptied of them at the end"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


@dataclass(frozen=True)
class Case:
    """Two deltas on disk: `rank` is None where they are dense."""

    layers: int
    rank: int | None
    k: int
    threads: int
    seed: int
    folder: Path

    @property
    def kind(self) -> str:
        return "dense" if self.rank is None else f"rank {self.rank}"

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> [d_out, d_in]."""
        return {
            f"model.layers.{layer}.{module}.weight": shape
            for layer in range(self.layers)
            for module, shape in SHAPES.items()
        }


def gaussian(d: Mapping[str, Tensor], seed: int) -> ws.Delta:
    """Gaussian entries of d's shapes, each from the stream of its name."""
    return {name: draw(name, w.shape, seed) for name, w in d.items()}


def draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(*shape, generator=ws.stream(seed, name))


def write(case: Case) -> None:
    """Both deltas, random, to disk."""
    for seed, side in enumerate(("pos", "neg"), start=2 * case.seed):
        ws.save_delta(delta(case, seed), case.path(side), {"kind": case.kind})


def delta(case: Case, seed: int) -> Mapping[str, Tensor]:
    if case.rank is None:
        outlines = {n: torch.empty(shape, device="meta") for n, shape in case.shapes().items()}
        return ws.lazily(gaussian, outlines, seed=seed)
    return ws.Factored(
        {
            name: (draw(f"{name}/L", (d_out, case.rank), seed), draw(name, (case.rank, d_in), seed))
            for name, (d_out, d_in) in case.shapes().items()
        }
    )


def start(case: Case) -> None:
    """Nothing."""


def difference(case: Case) -> None:
    pos, neg = (ws.load_delta(case.path(side)) for side in ("pos", "neg"))
    factored = isinstance(pos, ws.Factored) and isinstance(neg, ws.Factored)
    dW = ws.difference(pos, neg) if factored else ws.lazily(ws.difference, pos, neg)
    ws.save_delta(dW, case.path("result"), {})


def save(case: Case) -> None:
    half = ws.lazily(ws.scale, 0.5, ws.load_delta(case.path("pos")))
    ws.save_delta(half, case.path("result"), {})


def shared_basis(case: Case) -> None:
    names = [n for n in case.shapes() if n.removesuffix(".weight").endswith(WRITES)]
    deltas = [ws.only(ws.load_delta(case.path(side)), names) for side in ("pos", "neg")]
    ws.save_delta(ws.shared_basis(deltas, case.k), case.path("result"), {})


JOBS: dict[str, Callable[[Case], None]] = {
    "start": start,
    "difference": difference,
    "save": save,
    "shared basis": shared_basis,
}


def plain_gib(job: str, case: Case) -> float | None:
    """Both deltas, or the one that is read, and the result, as float32 matrices."""
    shapes = case.shapes()
    if job == "start":
        return None
    sizes = [d_out * d_in for d_out, d_in in shapes.values()]
    if job != "shared basis":
        return 4 * sum(sizes) * (3 if job == "difference" else 2) / GIB
    picked = [shape for n, shape in shapes.items() if n.removesuffix(".weight").endswith(WRITES)]
    return 4 * sum(d_out * (2 * d_in + case.k) for d_out, d_in in picked) / GIB


def cases(cfg: Config) -> list[Case]:
    more = cfg.k, cfg.threads, cfg.seed, cfg.folder / NAME
    dense = cfg.dense_layers if cfg.dense else ()
    return [
        *(Case(layers, cfg.rank, *more) for layers in cfg.layers),
        *(Case(layers, None, *more) for layers in dense),
    ]


def check_room(cfg: Config) -> None:
    """Raises ValueError where the largest case, with its result, would not fit on the disk."""
    need = 4 * max(
        (case.layers if case.rank is None else case.layers / 3) * 3 for case in cases(cfg)
    )
    need *= sum(d_out * d_in for d_out, d_in in SHAPES.values())
    free = shutil.disk_usage(cfg.folder).free
    if need > 0.9 * free:
        raise ValueError(
            f"{NAME}: the files take {need / GIB:.1f} GiB and {str(cfg.folder)!r} has"
            f" {free / GIB:.1f} free; use fewer layers or another --folder"
        )


def run(cfg: Config) -> list[dict]:
    lines = []
    with progress("deltas on disk", len(cases(cfg)) * (1 + len(JOBS))) as step:
        for case in cases(cfg):
            step(f"writing {case.layers} layers, {case.kind}")
            alone(write, case, threads=case.threads)
            for name, job in JOBS.items():
                step(f"{name}: {case.layers} layers, {case.kind}")
                found = alone(job, case, threads=case.threads)
                size = case.path("result").stat().st_size / GIB if name != "start" else None
                line = {"deltas": case.kind, "layers": case.layers, "operation": name, **found}
                lines.append(line | {"result_gib": size, "plain_gib": plain_gib(name, case)})
                case.path("result").unlink(missing_ok=True)
    return lines


def main(cfg: Config) -> None:
    check_writable(cfg.out)
    check_writable(cfg.folder / NAME)
    check_room(cfg)
    try:
        table = pl.DataFrame(run(cfg), infer_schema_length=None)
    finally:
        shutil.rmtree(cfg.folder / NAME)
    record = provenance(plain(asdict(cfg)), numbers="seconds and memory of this run")
    path = write_table(table, cfg.out / f"{NAME}.parquet", record)
    heads = ["deltas", "layers", "operation", "s", "peak GiB", "written GiB", "plain way GiB"]
    console.print(grid("one process each, from disk to disk", heads, table.iter_rows()))
    peak = max(table["peak_gib"])
    said = "holds" if peak < cfg.at_most else "does not hold"
    console.print(f"largest peak {peak:.2f} GiB, allowed {cfg.at_most:g}: the rule {said}")
    console.print(f"table: {path}")


if __name__ == "__main__":
    guarded(main, Config)

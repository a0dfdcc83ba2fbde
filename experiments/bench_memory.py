"""Does the algebra of a 4B model's deltas fit in 2 GiB of memory, from disk to disk?

Question:   what does each step take on two deltas of a 4B model's shapes (36 layers, d_model 2560,
            all seven projections) of rank 32, kept as factors?
Prediction: below 1 GiB, the import of Python's packages included.
Rule:       holds if no process of factored deltas has a peak of 2 GiB or more.

    python experiments/bench_memory.py
    python experiments/bench_memory.py --dense

Each step runs in a process of its own that reads random deltas from disk and writes its result:
  start         nothing: what Python, torch and wscore take
  difference    dW = pos - neg
  scale         0.5 pos
  shared basis  the top 32 output directions of both, on o_proj and down_proj
--dense also takes whole float32 matrices, which the rule does not judge. Seconds and peaks of
resident memory stand beside what the plain way needs: the deltas and the result as whole float32
matrices at once, by arithmetic.
"""

from wsrun.script import guarded

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, randn

import wscore as ws
from wsrun.report.console import progress
from wsrun.report.tables import check_writable
from wsrun.study.profile import GIB, finish, run_alone

NAME = "bench_memory"
D_MODEL, HEADS, KEYS, MLP = 2560, 4096, 1024, 9728
SHAPES = {  # [d_out, d_in] of one layer
    **dict.fromkeys(["self_attn.k_proj", "self_attn.v_proj"], (KEYS, D_MODEL)),
    **dict.fromkeys(["mlp.gate_proj", "mlp.up_proj"], (MLP, D_MODEL)),
    "self_attn.q_proj": (HEADS, D_MODEL),
    "self_attn.o_proj": (D_MODEL, HEADS),
    "mlp.down_proj": (D_MODEL, MLP),
}
AT_MOST = 2  # GiB, the rule
RANK, K = 32, 32  # of the factored deltas, of the shared basis
ENTRIES = sum(d_out * d_in for d_out, d_in in SHAPES.values())  # of one layer
PLAIN_ENTRIES = {  # of one layer, where all is held as whole matrices
    "start": None,
    "difference": 3 * ENTRIES,
    "scale": 2 * ENTRIES,
    "shared basis": D_MODEL * (2 * (HEADS + MLP) + 2 * K),
}


@dataclass(frozen=True)
class Config:
    """Options of bench_memory."""

    layers: tuple[int, ...] = (9, 36)
    """numbers of layers of the factored deltas"""
    dense: bool = False
    """also run whole matrices: 0.4 GB per layer and delta"""
    dense_layers: tuple[int, ...] = (2, 4)
    """numbers of layers of the dense deltas"""
    folder: Path = Path("artifacts/bench")
    """where the deltas are written; emptied of them at the end"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


@dataclass(frozen=True)
class Case:
    """Two deltas on disk, as factors or as whole matrices."""

    layers: int
    dense: bool
    folder: Path

    def read(self, side: str) -> ws.DeltaLike:
        return ws.load_delta(self.folder / side)

    def write(self, d: ws.DeltaLike, name: str = "result") -> None:
        ws.save_delta(d, self.folder / name, {})


def write_pair(case: Case) -> None:
    """Both deltas to disk; every tensor comes from the stream of its name."""
    for seed, side in enumerate(("pos", "neg")):
        case.write(random_delta(case, seed), side)


def random_delta(case: Case, seed: int) -> ws.DeltaLike:
    def draw(name: str, *shape: int) -> Tensor:
        return randn(*shape, generator=ws.stream(seed, name))

    sites = [(n, module) for n in range(case.layers) for module in SHAPES]
    r, shapes = RANK, {f"model.layers.{n}.{m}.weight": SHAPES[m] for n, m in sites}
    if case.dense:
        return {name: draw(name, *shape) for name, shape in shapes.items()}
    return ws.Factored(
        {n: (draw(f"{n}/L", d_out, r), draw(n, r, d_in)) for n, (d_out, d_in) in shapes.items()}
    )


def start(case: Case) -> None:
    """Nothing."""


def difference(case: Case) -> None:
    case.write(ws.difference(case.read("pos"), case.read("neg")))


def scale(case: Case) -> None:
    case.write(ws.scale(0.5, case.read("pos")))


def shared_basis(case: Case) -> None:
    writing = [ws.select(case.read(side), ws.writes_residual) for side in ("pos", "neg")]
    case.write(ws.shared_basis(writing, K))


JOBS = {f.__name__.replace("_", " "): f for f in (start, difference, scale, shared_basis)}


def main(cfg: Config) -> None:
    """Write each pair of deltas, run every step on it alone, print the peaks."""
    folder = cfg.folder / NAME
    check_writable(cfg.out)
    check_writable(folder)
    cases = [Case(n, False, folder) for n in cfg.layers]
    cases += [Case(n, True, folder) for n in cfg.dense_layers if cfg.dense]
    check_disk(cfg, cases)
    lines = []
    try:
        with progress("deltas on disk", len(cases) * (1 + len(JOBS))) as step:
            for case in cases:
                kind = "dense" if case.dense else f"rank {RANK}"
                run_alone(write_pair, case)
                step(f"wrote {case.layers} layers, {kind}")
                for name in JOBS:
                    line = {"deltas": kind, "layers": case.layers, "step": name}
                    lines.append(line | measure(case, name))
                    step(f"{name}: {case.layers} layers, {kind}")
    finally:
        shutil.rmtree(folder)
    peak = max(line["peak_gib"] for line in lines if line["deltas"] != "dense")
    why = f"the largest peak of factored deltas is {peak:.2f} GiB, allowed are {AT_MOST}"
    finish(cfg, NAME, "one process each, from disk to disk", lines, peak < AT_MOST, why)


def measure(case: Case, name: str) -> dict[str, float | None]:
    """Seconds and peak of one step, what it wrote, and what the plain way would need."""
    line: dict = run_alone(JOBS[name], case)
    entries, result = PLAIN_ENTRIES[name], case.folder / "result"
    line["written_gib"] = result.stat().st_size / GIB if result.exists() else None
    line["plain_way_gib"] = 4 * entries * case.layers / GIB if entries else None
    result.unlink(missing_ok=True)
    return line


def check_disk(cfg: Config, cases: list[Case]) -> None:
    """Raises ValueError where the largest case, with its result, would not fit on the disk."""
    factors = RANK * sum(map(sum, SHAPES.values()))
    most = max(case.layers * (ENTRIES if case.dense else factors) for case in cases)
    need, free = 3 * 4 * most, shutil.disk_usage(cfg.folder).free
    if need > 0.9 * free:
        raise ValueError(
            f"{NAME}: the files take {need / GIB:.1f} GiB and {str(cfg.folder)!r} has"
            f" {free / GIB:.1f} free; use fewer layers or another --folder"
        )


if __name__ == "__main__":
    guarded(main, Config)

"""Question: is the linear algebra of wscore worth its code, against the plain way to write it?

Timed, on float32 matrices of a 0.6B model's down_proj, 1024 x 3072, in one run on the CPU:
  svd           torch.linalg.svd(W, full_matrices=False) against wscore.svd(W), rank 64
  shared basis  the SVD of the 1024 x 15360 stack [dW_f / |dW_f|] against wscore.shared_basis, for
                five rank-64 deltas: 32 output directions common to all, with each delta's own
                coefficients, and 32 directions, half as strong, that only one delta has
Differences: the largest |s_i - s_i'| / s_1, and the largest entry of |U U^T - U' U'^T|, k = 32.
Rule: svd at least 20 times and shared basis at least 15 times as fast, differences below 1e-5.

    python experiments/bench_algebra.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wscore import shared_basis, svd


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """Seed of the random matrices."""
    repeats: int = 3
    """Timings of each way, alternating; the table shows their median."""
    threads: int = 1
    """Threads of both ways; with more of them than idle cores LAPACK mostly waits on itself."""
    d_out: int = 1024
    """Rows of each matrix."""
    d_in: int = 3072
    """Columns of each matrix."""
    core: int = 32
    """Directions that all deltas share; each has as many of its own, half as strong."""
    deltas: int = 5
    """Deltas in the stack."""
    svd_at_least: float = 20
    """Ratio that supports wscore.svd."""
    basis_at_least: float = 15
    """Ratio that supports wscore.shared_basis."""
    difference_at_most: float = 1e-5
    """Largest difference from the plain way, for both."""


@dataclass(frozen=True)
class Result:
    name: str
    plain: float
    ours: float
    difference: float
    at_least: float

    @property
    def ratio(self) -> float:
        return self.plain / self.ours


def compare(plain: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int):
    """Median seconds of both ways, timed in turns after one unmeasured call of the fast way."""
    seconds, outputs = ([], []), [torch.empty(0), ours()]
    for _ in range(repeats):
        for i, way in enumerate((plain, ours)):
            start = perf_counter()
            outputs[i] = way()
            seconds[i].append(perf_counter() - start)
    return median(seconds[0]), median(seconds[1]), *outputs


def bench_svd(cfg: Config) -> Result:
    """Singular values of B A, rank 2 core."""
    W = product(cfg, torch.Generator().manual_seed(cfg.seed), 2 * cfg.core)
    plain, ours, S, S_ours = compare(
        lambda: torch.linalg.svd(W, full_matrices=False).S, lambda: svd(W).S, cfg.repeats
    )
    found = torch.zeros_like(S)
    found[: len(S_ours)] = S_ours
    gap = float((S - found).abs().max() / S[0])
    return Result(f"svd (rank {len(S_ours)})", plain, ours, gap, cfg.svd_at_least)


def bench_basis(cfg: Config) -> Result:
    """Top-k left singular vectors of the stack, k = core."""
    random = torch.Generator().manual_seed(cfg.seed + 1)
    C = torch.randn(cfg.d_out, cfg.core, generator=random)
    weights = []
    for _ in range(cfg.deltas):
        shared = C @ torch.randn(cfg.core, cfg.d_in, generator=random)
        weights.append(shared + product(cfg, random, cfg.core) / 2)

    def plain_way() -> Tensor:
        stack = torch.cat([w / w.norm() for w in weights], dim=1)
        return torch.linalg.svd(stack, full_matrices=False).U[:, : cfg.core]

    deltas = [{"down_proj.weight": w} for w in weights]
    plain, ours, U, U_ours = compare(
        plain_way, lambda: shared_basis(deltas, cfg.core)["down_proj.weight"], cfg.repeats
    )
    gap = float((U @ U.T - U_ours @ U_ours.T).abs().max())
    return Result(f"shared basis (k = {U_ours.shape[1]})", plain, ours, gap, cfg.basis_at_least)


def product(cfg: Config, random: torch.Generator, r: int) -> Float[Tensor, "d_out d_in"]:
    """B A with Gaussian factors: a delta of rank r."""
    B = torch.randn(cfg.d_out, r, generator=random)
    return B @ torch.randn(r, cfg.d_in, generator=random)


def main(cfg: Config) -> None:
    torch.set_num_threads(cfg.threads)
    results = [bench_svd(cfg), bench_basis(cfg)]
    table = Table("what", "plain s", "wscore s", "ratio", "needed", "difference", "allowed")
    for r in results:
        row = f"{r.plain:.3f}", f"{r.ours:.3f}", f"{r.ratio:.1f}x", f"{r.at_least:.0f}x"
        table.add_row(r.name, *row, f"{r.difference:.1e}", f"{cfg.difference_at_most:.0e}")
    Console(width=100).print(table)
    short = [
        r.name
        for r in results
        if r.ratio < r.at_least or not r.difference <= cfg.difference_at_most
    ]
    print("thresholds hold" if not short else f"thresholds do not hold: {', '.join(short)}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

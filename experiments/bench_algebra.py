"""Is the linear algebra of wscore worth its code, against the plain way to write it?

Question:   how much faster are `svd` and `shared_basis` on matrices of a 0.6B model's down_proj,
            1024 x 3072 in float32, on a CPU?
Prediction: svd at least 20 times, shared basis at least 15 times, differences below 1e-5.
Rule:       holds if both are that fast and that close; ratios of medians, timed in turns.

    python experiments/bench_algebra.py

svd           torch.linalg.svd(W, full_matrices=False) against wscore.svd(W), W of rank 64;
              the difference is max_i |s_i - s_i'| / s_1
shared basis  the SVD of the 1024 x 15360 stack [dW_f / |dW_f|] against wscore.shared_basis, for
              five rank-64 deltas: 32 output directions common to all, with each delta's own
              coefficients, and 32 directions, half as strong, that only one delta has; the
              difference is the largest entry of |U U^T - U' U'^T|, k = 32
"""

from wsrun.script import guarded

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, randn

from wscore import shared_basis, svd
from wsrun.report.tables import check_writable
from wsrun.study.profile import finish

NAME = "bench_algebra"


D_OUT, D_IN, CORE, DELTAS = 1024, 3072, 32, 5
AT_MOST = 1e-5  # difference from the plain way


@dataclass(frozen=True)
class Config:
    """Options of bench_algebra."""

    repeats: int = 3
    """timings of each method, alternating; the table shows their median"""
    out: Path = Path("artifacts/tables")
    """folder that receives the table"""


def main(cfg: Config) -> None:
    """Time both, print the ratios."""
    check_writable(cfg.out)
    torch.set_num_threads(1)  # with more than there are idle cores LAPACK waits on itself
    lines = [bench_svd(cfg), bench_basis(cfg)]
    good = (line["ratio"] >= line["at_least"] and line["difference"] <= AT_MOST for line in lines)
    why = f"ratios as asked, differences at most {AT_MOST:g}"
    finish(cfg, NAME, f"{D_OUT} x {D_IN}, one thread", lines, all(good), why)


def bench_svd(cfg: Config) -> dict[str, Any]:
    """Singular values of B A, rank 2 core."""
    W = product(Generator().manual_seed(0), 2 * CORE)
    S, ours, seconds = compare(
        lambda: torch.linalg.svd(W, full_matrices=False).S, lambda: svd(W).S, cfg.repeats
    )
    padded = torch.zeros_like(S)
    padded[: len(ours)] = ours
    gap = float((S - padded).abs().max() / S[0])
    return {"what": f"svd (rank {len(ours)})", **seconds, "at_least": 20.0, "difference": gap}


def bench_basis(cfg: Config) -> dict[str, Any]:
    """Top-k left singular vectors of the stack, k = core."""
    random = Generator().manual_seed(1)
    C = randn(D_OUT, CORE, generator=random)
    weights = []
    for _ in range(DELTAS):
        shared = C @ randn(CORE, D_IN, generator=random)
        weights.append(shared + product(random, CORE) / 2)

    def plain_way() -> Tensor:
        stack = torch.cat([w / w.norm() for w in weights], dim=1)
        return torch.linalg.svd(stack, full_matrices=False).U[:, :CORE]

    deltas = [{"down_proj.weight": w} for w in weights]
    U, ours, seconds = compare(
        plain_way, lambda: shared_basis(deltas, CORE)["down_proj.weight"], cfg.repeats
    )
    gap = float((U @ U.T - ours @ ours.T).abs().max())
    what = f"shared basis (k = {ours.shape[1]})"
    return {"what": what, **seconds, "at_least": 15.0, "difference": gap}


def product(random: Generator, r: int) -> Float[Tensor, "d_out d_in"]:
    """B A with Gaussian factors: a delta of rank r."""
    B = randn(D_OUT, r, generator=random)
    return B @ randn(r, D_IN, generator=random)


def compare(
    plain: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """(plain's result, ours, median seconds of both), timed in turns after one call of ours."""
    seconds, results = ([], []), [torch.empty(0), ours()]
    for _ in range(repeats):
        for i, work in enumerate((plain, ours)):
            start = perf_counter()
            results[i] = work()
            seconds[i].append(perf_counter() - start)
    plain_s, ours_s = map(median, seconds)
    times = {"plain_s": plain_s, "wscore_s": ours_s, "ratio": plain_s / ours_s}
    return results[0], results[1], times


if __name__ == "__main__":
    guarded(main, Config)

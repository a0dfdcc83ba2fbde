"""What a piece of work takes: its seconds and its peak of memory, in a process of its own."""

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


def alone(job: Callable[..., Any], *args: Any, threads: int = 1) -> dict[str, float]:
    """Run job(*args) in a fresh process: its seconds, and its peak of resident memory in GiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, job, threads, *args).result()


def _measured(job: Callable[..., Any], threads: int, *args: Any) -> dict[str, float]:
    torch.set_num_threads(threads)
    began = time.perf_counter()
    job(*args)
    return {"seconds": time.perf_counter() - began, "peak_gib": peak_gib()}


def peak_gib() -> float:
    """The peak of this process's resident memory so far."""
    with suppress(OSError):  # Linux; its ru_maxrss would count what the parent had, too
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM:")).split()[1]) * 1024 / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB  # macOS counts bytes

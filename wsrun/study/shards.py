"""Several processes on one sweep: shards, which share a folder of finished results.

A shard is the same command with --shard i/n: it scores variants i, i + n, i + 2n, ... into the
folder of results and writes no table. The command without it finds all of them and writes what one
process alone would have written, byte for byte. `run_on_ray` starts the shards as tasks of Ray.
"""

import importlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from wsrun.report.console import console

HOW = ("cache_dir", "shard", "executor", "workers")  # how a run is done, never what comes out
RETRIES = 3  # of a shard whose process died
# a worker that is killed takes its shard with it, so that no shard runs twice; 1: PR_SET_PDEATHSIG
BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
SMALL = 100 * 2**20  # bytes of Ray's store, which holds no tensors here


class Died(Exception):
    """A shard's process ended without finishing and without a refusal."""


def read_shard(text: str) -> tuple[int, int]:
    """(i, n) of the text i/n; raises ValueError where it is none with 0 <= i < n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"--shard must be i/n with i from 0 to n - 1, such as 0/2 and 1/2, got {text!r}"
        )
    return int(match[1]), int(match[2])


def check_how(shard: str | None, executor: str, workers: int | None) -> None:
    """Refuse options of shards and workers that cannot work, or would have no effect."""
    if shard is not None:
        read_shard(shard)
    if executor == "ray" and shard is not None:
        raise ValueError("--executor ray makes its own shards; leave out --shard")
    if executor == "local" and workers is not None:
        raise ValueError(f"--workers {workers} needs --executor ray")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")


def asked(argv: Sequence[str]) -> list[str]:
    """A command line without the flags of HOW and their values: what decides its tables."""
    flags = {f"--{name.replace('_', mark)}" for name in HOW for mark in "-_"}
    kept, words = [], iter(argv)
    for word in words:
        if word in flags:
            next(words, None)
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return kept


def finished(cache_dir: Path) -> int:
    """How many results a folder holds."""
    return sum(1 for _ in cache_dir.rglob("*.safetensors"))


def run_on_ray(cache_dir: Path, device: str, workers: int | None = None) -> None:
    """Run this script's own command as shards on Ray, `workers` at a time, until all are finished.

    On cuda a shard has a GPU to itself, and there are as many shards as GPUs, else 2. RAY_ADDRESS
    names a running cluster, whose machines must see this folder and this Python under the same
    paths; without it one is started here, and ended. A shard that dies is started again, up to 3
    times, and goes on where it was. Raises ValueError where Ray is missing or has no such GPU, and
    with its last line where a shard refuses or dies for good.
    """
    ray, before = _ray(), finished(cache_dir)
    gpu = device.startswith("cuda")
    if gpu and not torch.cuda.is_available():
        raise ValueError(
            f"--executor ray: --device {device} asked, and the machine that writes the table has no"
            " such GPU; start the command on one that has"
        )
    with _cluster(ray, workers or max(2, torch.cuda.device_count())):
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpu and not gpus:
            raise ValueError(f"--executor ray: --device {device} asked; the cluster has no GPU")
        count = workers or (gpus if gpu else 2)
        options = dict(num_cpus=1, num_gpus=int(gpu), scheduling_strategy="SPREAD")
        task = ray.remote(max_retries=RETRIES, retry_exceptions=[Died], **options)(_run_shard)
        shard_options = ["--cache-dir", str(cache_dir), "--executor", "local"]
        shard_options += ["--device", device.split(":")[0]]
        command = [sys.executable, *asked(sys.argv), *shard_options]
        # results are found again only under the same number of threads
        env = dict(os.environ) | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        shards = [f"{i}/{count}" for i in range(count)]
        refs = {
            task.remote([*command, "--shard", s], os.getcwd(), env, ["CUDA_VISIBLE_DEVICES"]): s
            for s in shards
        }
        _wait(ray, refs, lambda: finished(cache_dir) - before)
        new = finished(cache_dir) - before
    console.print(f"{count} shards on ray: {new} results added to {cache_dir}")


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "--executor ray: ray is not installed; pip install 'weight-steering[ray]', or leave it "
            "local"
        ) from error


@contextmanager
def _cluster(ray: Any, cpus: int) -> Iterator[None]:
    """The cluster of RAY_ADDRESS, or one on this machine, ended with the block."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(address)
    local_options = dict(num_cpus=cpus, include_dashboard=False, object_store_memory=SMALL)
    try:
        quiet = dict(log_to_driver=False, logging_level="ERROR")
        ray.init(address, **quiet, **(local_options if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--executor ray: no cluster at {address!r} ({reason})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse a host:port where nobody listens, on which Ray itself would wait for many minutes."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if match:
        try:
            socket.create_connection((match[1], int(match[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--executor ray: no cluster at RAY_ADDRESS {address!r} ({error}); start one with "
                "ray start --head, or unset RAY_ADDRESS"
            ) from error


def _wait(ray: Any, refs: dict[Any, str], added: Callable[[], int]) -> None:
    """Wait for all shards, saying how far they are; one that fails for good ends the others."""
    waiting = list(refs)
    try:
        with Console(stderr=True).status("starting shards") as line:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=1)
                for ref in done:
                    _check_end(ray, ref, refs[ref])
                ended = len(refs) - len(waiting)
                line.update(f"{ended} of {len(refs)} shards finished, {added()} results added")
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)  # the shard ends with its worker
        ray.wait(waiting, num_returns=len(waiting), timeout=10) if waiting else None


def _check_end(ray: Any, ref: Any, shard: str) -> None:
    try:
        refused = ray.get(ref)
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1].removeprefix(f"{__name__}.Died: ")
        raise ValueError(f"shard {shard} failed for good: {last}") from error
    if refused:
        raise ValueError(f"shard {shard}: {refused}")


def _run_shard(
    command: list[str], folder: str, env: Mapping[str, str], own: Sequence[str]
) -> str | None:
    """Run a shard's command to its end, in a worker of Ray: None, or the sentence of its refusal.

    The environment is that of the machine that asked, except for the names in `own`, which Ray sets
    for each worker.
    """
    env = dict(env) | {name: os.environ[name] for name in own if name in os.environ}
    if sys.platform == "linux":
        command = [sys.executable, "-c", BOUND, *command]
    done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    raise Died(f"{last} (exit code {done.returncode})")

"""How does every border take damaged input: in a clear sentence, or rightly, or not?

    python tests/fuzz/run.py --cases 10000
    python tests/fuzz/run.py --cases 500 --borders adapters --seed 1

Cases are dealt out evenly over the borders and depend on border, seed and number alone. Worker
processes have a memory limit; a case that runs longer than 20 s is killed and counts as a hang.
Prints cases by outcome, and the first of what is not as it should be. Exit code 1 if anything is.
"""

import argparse
import importlib
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import forkserver  # noqa: E402
from tests.fuzz.cases import GOOD, OUTCOMES, Border, Outcome, outcome  # noqa: E402

SECONDS = 20
MEMORY = 6 * 2**30  # bytes that a case may take beside what its process holds
BORDERS = sorted(p.stem for p in Path(__file__).parent.glob("border_*.py"))
Job = tuple[str, int, int]  # (border, seed, number)


def border(name: str) -> Border:
    """The border in border_<name>.py."""
    return importlib.import_module(f"tests.fuzz.{name}").BORDER


def work(jobs: Connection) -> None:
    """A worker: takes jobs, sends outcomes."""
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    prepared: dict[str, object] = {}
    try:
        while (job := jobs.recv()) is not None:
            name, seed, number = job
            known = border(name)
            if name not in prepared:
                (folder / name).mkdir()
                prepared[name] = known.prepare(folder / name)
                limit(MEMORY)
            at = folder / "case"
            at.mkdir()
            try:
                rng = random.Random(f"{name}/{seed}/{number}")
                jobs.send(None)  # what takes long from here on is the case's
                jobs.send(outcome(known.case(rng, at, prepared[name])))
            finally:
                shutil.rmtree(at, ignore_errors=True)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def limit(more: int) -> None:
    """Let this process map at most `more` bytes beyond what it has mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))


class Worker:
    """A worker process and the job it has."""

    def __init__(self) -> None:
        context = forkserver()
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.job: Job | None = None
        self.began = 0.0

    def give(self, job: Job) -> None:
        self.job, self.began = job, float("inf")
        self.pipe.send(job)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def run(jobs: list[Job], workers: int = 2, done=lambda: None) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes of all jobs, in no order."""
    todo, crew = list(reversed(jobs)), [Worker() for _ in range(min(workers, len(jobs)))]
    try:
        for worker in crew:
            worker.give(todo.pop())
        while crew:
            wait([w.pipe for w in crew], timeout=0.5)
            for i, worker in enumerate(crew):
                job, result = worker.job, None
                assert job is not None
                try:
                    if worker.pipe.poll():
                        result = worker.pipe.recv()
                        if result is None:
                            worker.began = time.monotonic()
                            continue
                    elif time.monotonic() - worker.began > SECONDS:
                        result = Outcome("hang", f"longer than {SECONDS} s")
                        worker.end()
                        crew[i] = worker = Worker()
                except (EOFError, ConnectionResetError):
                    result = Outcome("memory", "the process died")
                    worker.end()
                    crew[i] = worker = Worker()
                if result is not None:
                    done()
                    yield job, result
                    if todo:
                        worker.give(todo.pop())
                    else:
                        worker.end()
                        crew.remove(worker)
                        break
    finally:
        for worker in crew:
            worker.end()


def jobs_of(names: list[str], cases: int, seed: int) -> list[Job]:
    """`cases` jobs, dealt out evenly over the borders."""
    return [(names[i % len(names)], seed, i // len(names)) for i in range(cases)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--borders", nargs="+", default=[b.removeprefix("border_") for b in BORDERS]
    )
    parser.add_argument("--only", type=int, help="one case by its number, of one border")
    parser.add_argument("--show", type=int, default=10, help="how many bad cases to print")
    args = parser.parse_args()
    names = [f"border_{b}" for b in args.borders]
    if unknown := [b for b in names if b not in BORDERS]:
        parser.error(f"--borders: no {unknown[0].removeprefix('border_')}; one of {BORDERS}")
    jobs = jobs_of(names, args.cases, args.seed)
    if args.only is not None:
        jobs = [(names[0], args.seed, args.only)]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    bad, began, last = [], time.monotonic(), time.monotonic()
    for (name, _, number), result in run(jobs, args.workers):
        counts[name][result.kind] += 1
        if result.kind not in GOOD or args.only is not None:
            bad.append((name, number, result))
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{sum(map(Counter.total, counts.values()))} of {len(jobs)} cases, "
                  f"{len(bad)} bad", file=sys.stderr, flush=True)  # fmt: skip
    for name, number, result in sorted(bad)[: args.show]:
        short = name.removeprefix("border_")
        print(f"{short} --seed {args.seed} --only {number}: {result.kind}: {result.what}\n"
              f"    {result.message[:600]}")  # fmt: skip
    print(f"{'border':<16} {'cases':>6} " + " ".join(f"{k:>9}" for k in OUTCOMES))
    for name, count in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        each = " ".join(f"{count[kind]:>9}" for kind in OUTCOMES)
        print(f"{name.removeprefix('border_'):<16} {count.total():>6} {each}")
    print(
        f"{len(jobs)} cases in {time.monotonic() - began:.0f} s, {len(bad)} not as they should be"
    )
    return int(bool(bad) and args.only is None)


if __name__ == "__main__":
    sys.exit(main())

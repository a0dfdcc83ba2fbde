"""Bounds on code of others, such as chat templates: a limit in time, and a trial in a child."""

import ctypes
import gc
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wscore.files import reason

CPU_SECONDS = 1
WAIT_SECONDS = 8  # on a crowded machine, for that one
MORE_BYTES = 2**28
MEMORY = f"asks for more than {MORE_BYTES >> 20} MB"


class TooSlow(BaseException):
    """What `time_limit` raises; no Exception, so that nothing in between takes it for its own."""


_deadlines: dict[int, float] = {}
_late: set[int] = set()
_lock = threading.Lock()
_watching = False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow in this thread, whichever it is, when the block of Python takes longer.

    A watching thread sends the exception, so that entering costs microseconds. Blocks do not nest.
    """
    global _watching
    me = threading.get_ident()
    with _lock:
        _late.discard(me)
        _deadlines[me] = time.monotonic() + seconds
        if not _watching:
            _watching = True
            threading.Thread(target=_watch, daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            _deadlines.pop(me, None)
            late = me in _late
            _late.discard(me)
        if late:  # the exception may still be on its way
            _send(me, None)
            raise TooSlow


def _watch(every: float = 0.25, idle: float = 5.0) -> None:
    global _watching
    last = time.monotonic()
    while True:
        time.sleep(every)
        now = time.monotonic()
        with _lock:
            last = now if _deadlines else last
            for thread in [t for t, deadline in _deadlines.items() if now > deadline]:
                del _deadlines[thread]
                _late.add(thread)
                _send(thread, TooSlow)
            if now - last > idle:
                _watching = False
                return


def _send(thread: int, kind: type[BaseException] | None) -> None:
    error = ctypes.py_object(kind) if kind else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


def trial(check: Callable[[], object], what: str, remedy: str) -> None:
    """Run check() in a child of this process: ValueError for what is better not run here.

    The child is a fork, so that nothing is loaded anew. It may use CPU_SECONDS and MORE_BYTES, and
    ends with the check; an exception in it comes out as a ValueError of its words. Says nothing
    where the child gives no answer in WAIT_SECONDS, and on systems where a fork is not safe.
    """
    if sys.platform != "linux":
        return
    ours, theirs = os.pipe()
    try:
        pid = _fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        return
    if pid == 0:
        _child(check, theirs)
    os.close(theirs)
    try:
        answered = bool(select.select([ours], [], [], WAIT_SECONDS)[0])
        said = os.read(ours, 4096).decode(errors="replace") if answered else ""
        if not answered:
            os.kill(pid, signal.SIGKILL)
        _, status, used = os.wait4(pid, 0)
    finally:
        os.close(ours)
    # without an answer and without having run, the child waits for what no thread of it will give
    slow = os.WIFSIGNALED(status) and used.ru_utime > CPU_SECONDS / 4
    if slow or (answered and os.WIFSIGNALED(status)):
        how = f"runs longer than {CPU_SECONDS} s" if slow else "ends the process it runs in"
        raise ValueError(f"{what} {how}; {remedy}")
    if said:
        raise ValueError(said if said != MEMORY else f"{what} {said}; {remedy}")


def _fork() -> int:
    """os.fork(), without the words that tokenizers and newer Pythons have about it."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "false")
    try:
        with warnings.catch_warnings(), _lock:  # nobody else holds the lock in the copy
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    finally:
        if before is None:
            del os.environ[name]


def _child(check: Callable[[], object], theirs: int) -> None:
    said = ""
    try:
        gc.disable()
        _limit()
        check()
    except MemoryError:
        said = MEMORY
    except BaseException as error:  # whatever it is, it must not go on in a copy of the caller
        said = reason(error, 700)
    finally:
        os.write(theirs, said.encode())
        os._exit(0)


def _limit() -> None:
    import resource  # not on every system

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

"""Folders of adapters: put in place whole or not at all, and read whole.

A folder that is not empty cannot be replaced by a rename. Linux and macOS can swap two names at
once; on file systems without that (NFS) the old folder is renamed aside, and whoever reads or
writes next puts it back where a writer died before the new one was in place.
"""

import ctypes
import errno
import glob
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from wscore.files import refusing, sync

T = TypeVar("T")
HOST = sha256(socket.gethostname().encode()).hexdigest()[:8]
PARTIAL, ASIDE = "partial", "aside"  # how the names of temporary folders end
WEEK = 7 * 24 * 3600  # seconds after which a temporary folder of another machine is given up
TRIES = 5  # of reading a folder that is replaced meanwhile
AT_CWD, LINUX_EXCHANGE, MACOS_SWAP = -100, 2, 2  # of renameat2 and renamex_np


def replace_folder(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Run write(an empty folder beside `path`), sync it, put it in the place of `path`.

    Returns `path`. Whatever happens in between, also a kill, `path` is the whole new folder or what
    was there before (where names cannot be swapped, after the next `replace_folder`, `read_folder`
    or `settle`). Of several processes at once each works in a folder of its own, and the last one
    stays. Raises ValueError where it cannot be written.
    """
    path = Path(path)
    settle(path)
    new, what = _beside(path, PARTIAL), f"{str(path)!r} cannot be written"
    try:
        with refusing(what, "free some space or use another folder", OSError, SafetensorError):
            new.mkdir(parents=True)
            write(new)
            for inside in sorted(new.rglob("*")):
                sync(inside)
            _put(new, path)
            sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    settle(path)
    return path


def check_replaceable(path: str | Path, mark: str, what: str = "adapter") -> None:
    """Raises ValueError for a folder of something else: not empty, and without the file `mark`."""
    path = Path(path)
    if path.exists() and not (path / mark).exists() and (path.is_file() or any(path.iterdir())):
        raise ValueError(
            f"{str(path)!r} exists and holds no {what} ({mark} is not there); it would be lost: "
            "name another folder"
        )


def read_folder(path: str | Path, read: Callable[[Path], T]) -> T:
    """read(path) of one state of the folder: read again where it was replaced meanwhile.

    Raises what `read` raises of a folder that stands still, and ValueError where it never does.
    """
    path = Path(path)
    for _ in range(TRIES):
        if not path.exists():
            settle(path)
        before = _state(path)
        try:
            found = read(path)
        except (OSError, ValueError, SafetensorError):
            if _state(path) == before and (path.exists() or not _aside(path)):
                raise
        else:
            if _state(path) == before:
                return found
    raise ValueError(f"{str(path)!r} is replaced again and again while it is read; try later")


def remove_folders(parent: Path, start: str) -> None:
    """Remove the folders whose names start so, each at once, and what dead writers of them left."""
    with suppress(OSError):
        for path in parent.glob(f"{glob.escape(start)}*"):
            with suppress(OSError):
                _discard(path, path)
        _clear(parent, f".{glob.escape(start)}*{PARTIAL}")


def settle(path: str | Path) -> None:
    """Put back what a dead writer left aside, and clear away what no living process uses.

    A temporary folder names its machine and process: it goes when that process has ended, and, of
    another machine, when it is a week old. What stands aside is outdated once `path` is there.
    """
    path = Path(path)
    with suppress(OSError):
        aside = _aside(path)
        if aside and not path.exists():
            aside.pop().rename(path)
        for old in aside if path.exists() else ():  # listed before: so what stands there is newer
            _discard(old, path)
        _clear(path.parent, f".{glob.escape(path.name)}.*{PARTIAL}")


def _aside(path: Path) -> list[Path]:
    """Folders that stood at `path` and were renamed, the latest one last."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*{ASIDE}"))


def _clear(parent: Path, temporary: str) -> None:
    for left in parent.glob(temporary):
        if not _in_use(left):
            shutil.rmtree(left, ignore_errors=True)


def _put(new: Path, path: Path) -> None:
    """Let `path` be the folder `new`; what was there is removed."""
    while True:
        try:
            new.rename(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _swap(new, path):
            return  # `new` is the old one now, and is removed
        aside = _beside(path, ASIDE)
        with suppress(FileNotFoundError):
            path.rename(aside)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot."""
    libc, names = ctypes.CDLL(None, use_errno=True), [os.fsencode(p) for p in (a, b)]
    with suppress(AttributeError):
        if sys.platform == "linux":
            return libc.renameat2(AT_CWD, names[0], AT_CWD, names[1], LINUX_EXCHANGE) == 0
        if sys.platform == "darwin":
            return libc.renamex_np(*names, MACOS_SWAP) == 0
    return False


def _discard(old: Path, path: Path) -> None:
    """Remove a folder that stands aside; half removed it must not look whole."""
    left = _beside(path, PARTIAL)
    old.rename(left)
    shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    """A new name beside `path`, in the order of time, that tells whose it is."""
    mark = f"{time.time_ns():020d}-{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{mark}.{kind}")


def _in_use(left: Path) -> bool:
    """Whether the process that a temporary folder names may still be at work on it."""
    _, host, pid, _ = (left.name.rsplit(".", 2)[1].split("-") + [""] * 4)[:4]
    if host == HOST and pid.isdecimal():
        with suppress(PermissionError):
            try:
                os.kill(int(pid), 0)
            except (ProcessLookupError, OverflowError):
                return False
        return True
    return time.time() - left.stat().st_mtime < WEEK


def _state(path: Path) -> tuple[int, int, int] | None:
    """What tells a folder from another one that takes its place."""
    with suppress(OSError):
        stat = path.stat()
        return stat.st_dev, stat.st_ino, stat.st_mtime_ns
    return None

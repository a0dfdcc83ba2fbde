"""A script or a command: how it starts and ends.

Imported before all else, so that Ctrl-C ends in one line while the other imports, which take
seconds, are at work; nothing but the standard library is imported here.
"""

import ctypes
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from errno import EDQUOT, EFBIG, ENOSPC
from io import TextIOWrapper
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

NO_MEMORY = "not enough memory; free some, or use a smaller model, fewer items or --dtype bfloat16"
ALLOCATION = "can't allocate memory"  # how torch's allocator for CPUs says it, in a RuntimeError
LONGEST = 1000  # letters of a refusal
NAME_MAX, PATH_MAX = 255, 4000  # bytes of a file's name, and of a path


def _stop_early(*_: Any) -> None:
    with suppress(OSError):
        os.write(2, b"stopped; no table was written\n")
    os._exit(130)


def _is_ours(main: Path) -> bool:
    module = main.parts[-3:] == ("wsrun", "cli", "__main__.py")
    return main.parent.name == "experiments" or main.stem == "wsrun" or module


def _begin() -> bool:
    """In a script of experiments/ and in wsrun: Ctrl-C ends in one line, no stream is None.

    A stream that was closed gets its number back, or the next file opened would have it. Returns
    whether Ctrl-C was taken.
    """
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is None or not _is_ours(Path(main).absolute()):
        return False
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop_early)
        return True
    return False


_started = _begin()


@contextmanager
def importing() -> Iterator[None]:
    """Inside, Ctrl-C of a script ends it in one line, as libraries that load may swallow it."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and _started
    try:
        if ours:
            signal.signal(signal.SIGINT, _stop_early)
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def guarded(main: Callable[[Any], None], config: Any, prog: str | None = None) -> None:
    """Parse flags into `config`, run `main`, and end every refusal as one sentence, exit code 1.

    config: a dataclass of options, or a union of them, one a subcommand of `prog`. Nothing that
    takes long to import is imported before the flags are parsed.
    A ValueError is a refusal: its message goes to stderr. So are too little memory and a disk that
    is full, also behind stdout; where the reader of stdout has gone nothing is said. Ctrl-C ends
    with exit code 130 and says which tables were written before it. Any other exception is a defect
    and keeps its traceback.
    """
    import tyro

    doc = main.__globals__.get("__doc__") or ""
    # a blank line before each label, or the help would run them together
    doc = re.sub(r"\n(?=(Prediction|Rule|Differences):)", "\n\n", doc)
    # neither is for the user: BOFT's missing CUDA extension, and a rename inside transformers
    warnings.filterwarnings("ignore", module=r"peft\.tuners\.boft")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    _prepare_streams()
    _tables().clear()
    cfg = None
    try:
        if signal.getsignal(signal.SIGINT) is _stop_early:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cfg = tyro.cli(config, prog=prog, description=doc)
        check_values(cfg)
        keep_freed_memory()
        main(cfg)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _end(130, "", _what_was_written(cfg, _tables()))
    except (ValueError, MemoryError, OSError, RuntimeError) as error:
        if (sentence := refusal(error)) is None:
            raise
        _end(1, "error: ", sentence)


def check_values(cfg: Any) -> None:
    """Refuse values that no option of any script can have, by the name of the option.

    A number is finite, a list names each value once, a text or path is one that tables, pages and
    tokenizers can hold and that may be the name of a file. Fields whose metadata say `prose` are
    texts of any kind.
    """
    for field in fields(cfg):
        if field.metadata.get("prose"):
            continue
        value, flag = getattr(cfg, field.name), f"--{field.name.replace('_', '-')}"
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts:
            if fault := _fault(part):
                shown = ascii(str(part))
                shown = shown if len(shown) <= 80 else shown[:80] + " ..."
                raise ValueError(f"{flag} {shown} {fault}; give another value")
        if len(set(parts)) < len(parts):
            got = " ".join(map(str, parts))[:200]
            raise ValueError(f"{flag} must name each one once; got {got}")


def _fault(value: Any) -> str | None:
    if isinstance(value, float):
        return None if isfinite(value) else "must be finite"
    if not isinstance(value, str | Path):
        return None
    text = str(value)
    try:
        sizes = [len(part.encode()) for part in text.split("/")]
    except UnicodeEncodeError:
        return "is not UTF-8"
    if max(sizes) > NAME_MAX or sum(sizes) > PATH_MAX:
        return f"is too long, a name has at most {NAME_MAX} bytes"
    return None if text.isprintable() else "has characters that cannot be printed"


def refusal(error: BaseException) -> str | None:
    """The sentence for what is expected to fail, "" for a reader that has gone; None for others."""
    from wscore.files import reason

    if isinstance(error, ValueError):
        return reason(error, LONGEST)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return NO_MEMORY
    if isinstance(error, BrokenPipeError):
        return ""
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG):
        what = repr(str(error.filename)) if error.filename else "the output"
        return f"{what} cannot be written ({reason(error.strerror or error)}); free some space"
    return NO_MEMORY if ALLOCATION in str(error) else None


def _prepare_streams() -> None:
    """Let no letter that the terminal cannot show end a script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fails(stream: Any) -> bool:
    try:
        stream.flush()
    except OSError:
        return True
    return False


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, up to a gigabyte, in place of giving it back at once.

    Every operation frees the activations of a batch and allocates new ones; with the defaults each
    allocation pays its page faults anew, about a third of a narrow model's time. No effect on
    other C libraries.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**25)


def _tables() -> list[Path]:
    """The tables that this process has written; none where what writes them was not loaded."""
    module = sys.modules.get("wsrun.report.tables")
    return module.WRITTEN if module else []


def _what_was_written(cfg: Any, tables: list[Path]) -> str:
    names = ", ".join(path.name for path in tables)
    message = f"stopped after {names}" if names else "stopped; no table was written"
    if hasattr(cfg, "cache_dir"):
        message += ", what was scored is kept and the same command goes on from there"
    return message


def _end(code: int, label: str, sentence: str) -> NoReturn:
    """Say the sentence, where there is one and stderr takes it, and exit."""
    from rich.console import Console
    from rich.text import Text

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    with suppress(OSError):
        text = Text.assemble((label, "bold red"), sentence)
        if sentence:
            Console(stderr=True, soft_wrap=True).print(text, highlight=False)
    for stream in (sys.stdout, sys.stderr):
        if _fails(stream):
            from wsrun.report.console import silence

            silence(stream)
    sys.exit(code)

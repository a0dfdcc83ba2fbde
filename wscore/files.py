"""Files: written whole or not at all, read as bounded UTF-8, failures told in one short line."""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MOST_BYTES = 2**30
"""of a text file that is read"""


def reason(error: BaseException | str, length: int = 200) -> str:
    """What an exception says, as one line of printable text of at most `length` letters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= length else text[: length - 4] + " ..."


def quoted(value: object, length: int = 100) -> str:
    """repr(value) for a message: one printable line of at most `length` letters."""
    return reason(repr(value), length)


@contextmanager
def refusing(what: str, remedy: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Exceptions of these kinds inside become ValueError("what (reason); remedy")."""
    try:
        yield
    except kinds as error:
        raise ValueError(f"{what} ({reason(error)}); {remedy}") from error


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a file; ValueError, naming it, where there is none or it has more bytes."""
    path = Path(path)
    with refusing(f"{str(path)!r} cannot be read", "give a readable file of text", OSError):
        if not path.is_file():
            raise FileNotFoundError("no such file")
        if (size := path.stat().st_size) > most:
            raise ValueError(f"{str(path)!r} has {size} bytes, at most {most} are read; split it")
        raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{str(path)!r} is not UTF-8 text at byte {error.start}, line {line}; save it as UTF-8"
        ) from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; ValueError, naming `where`, for what is none or nests too deep."""
    kinds = ValueError, RecursionError
    with refusing(f"{where} is not JSON", "write it again, or take it out", *kinds):
        return json.loads(text)


def read_json(path: str | Path, most: int = 2**24) -> Any:
    """The value in a JSON file; ValueError as of `read_text` and `parse_json`."""
    return parse_json(read_text(path, most), repr(str(path)))


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a jsonl file, a line each; ValueError, naming file and line, for a bad one."""
    lines = enumerate(read_text(path).split("\n"), 1)
    return [parse_json(line, f"line {n} of {str(path)!r}") for n, line in lines if line.strip()]


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Run write(temporary path beside `path`), sync it, rename it to `path`; returns `path`.

    Folders are made as needed. Whatever happens in between, also a kill, `path` holds the whole new
    file or what was there before. Raises ValueError where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    what = f"{str(path)!r} cannot be written"
    try:
        with refusing(what, "free some space or use another folder", OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def sync(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

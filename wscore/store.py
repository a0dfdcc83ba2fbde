"""Deltas on disk: one safetensors file with its provenance in the header.

save_delta(d, path, meta); load_delta(path) is d bit by bit, and load_delta(path).meta is meta
"""

import json
import os
import secrets
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from wscore.delta import check_finite, outlines, some
from wscore.factored import Factored, OnDemand

DTYPES = {"F32": torch.float32, "F64": torch.float64}
trained_reads: list[str] = []
"""paths of the deltas and adapters read by this process, for what must be made before any is"""


FACTORED = "wscore.factored"  # in the header of a file whose tensors are "<name>|L", "<name>|R"


def save_delta(d: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Write d with its provenance and return the path; the partner of `load_delta`.

    One tensor is held at a time, so d may be lazily evaluated; a factored d is stored as factors.
    Safe against kills in the middle, as `write_whole`; raises ValueError for metadata that is not
    text, for what is no delta, and where `path` cannot be written.
    """
    if odd := [key for key, value in meta.items() if not isinstance(value, str)]:
        raise ValueError(f"save_delta: meta values of {odd} are not text; write them with str()")
    if FACTORED in meta:
        raise ValueError(f"save_delta: {FACTORED!r} in meta is the format's own; leave it out")
    if isinstance(d, Factored):
        d, meta = _halves(d), {**meta, FACTORED: "name = name|L @ name|R"}
    return write_whole(path, lambda partial: save_file(d, partial, meta))


def _halves(d: Factored) -> dict[str, Tensor]:
    """{name|L: L, name|R: R}"""
    return {f"{name}|{side}": x for name in d for side, x in d.factors(name)._asdict().items()}


def save_file(d: Mapping[str, Tensor], path: Path, meta: Mapping[str, str]) -> None:
    """What safetensors' save_file writes, byte for byte, but with one tensor in memory at a time.

    The format: length of the header in 8 bytes, the header as JSON, the tensors' bytes in its
    order, wider dtypes first and then by name. Raises ValueError for what is no delta.
    """
    kinds = {name: (w.dtype, w.shape) for name, w in outlines(d)}
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(meta)}
    end = 0
    for name in order:
        dtype, shape = kinds[name]
        start, end = end, end + dtype.itemsize * shape.numel()
        code = f"F{8 * dtype.itemsize}"
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(_checked(d, name, *kinds[name])))


def _checked(d: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """d[name] as the header says it is, and finite."""
    w = d[name]
    check_finite(name, w)
    if (w.dtype, w.shape) != (dtype, shape):
        raise ValueError(
            f"save_delta: {name!r} came out {w.dtype} {list(w.shape)} where {dtype} {list(shape)}"
            " was announced; evaluate lazily only functions that keep dtype and shape"
        )
    return w


def _bytes(w: Tensor) -> memoryview:
    return w.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Run write(temporary path beside `path`), sync it, rename it to `path`; returns `path`.

    Folders are made as needed. Whatever happens in between, also a kill, `path` holds the whole new
    file or what was there before. Raises ValueError where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be written ({error}); use another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def _sync(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LazyDelta(OnDemand):
    """A delta on disk: each access reads one tensor; `meta` is what was saved with it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"load_delta: there is no file {path}; write it with save_delta first")
        try:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            with safe_open(self.path, framework="pt") as file:  # is it whole?
                self.meta: dict[str, str] = dict(file.metadata() or {})
                self._names = dict.fromkeys(file.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"load_delta: {path} is not a whole safetensors file ({error}); write it again"
            ) from error
        length = int.from_bytes(os.pread(self._file, 8, 0), "little")
        self._header = json.loads(os.pread(self._file, length, 8))
        self._start = 8 + length
        half = [name for name in self if self._header[name]["dtype"] not in DTYPES]
        if half or not self._names:
            raise ValueError(
                f"load_delta: {path} holds {len(self._names)} tensors, and {some(half)} not float32"
                " or float64; a delta needs at least one tensor, computed in float32"
            )

    def outline(self, name: str) -> Tensor:
        at = self._header[name]
        return torch.empty(at["shape"], dtype=DTYPES[at["dtype"]], device="meta")

    def __getitem__(self, name: str) -> Tensor:
        # read, not mapped: the pages of a mapped file count as this process's memory until others
        # need them, and a file may be larger than the memory
        w = torch.empty_like(self.outline(name), device="cpu")
        rest = _bytes(w)
        position = self._start + self._header[name]["data_offsets"][0]
        while len(rest):
            n = os.preadv(self._file, [rest], position)
            if n == 0:
                raise ValueError(f"load_delta: {self.path} was cut while in use; write it again")
            rest, position = rest[n:], position + n
        return w

    def __repr__(self) -> str:
        return f"LazyDelta({str(self.path)!r}, {len(self)} tensors, meta={self.meta})"


class LazyFactored(Factored):
    """A factored delta on disk: each access reads the factors of one tensor; `meta` as saved."""

    def __init__(self, file: LazyDelta):
        self.path, self._file = file.path, file
        self.meta = {key: value for key, value in file.meta.items() if key != FACTORED}
        self._names = dict.fromkeys(half[:-2] for half in file)
        if {f"{name}|{side}" for name in self for side in "LR"} != set(file):
            raise ValueError(
                f"load_delta: {file.path} says it is factored, but has {some(file)} and not an"
                " L and an R for each name; write it again"
            )

    def _read(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self:
            raise KeyError(name)
        return self._file[f"{name}|L"], self._file[f"{name}|R"]


def load_delta(path: str | Path) -> LazyDelta | LazyFactored:
    """The delta in a file of `save_delta`, read tensor by tensor, its provenance as `.meta`."""
    trained_reads.append(str(path))
    file = LazyDelta(path)
    return LazyFactored(file) if FACTORED in file.meta else file


def tensors_sha256(d: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes: the same whatever the order of keys."""
    digest = sha256()
    for name in sorted(d):
        w = d[name]
        digest.update(f"{name}\0{w.dtype}\0{list(w.shape)}\0".encode())
        digest.update(_bytes(w))
    return digest.hexdigest()


_hashes: WeakIdKeyDictionary = WeakIdKeyDictionary()


def entries_sha256(d: Mapping[str, Tensor]) -> dict[str, str]:
    """name -> sha256 of that entry's dtype, shape and bytes, of its factors where d is factored.

    Tensors that are hashed already, and unchanged since, are not read again: parts of one delta
    share them.
    """
    return {name: _entry_sha256(d, name) for name in sorted(d)}


def _entry_sha256(d: Mapping[str, Tensor], name: str) -> str:
    if isinstance(d, Factored):
        return " ".join(_tensor_sha256(x) for x in d.factors(name))
    return _tensor_sha256(d[name])


def _tensor_sha256(w: Tensor) -> str:
    at = (w.data_ptr(), w._version)
    then, known = _hashes.get(w) or (None, "")
    if then == at:
        return known
    digest = sha256(f"{w.dtype}\0{list(w.shape)}\0".encode())
    digest.update(_bytes(w))
    _hashes[w] = at, digest.hexdigest()
    return digest.hexdigest()

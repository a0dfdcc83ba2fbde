"""Deltas on disk: one safetensors file with its provenance in the header.

save_delta(d, path, meta); load_delta(path) is d bit by bit, and load_delta(path).meta is meta
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wscore.delta import check_delta, some


def save_delta(d: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Write d with its provenance and return the path; the partner of `load_delta`.

    Safe against kills in the middle, as `write_whole`; raises ValueError for metadata that is not
    text, for what is no delta, and where `path` cannot be written.
    """
    if odd := [key for key, value in meta.items() if not isinstance(value, str)]:
        raise ValueError(f"save_delta: meta values of {odd} are not text; write them with str()")
    tensors = _separate(check_delta(d))
    return write_whole(path, lambda partial: save_file(tensors, partial, metadata=dict(meta)))


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Run write(temporary path beside `path`), sync it, rename it to `path`; returns `path`.

    Folders are made as needed. Whatever happens in between, also a kill, `path` holds the whole new
    file or what was there before. Raises ValueError where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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


def _separate(d: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors; those that share memory are copied, as the format has no aliases."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name in d:
        w = d[name].detach().contiguous()
        shared = w.untyped_storage().data_ptr() in seen
        tensors[name] = w.clone() if shared else w
        seen.add(tensors[name].untyped_storage().data_ptr())
    return tensors


def _sync(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LazyDelta(Mapping[str, Tensor]):
    """A delta on disk: each access reads one tensor; `meta` is what was saved with it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"load_delta: there is no file {path}; write it with save_delta first")
        try:
            self._file = safe_open(self.path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"load_delta: {path} is not a whole safetensors file ({error}); write it again"
            ) from error
        self.meta: dict[str, str] = dict(self._file.metadata() or {})
        self._names = list(self._file.keys())
        half = [n for n in self._names if self._file.get_slice(n).get_dtype() not in ("F32", "F64")]
        if half or not self._names:
            raise ValueError(
                f"load_delta: {path} holds {len(self._names)} tensors, and {some(half)} not float32"
                " or float64; a delta needs at least one tensor, computed in float32"
            )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"LazyDelta({str(self.path)!r}, {len(self)} tensors, meta={self.meta})"


def load_delta(path: str | Path) -> LazyDelta:
    """The delta in a file of `save_delta`, read tensor by tensor, its provenance as `.meta`."""
    return LazyDelta(path)


def tensors_sha256(d: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes: the same whatever the order of keys."""
    digest = sha256()
    for name in sorted(d):
        w = d[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{w.dtype}\0{list(w.shape)}\0".encode())
        digest.update(w.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Deltas on disk: one safetensors file with its provenance in the header.

save_delta(d, path, meta); load_delta(path) is d bit by bit, and load_delta(path).meta is meta
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from wscore.entries import check_delta, format_keys
from wscore.factored import Factored, OnDemand
from wscore.files import write_whole

DTYPES = {"F32": torch.float32, "F64": torch.float64}
FACTORED = "wscore.factored"  # in the header of a file whose tensors are "<name>|L", "<name>|R"


def save_delta(d: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Write d with its provenance and return the path; the partner of `load_delta`.

    A factored d is stored as factors. Tensors in memory are written where they lie, not copied.
    Safe against kills in the middle, as `write_whole`; raises ValueError for metadata that is not
    text, for what is no delta, and where `path` cannot be written.
    """
    if odd := [key for key, value in meta.items() if not isinstance(value, str)]:
        raise ValueError(f"save_delta: `meta` is not text at {odd}; write the values with str()")
    if FACTORED in meta:
        raise ValueError(f"save_delta: {FACTORED!r} in `meta` is the format's own; leave it out")
    if isinstance(d, Factored):
        d, meta = to_halves(d), {**meta, FACTORED: "name = name|L @ name|R"}
    tensors = _separate(check_delta(d))
    return write_whole(path, lambda partial: save_file(tensors, partial, dict(meta)))


def to_halves(d: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """{name|L: L, name|R: R} of a factored delta, any other as it is; see `from_halves`."""
    if not isinstance(d, Factored):
        return d
    return {f"{name}|{side}": x for name in d for side, x in d.factors(name)._asdict().items()}


def from_halves(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The factored delta of name|L and name|R, anything else as it is: undoes `to_halves`."""
    names = [name.removesuffix("|L") for name in tensors if name.endswith("|L")]
    factors = {n: (tensors[f"{n}|L"], tensors[f"{n}|R"]) for n in names}
    return Factored(factors) if factors else tensors


def _separate(d: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of d as safetensors takes them: contiguous, and none sharing memory."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in d:
        w = d[name].detach().cpu().contiguous()
        at = w.untyped_storage().data_ptr()
        out[name] = w.clone() if at in seen else w
        seen |= {at}
    return out


class LazyDelta(OnDemand):
    """A delta on disk: each access reads one tensor; `meta` is what was saved with it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"load_delta: there is no file {path}; write it with save_delta first")
        try:
            # read, not mapped: the pages of a mapped file count as this process's memory until
            # others need them, and a file may be larger than the memory
            self._file = safe_open(self.path, framework="pt", backend="pread")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"load_delta: {path} is not a whole safetensors file ({error}); write it again"
            ) from error
        self.meta: dict[str, str] = dict(self._file.metadata() or {})
        self._names = dict.fromkeys(self._file.keys())
        half = [name for name in self if self._file.get_slice(name).get_dtype() not in DTYPES]
        if half or not self._names:
            raise ValueError(
                f"load_delta: {path} holds {len(self._names)} tensors, and {format_keys(half)} not"
                " float32 or float64; a delta needs at least one tensor, computed in float32"
            )

    def _meta(self, name: str) -> Tensor:
        at = self._file.get_slice(name)
        return torch.empty(at.get_shape(), dtype=DTYPES[at.get_dtype()], device="meta")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self._file.get_tensor(name)

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
                f"load_delta: {file.path} says it is factored, but has {format_keys(file)} and not"
                " an L and an R for each name; write it again"
            )

    def _read(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self:
            raise KeyError(name)
        return self._file[f"{name}|L"], self._file[f"{name}|R"]


def load_delta(path: str | Path) -> LazyDelta | LazyFactored:
    """The delta in a file of `save_delta`, read tensor by tensor, its provenance as `.meta`."""
    file = LazyDelta(path)
    return LazyFactored(file) if FACTORED in file.meta else file


def _bytes(w: Tensor) -> memoryview:
    return w.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


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

"""Deltas on disk: one safetensors file with its provenance in the header.

save_delta(d, path, meta); load_delta(path) is d bit by bit, and load_delta(path).meta is meta
"""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wscore.entries import format_keys, nonempty
from wscore.factored import Factored, Factors, OnDemand
from wscore.files import quoted, refusing
from wscore.hashes import tensor_sha256
from wscore.sealed import DTYPES, SEAL, check_seal, write_sealed

BROKEN = (OSError, SafetensorError)  # what safetensors raises on a damaged file
REMEDY = "copy it again or write it again"
FACTORED = "wscore.factored"  # in the header of a file whose tensors are "<name>|L", "<name>|R"


def save_delta(d: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any]) -> Path:
    """Write d with its provenance and return the path; the partner of `load_delta`.

    A factored d is stored as factors. Entries are read and written one by one, and sealed
    (sealed.py). Safe against kills in the middle, as `write_whole`; raises ValueError for metadata
    that is not text, for what is no delta, and where `path` cannot be written.
    """
    if odd := [key for key, value in meta.items() if not isinstance(value, str)]:
        raise ValueError(
            f"save_delta: `meta` is not text at {quoted(odd)}; write the values with str()"
        )
    if FACTORED in meta:
        raise ValueError(f"save_delta: {FACTORED!r} in `meta` is the format's own; leave it out")
    if isinstance(nonempty(d), Factored):
        d, meta = to_halves(d), {**meta, FACTORED: "name = name|L @ name|R"}
    return write_sealed(path, d, meta)


def to_halves(d: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """{name|L: L, name|R: R} of a factored delta, any other as it is; see `from_halves`."""
    if not isinstance(d, Factored):
        return d
    return {f"{name}|{side}": x for name in d for side, x in d.factors(name)._asdict().items()}


def from_halves(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The factored delta of name|L and name|R, anything else as it is: undoes `to_halves`.

    Raises ValueError for halves without the other, or beside other tensors.
    """
    names = [name.removesuffix("|L") for name in tensors if name.endswith("|L")]
    if names and set(tensors) != {f"{name}|{side}" for name in names for side in "LR"}:
        raise ValueError(f"of {format_keys(tensors)} some have an L or R without the other")
    factored = Factored({n: (tensors[f"{n}|L"], tensors[f"{n}|R"]) for n in names})
    for name in names:
        factored.factors(name)  # raises where they do not fit
    return factored if names else tensors


class LazyDelta(OnDemand):
    """A delta on disk: each access reads one tensor; `meta` is what was saved with it.

    Where the file is sealed, header and tensors are compared with what was saved, a tensor when it
    is first read. A copy shares the open file; a pickle opens it again, and is refused where it is
    not sealed or has been replaced by another.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._what = f"load_delta: {quoted(str(path), 300)}"
        with refusing(f"{self._what} is no file that can be read", REMEDY, OSError, ValueError):
            present = self.path.is_file()
        if not present:
            where = quoted(str(path), 300)
            raise ValueError(
                f"load_delta: there is no file {where}; write it with save_delta first"
            )
        with refusing(f"{self._what} is not a whole safetensors file", REMEDY, *BROKEN):
            # read, not mapped: the pages of a mapped file count as this process's memory until
            # others need them, and a file may be larger than the memory
            self._file = safe_open(self.path, framework="pt", backend="pread")
            self._names = dict.fromkeys(self._file.keys())
            half = [n for n in self if self._file.get_slice(n).get_dtype() not in DTYPES]
            self._header = dict(self._file.metadata() or {})
        if half or not self._names:
            raise ValueError(
                f"{self._what} holds {len(self._names)} tensors, and {format_keys(half)} not"
                " float32 or float64; a delta needs at least one tensor, computed in float32"
            )
        self.meta, self._unread = check_seal(self._what, self._names, self._header)

    def _meta(self, name: str) -> Tensor:
        at = self._file.get_slice(name)
        return torch.empty(at.get_shape(), dtype=DTYPES[at.get_dtype()], device="meta")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        with refusing(f"{self._what}: {quoted(name)} cannot be read", REMEDY, *BROKEN):
            w = self._file.get_tensor(name)
        if name in self._unread:
            if tensor_sha256(w) != self._unread[name]:
                raise ValueError(
                    f"{self._what} is damaged: the numbers of {quoted(name)} are not those that"
                    f" were saved; {REMEDY}"
                )
            del self._unread[name]
        return w

    def __deepcopy__(self, memo: dict) -> "LazyDelta":
        twin = copy(self)
        twin.meta = dict(self.meta)
        return twin

    def __reduce__(self) -> tuple:
        if SEAL not in self._header:
            raise ValueError(
                f"{self._what} has no hashes to know it by, so it is not pickled; load it where it"
                " is needed, or save it again with save_delta"
            )
        return _reopened, (str(self.path.absolute()), self._header)

    def __repr__(self) -> str:
        return f"LazyDelta({str(self.path)!r}, {len(self)} tensors, meta={self.meta})"


def _reopened(path: str, header: dict[str, str]) -> LazyDelta:
    file = LazyDelta(path)
    if file._header != header:
        raise ValueError(
            f"load_delta: {quoted(path, 300)} has been replaced since this delta was pickled; load"
            " the new file, or pickle again"
        )
    return file


class LazyFactored(Factored):
    """A factored delta on disk: each access reads the factors of one tensor; `meta` as saved."""

    def __init__(self, file: LazyDelta):
        self.path, self._file = file.path, file
        self.meta = {key: value for key, value in file.meta.items() if key != FACTORED}
        self._names = dict.fromkeys(half[:-2] for half in file)
        if {f"{name}|{side}" for name in self for side in "LR"} != set(file):
            raise ValueError(
                f"load_delta: {quoted(str(file.path), 300)} says it is factored, but has"
                f" {format_keys(file, 2)} and not an L and an R for each name; {REMEDY}"
            )

    def factors(self, name: str) -> Factors:
        try:
            return super().factors(name)
        except ValueError as error:
            where = self._file.path.name
            raise ValueError(f"{error}" if where in str(error) else f"{error} ({where})") from error

    def _read(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self:
            raise KeyError(name)
        return self._file[f"{name}|L"], self._file[f"{name}|R"]


def load_delta(path: str | Path) -> LazyDelta | LazyFactored:
    """The delta in a file of `save_delta`, read tensor by tensor, its provenance as `.meta`."""
    file = LazyDelta(path)
    return LazyFactored(file) if FACTORED in file.meta else file

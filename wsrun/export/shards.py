"""Weight files of a model, read and written in blocks of rows: no tensor is held as a whole."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wscore.files import quoted, refusing
from wscore.hashes import as_bytes
from wsrun.models.checkpoint import COPY_ANEW, INDEX, WEIGHTS

BROKEN = (OSError, SafetensorError, ValueError, KeyError)
BLOCK = 2**25  # bytes of a tensor that are held at once
ROWS = 64  # of a block, or a multiple: so vector instructions meet each number as in the whole
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in FLOATS.items()}


class Stored(NamedTuple):
    """One tensor of a safetensors file, not read yet: its type and shape, its bytes' place."""

    path: Path
    name: str
    code: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, tensor) of all rows in turn, all at once where they are few; bytes where the type
        is no float.

        Read, not mapped: pages of a mapped file count as this process's memory. safetensors' own
        slices read the whole tensor for each.
        """
        rows, dtype = self.shape[0] if self.shape else 1, FLOATS.get(self.code)
        step = max(ROWS, rows * BLOCK // max(self.nbytes, 1) // ROWS * ROWS)
        each, what = self.nbytes // max(rows, 1), f"export: {quoted(self.name)} cannot be read"
        with refusing(what, COPY_ANEW, OSError, ValueError), self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, max(rows, 1), step):
                last = min(first + step, rows)
                raw = bytearray((last - first) * each)
                if file.readinto(raw) != len(raw):
                    raise ValueError(f"{str(self.path)!r} ends within it")
                kind = dtype or torch.uint8
                flat = torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)
                shape = (last - first, *self.shape[1:]) if self.shape else ()
                yield slice(first, last), flat.reshape(shape) if dtype else flat


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """name -> tensor of the safetensors files of a model, in their order, none of them read."""
    found: dict[str, Stored] = {}
    for path in files:
        what = f"export: {str(path)!r} cannot be read"
        with refusing(what, COPY_ANEW, *BROKEN), safe_open(path, framework="pt", backend="pread"):
            with path.open("rb") as file:  # a header that safetensors takes
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, x in header.items():
                start, end = x["data_offsets"]
                at = 8 + size + start
                found[name] = Stored(path, name, x["dtype"], tuple(x["shape"]), at, end - start)
    return found


class Planned(NamedTuple):
    """One tensor to write: its type and shape, and its rows in turn."""

    code: str
    shape: tuple[int, ...]
    nbytes: int
    blocks: Iterable[Tensor]


def write_shards(folder: Path, tensors: Mapping[str, Planned], most: int) -> list[str]:
    """Write model.safetensors, or its shards of at most `most` bytes and their index.

    A tensor of more bytes is a shard of its own. Returns the names of the weight files.
    """
    shards = _split(tensors, most)
    n = len(shards)
    names = [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    names = names if n > 1 else [WEIGHTS]
    for file, shard in zip(names, shards, strict=True):
        _write(folder / file, {name: tensors[name] for name in shard})
    if n > 1:
        where = {name: f for f, shard in zip(names, shards, strict=True) for name in shard}
        size = sum(x.nbytes for x in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def _split(tensors: Mapping[str, Planned], most: int) -> list[list[str]]:
    """The names in order, in runs of at most `most` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, x in tensors.items():
        if shards[-1] and size + x.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += x.nbytes
    return shards


def _write(path: Path, tensors: Mapping[str, Planned]) -> None:
    """One safetensors file, a block at a time; the widest types first, so that each is aligned."""
    each = {n: x.nbytes // max(torch.Size(x.shape).numel(), 1) for n, x in tensors.items()}
    order = sorted(tensors, key=lambda name: (-each[name], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        x = tensors[name]
        offsets = [end, end := end + x.nbytes]
        header[name] = dict(dtype=x.code, shape=list(x.shape), data_offsets=offsets)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            for block in tensors[name].blocks:
                file.write(as_bytes(block))

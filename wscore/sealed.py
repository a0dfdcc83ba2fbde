"""Sealed files: safetensors with hashes of every tensor, and of names and metadata, in the header.

write_sealed(path, tensors, meta); check_seal(what, names, header) == (meta, {name: sha256})

A bit that changes on disk is seen when it is read. Other readers find plain safetensors with one
more line of metadata.
"""

import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from wscore.entries import allowed, check_finite, entry
from wscore.factored import meta
from wscore.files import quoted, write_whole
from wscore.hashes import as_bytes, tensor_sha256

DTYPES = {"F32": torch.float32, "F64": torch.float64}
SEAL, MARK = "wscore.sha256", "sealed "  # a flipped bit of one of them leaves the other
OWN = ("__metadata__", SEAL)
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_TO_COME = "0" * 64


def write_sealed(path: str | Path, d: Mapping[str, Tensor], meta: Mapping[str, str]) -> Path:
    """Write the entries of a delta one by one, each read once, and return the path; none is fine.

    The largest types come first, then names in order, as safetensors lays them out. Raises
    ValueError for entries that no delta may hold, as `check_delta`, for names and metadata that are
    no text, and where `path` cannot be written.
    """
    for text in (x for x in (*d, *meta, *meta.values())):
        if not isinstance(text, str) or not _is_unicode(text):
            raise ValueError(f"save: {quoted(text)} is not text; use str() of names and metadata")
    if odd := [name for name in (*d, *meta) if name in OWN]:
        raise ValueError(f"save: {odd} are the format's own names; rename them")
    return write_whole(path, lambda partial: _write(partial, d, dict(meta)))


def _is_unicode(text: str) -> bool:
    return text.isprintable() or text.encode(errors="replace").decode() == text


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: list[int]
    nbytes: int


def _write(partial: Path, d: Mapping[str, Tensor], texts: dict[str, str]) -> None:
    places = {name: _place(name, meta(d, name)) for name in d}
    order = sorted(places, key=lambda name: (-places[name].dtype.itemsize, name))
    hashes = dict.fromkeys(order, _TO_COME)
    with partial.open("wb") as file:
        _write_header(file, places, hashes, texts)
        for name in order:
            w = entry(d, name)
            check_finite(name, w)
            hashes[name] = tensor_sha256(w)
            file.write(as_bytes(w))
        file.seek(0)
        _write_header(file, places, hashes, texts)  # as long as before


def _place(name: str, w: Tensor) -> _Place:
    allowed(name, w)
    return _Place(w.dtype, list(w.shape), w.numel() * w.itemsize)


def _write_header(
    file: BinaryIO, places: Mapping[str, _Place], hashes: dict[str, str], texts: dict[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": {**texts, SEAL: _seal(texts, hashes)}}
    end = 0
    for name in hashes:
        dtype, shape, nbytes = places[name]
        offsets = [end, end := end + nbytes]
        header[name] = dict(dtype=_CODES[dtype], shape=shape, data_offsets=offsets)
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)


def _seal(texts: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    return MARK + json.dumps({"header": _header_sha256(texts, hashes), "tensors": hashes})


def _header_sha256(texts: Mapping[str, str], hashes: Mapping[str, str]) -> str:
    return sha256(json.dumps([sorted(texts.items()), sorted(hashes.items())]).encode()).hexdigest()


def check_seal(
    what: str, names: Collection[str], header: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(the metadata without the seal, the sha256 by name), {} for those of a file without a seal.

    Raises ValueError, opening with `what`, where names or metadata are not those that were sealed.
    """
    texts = {key: value for key, value in header.items() if key != SEAL}
    seal = header.get(SEAL)
    if seal is None and not any(value.startswith(MARK) for value in texts.values()):
        return texts, {}
    try:
        known = json.loads((seal or "").removeprefix(MARK))
        hashes = dict(known["tensors"])
        whole = known["header"] == _header_sha256(texts, hashes) and set(hashes) == set(names)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole, hashes = False, {}
    if not whole:
        raise ValueError(
            f"{what} is damaged: names and metadata in its header are not those that were saved;"
            " copy it again or write it again"
        )
    return texts, hashes

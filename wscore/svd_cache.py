"""Singular value decompositions of base weights, computed once and kept on disk.

cached_spectra(base, folder) is spectra(base), the second time without computing it
"""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wscore.files import write_whole
from wscore.hashes import tensors_sha256
from wscore.spectrum import SVD, TOL, spectra

FORMAT = "1"  # raise it whenever `svd` finds other numbers, or the file says them otherwise


def cached_spectra(
    base: Mapping[str, Tensor],
    folder: str | Path,
    progress: Callable[[str], None] | None = None,
) -> dict[str, SVD]:
    """spectra(base), read from <folder>/<sha256>.safetensors where a former call has written it.

    The sha256 is of all that decides the numbers: names and bits of exactly these weights, TOL,
    the format, torch's version and the kind of device. A file that is truncated, or holds anything
    but what was written under this name, is computed again and replaced. Computed or read, the
    result has the same bits. progress(name) is called after each tensor that had to be computed.
    Raises ValueError for an empty base and where the file cannot be written.
    """
    if not len(base):
        raise ValueError("cached_spectra: the base is empty; pass the weights to decompose")
    key = _key(base)
    name = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = Path(folder) / f"{name}.safetensors"
    tensors = _read(path, key) or _write(path, key, _compute(base, progress))
    return {
        n: SVD(*(tensors[f"{n}.{part}"].to(base[n].device) for part in SVD._fields)) for n in base
    }


def _key(base: Mapping[str, Tensor]) -> dict[str, str]:
    devices = sorted({base[name].device.type for name in base})
    return {
        "base": tensors_sha256(base),
        "tolerance": repr(TOL),
        "format": FORMAT,
        "torch": torch.__version__,
        "device": ", ".join(devices),
    }


def _compute(
    base: Mapping[str, Tensor], progress: Callable[[str], None] | None
) -> dict[str, Tensor]:
    """{name.U, name.S, name.Vt}, laid out as a file holds them."""
    tensors = {}
    for name in base:
        factors = spectra({name: base[name]})[name]._asdict()
        for part, w in factors.items():  # strides too decide the bits of later products
            tensors[f"{name}.{part}"] = w.cpu().clone(memory_format=torch.contiguous_format)
        if progress is not None:
            progress(name)
    return tensors


def _write(path: Path, key: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    meta = {**key, "content": tensors_sha256(tensors)}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata=meta))
    return tensors


def _read(path: Path, key: dict[str, str]) -> dict[str, Tensor] | None:
    """What `_write` wrote there with that key, bit for bit, or None."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        return None
    content = meta.pop("content", None)
    return tensors if meta == key and content == tensors_sha256(tensors) else None

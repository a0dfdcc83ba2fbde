"""sha256 of tensors and of deltas: what tables, caches and files know them by."""

from collections.abc import Iterable, Mapping
from hashlib import sha256

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from wscore.factored import Factored


def as_bytes(w: Tensor) -> memoryview:
    """The bytes of a tensor in order, not copied where it lies so in memory."""
    return w.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensors_sha256(d: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes: the same whatever the order of keys."""
    read = ((name, d[name]) for name in sorted(d))  # each read once
    return blocks_sha256((name, w.dtype, w.shape, (w,)) for name, w in read)


def blocks_sha256(
    named: Iterable[tuple[str, torch.dtype, Iterable[int], Iterable[Tensor]]],
) -> str:
    """`tensors_sha256` of (name, dtype, shape, blocks of rows), sorted by name; none is held."""
    digest = sha256()
    for name, dtype, shape, blocks in named:
        digest.update(f"{name}\0{dtype}\0{list(shape)}\0".encode())
        for block in blocks:
            digest.update(as_bytes(block))
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
        return " ".join(tensor_sha256(x) for x in d.factors(name))
    return tensor_sha256(d[name])


def tensor_sha256(w: Tensor) -> str:
    """sha256 over dtype, shape and bytes, remembered for as long as the tensor is unchanged."""
    at = (w.data_ptr(), w._version)
    then, known = _hashes.get(w) or (None, "")
    if then == at:
        return known
    digest = sha256(f"{w.dtype}\0{list(w.shape)}\0".encode())
    digest.update(as_bytes(w))
    _hashes[w] = at, digest.hexdigest()
    return digest.hexdigest()

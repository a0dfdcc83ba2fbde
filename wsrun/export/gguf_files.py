"""GGUF files through the gguf package, which is imported only here and only when it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wscore.files import quoted, refusing


def gguf_package(who: str) -> Any:
    """The gguf package; ValueError with the command where it is not installed."""
    with refusing(f"{who}: the package gguf is missing", "run pip install gguf", ImportError):
        import gguf

        return gguf


def write_gguf(
    who: str, path: Path, architecture: str, facts: Mapping[str, str | int | float],
    tensors: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Write float32 tensors, and facts by key: text, uint32 or float32 by their Python type."""
    gguf = gguf_package(who)
    writer = gguf.GGUFWriter(path, architecture)
    kinds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in facts.items():
        kinds[type(value)](key, value)
    for name, w in tensors.items():
        writer.add_tensor(name, w.detach().cpu().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_gguf(who: str, path: str | Path) -> Any:
    """A reader of the file; ValueError where there is none or it is damaged."""
    gguf, what = gguf_package(who), f"{who}: {quoted(str(path), 300)} is no GGUF file"
    with refusing(what, "give a whole file", Exception):  # gguf raises any kind on damage
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        return gguf.GGUFReader(path)


def fact(reader: Any, key: str) -> Any:
    """A fact of the file by its key, None where it has none."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def floats(who: str, tensor: Any) -> Tensor:
    """A tensor of the file as float32; ValueError for one that is quantised or damaged."""
    what = f"{who}: {quoted(tensor.name)} cannot be read as numbers"
    with refusing(what, "give a file with float32 tensors", Exception):
        if tensor.tensor_type.name not in ("F32", "F16"):
            raise ValueError(f"it is {tensor.tensor_type.name}")
        return torch.from_numpy(tensor.data.copy()).float()

"""Delta files: what load_delta reads is what save_delta wrote, bit by bit, or it is refused.

A file that was rewritten validly, without hashes, is what safetensors itself reads of it.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tests.fuzz.cases import Border, Case, damaged_bytes, damaged_value
from wscore import Factored, load_delta, save_delta

FILE = "d.safetensors"
META = {"family": "lora", "seed": "0", "note": "Ünïcode"}
Read = tuple[dict[str, Tensor], dict[str, str]]


def prepare(folder: Path) -> list[tuple[bytes, Read]]:
    """Two files, of a delta and of a factored one: (bytes, (tensors as stored, meta))."""
    g = torch.Generator().manual_seed(0)
    q, b = torch.randn(3, 4, generator=g), torch.randn(5, generator=g, dtype=torch.float64)
    plain = {"model.layers.0.mlp.down_proj.weight": q, "model.layers.1.self_attn.q_proj.bias": b}
    factors = {"a": (q, torch.randn(4, 6, generator=g)), "b": (q.T.contiguous(), q)}
    halves = {
        f"{n}|{side}": x for n, pair in factors.items() for side, x in zip("LR", pair, strict=True)
    }
    files = []
    for d, stored in ((plain, plain), (Factored(factors), halves)):
        path = save_delta(d, folder / FILE, META)
        files.append((path.read_bytes(), (stored, META)))
    return files


def case(rng: random.Random, folder: Path, files: Any) -> Case:
    raw, original = rng.choice(files)
    path = folder / FILE
    if rng.random() < 0.4:
        changed, what = damaged_bytes(rng, raw)
        path.write_bytes(changed)
        return Case(what, lambda: everything(path), (FILE,), lambda read: same(read, original))
    changed, what = rewritten(rng, raw)
    path.write_bytes(changed)
    unsealed = b"sealed " not in changed
    right = (lambda read: same(read, plainly(path))) if unsealed else lambda r: same(r, original)
    return Case(what, lambda: everything(path), (FILE,), right)


def rewritten(rng: random.Random, raw: bytes) -> tuple[bytes, str]:
    """The file with another header: a field damaged, hashes taken out or left, data changed too."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:end]), raw[end:]
    how = []
    if rng.random() < 0.6:
        del header["__metadata__"]["wscore.sha256"]
        how.append("hashes taken out")
    if rng.random() < 0.7:
        header, what = damaged_value(rng, header)
        how.append(what)
    if rng.random() < 0.3:
        data, what = damaged_bytes(rng, data)
        how.append(f"data: {what}")
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5)
    new = text.encode(errors="surrogatepass")
    return len(new).to_bytes(8, "little") + new + data, ", ".join(how) or "header written anew"


def everything(path: Path) -> Read:
    """All tensors as they are stored, and the metadata, as load_delta reads them."""
    d = load_delta(path)
    if isinstance(d, Factored):
        read = {f"{n}|{side}": x for n in d for side, x in zip("LR", d.factors(n), strict=True)}
        return read, dict(d.meta)
    return dict(d), dict(d.meta)


def plainly(path: Path) -> Read:
    """The same as safetensors reads it."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        meta = dict(file.metadata() or {})
    meta.pop("wscore.factored", None)
    return tensors, meta


def same(a: Read, b: Read) -> bool:
    """The same names, types, bits and metadata."""
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(map(equal, a[0].values(), at(a, b)))


def at(a: Read, b: Read) -> list[Tensor]:
    return [b[0][name] for name in a[0]]


def equal(x: Tensor, y: Tensor) -> bool:
    raw = [w.contiguous().reshape(-1).view(torch.uint8) for w in (x, y)]
    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(*raw)


BORDER = Border("deltas", prepare, case)

"""Stored results, generated pairs and selections: read as they were written, bit by bit, or not.

A cache finds nothing in a damaged file and makes it anew; a selection of vectors is refused.
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fuzz.cases import Border, Case, damaged_bytes, damaged_value, odd_value
from wscore.files import write_whole
from wscore.sealed_json import seal
from wsrun.data.answering import Counts
from wsrun.data.pairs import Pair
from wsrun.data.pairs_cache import GeneratedPairs, _read, _write
from wsrun.lenses.planting import SETTINGS, complete, record
from wsrun.score.results import Results
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors
from wsrun.study.selected import Selection, load_selected, save_selected
from wsrun.study.selection import read_sealed

N = 5
KEY = {"base": "b" * 64, "tokens": "t" * 64, "threads": "1"}
PLANT = {"plant": "one-module", "steps": 3, "rate": 0.5}


class Kind(NamedTuple):
    """A kind of file: its bytes and name, how it is read, and whether what is read is right."""

    path: Path  # relative to the folder that `read` gets
    raw: bytes
    read: Callable[[Path], Any]
    right: Callable[[Any], bool]


def prepare(folder: Path) -> list[Kind]:
    return [made(folder / made.__name__) for made in (results, pairs, choice, vectors, planted)]


def results(folder: Path) -> Kind:
    rng = torch.Generator().manual_seed(0)
    margin, mass = (torch.randn(N, generator=rng, dtype=torch.float64) for _ in range(2))
    Results(folder, KEY, N).put("change", 1.0, (margin, mass))
    (path,) = folder.rglob("*.safetensors")

    def right(found: Any) -> bool:
        bits = None if found is None else [x.view(torch.int64).tolist() for x in found]
        return bits in (None, [x.view(torch.int64).tolist() for x in (margin, mass)])

    return Kind(
        path.relative_to(folder),
        path.read_bytes(),
        lambda at: Results(at, KEY, N).get("change", 1.0),
        right,
    )


def pairs(folder: Path) -> Kind:
    made = [
        Pair(f"Is it {w}?", "Yes.", "No \u2028 é.", w, "Be honest.", "Lie.", w == "a")
        for w in "abc"
    ]
    generated = GeneratedPairs(made, Counts(9, 3, 3, 2, 1, 2), [True, False, True])
    path = folder / "pairs.jsonl"
    _write(path, KEY, generated)
    return Kind(
        Path(path.name),
        path.read_bytes(),
        lambda at: _read(at / path.name, KEY),
        lambda found: found in (None, generated),
    )


def choice(folder: Path) -> Kind:
    content = {
        "key": KEY,
        "chosen": {"dW": {"family": "lora", "alpha": 2.0, "seeds": [0, 1], "dose": None}},
        "unmatched": [["tau_pos", "oft", 0, [1.0], None]],
    }
    path = folder / "m.d.json"
    text = json.dumps(seal(content), indent=1)
    write_whole(path, lambda tmp: tmp.write_text(text))
    return Kind(
        Path(path.name),
        path.read_bytes(),
        lambda at: read_sealed(at / path.name)[0],
        lambda found: found in ({}, content),
    )


def vectors(folder: Path) -> Kind:
    rng = torch.Generator().manual_seed(1)
    v = AddVectors({n: torch.randn(8, generator=rng) for n in (1, 2)})
    chosen = Selection(Variant("mean_diff@layer 1", v, alphas=(4.0,)), 0.5)
    (path,) = save_selected(
        folder, {"mean_diff": chosen}, "b" * 64, {"experiment": "t1", "model": "m"}
    )

    def text(s: Selection) -> str:
        tensors = {k: x.tolist() for k, x in s.variant.intervention.tensors().items()}
        return repr((asdict(s.variant) | {"intervention": tensors}, s.validation, s.role, s.source))

    want, header = load_selected(folder, "b" * 64)[0]
    return Kind(
        Path(path.name),
        path.read_bytes(),
        lambda at: load_selected(at, "b" * 64),
        lambda found: [(text(s), h) for s, h in found] == [(text(want), header)],
    )


def planted(folder: Path) -> Kind:
    for side in ("pos", "neg"):
        path = folder / side / "adapter_model.safetensors"
        write_whole(path, lambda tmp: save_file({"w": torch.ones(4)}, tmp))
    path = folder / SETTINGS
    text = json.dumps(seal(record(folder, PLANT)), indent=1)
    write_whole(path, lambda tmp: tmp.write_text(text))
    weights = (folder / "pos" / "adapter_model.safetensors").read_bytes()

    def read(at: Path) -> bool:
        for side in ("pos", "neg"):
            (at / side).mkdir()
            (at / side / "adapter_model.safetensors").write_bytes(weights)
        return complete(at, PLANT)

    same = json.loads(text)
    return Kind(
        Path(SETTINGS),
        path.read_bytes(),
        lambda at: (read(at), at / SETTINGS),
        lambda found: not found[0] or json.loads(found[1].read_text()) == same,
    )


def case(rng: random.Random, folder: Path, prepared: list[Kind]) -> Case:
    kind = rng.choice(prepared)
    path = folder / kind.path
    path.parent.mkdir(parents=True, exist_ok=True)
    how = rng.choice([by_bytes, by_bytes, by_value, nasty])
    what = how(rng, path, kind.raw)
    return Case(f"{kind.path}: {what}", lambda: kind.read(folder), (path.name,), kind.right)


def by_bytes(rng: random.Random, path: Path, raw: bytes) -> str:
    changed, what = damaged_bytes(rng, raw)
    path.write_bytes(changed)
    return what


def by_value(rng: random.Random, path: Path, raw: bytes) -> str:
    return (of_tensors if path.suffix == ".safetensors" else of_json)(rng, path, raw)


def of_json(rng: random.Random, path: Path, raw: bytes) -> str:
    """One value of one line is another."""
    texts = raw.decode().split("\n") if path.suffix == ".jsonl" else [raw.decode()]
    n = rng.choice([i for i, text in enumerate(texts) if text])
    value, what = damaged_value(rng, json.loads(texts[n]))
    texts[n] = json.dumps(value)
    path.write_text("\n".join(texts))
    return f"line {n}: {what}"


def of_tensors(rng: random.Random, path: Path, raw: bytes) -> str:
    """A whole file of other tensors, or with another header."""
    path.write_bytes(raw)
    with safe_open(path, framework="pt") as file:
        header, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}
    name, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    x = tensors[name].clone()
    changes: dict[str, Any] = {
        "other numbers": x + 1e-12,
        "another dtype": x.float() if x.dtype == torch.float64 else x.double(),
        "integers": x.long(),
        "another shape": x[None],
        "fewer": x[:-1],
        "none": x[:0],
        "a scalar": x[0],
        "not finite": x.index_fill(0, torch.tensor([0]), float("nan")),
        "minus zero": torch.where(x == x[0], -0.0, x),
        "another one's": tensors[other].flip(0),
    }
    what = rng.choice([*changes, "dropped", "added", "renamed", "header", "header"])
    if what == "header":
        key = rng.choice(sorted(header))
        header[key], how = rng.choice([
            (str(odd_value(rng)).encode(errors="replace").decode(), "is odd"),
            (header[key].replace(rng.choice("0123456789"), rng.choice("0123456789")), "differs"),
        ])  # fmt: skip
        if rng.random() < 0.3:
            del header[key]
        what = f"header {key} {how}"
    elif what == "dropped":
        del tensors[name]
    elif what == "added":
        tensors["more"] = x
    elif what == "renamed":
        tensors[name + "_"] = tensors.pop(name)
    else:
        tensors[name] = changes[what].contiguous()
    save_file(tensors, path, metadata=header)
    return f"{name}: {what}"


def nasty(rng: random.Random, path: Path, raw: bytes) -> str:
    """No file, a folder, another kind of file, deep nesting, a huge number."""
    what = rng.choice(["folder", "deep", "number", "twice", "utf-16", "lines", "two bits"])
    if what == "folder":
        path.mkdir()
    elif what == "two bits":
        changed = bytearray(raw)
        for _ in range(2):
            changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(changed))
    else:
        path.write_bytes({
            "deep": b"[" * 100_000,
            "number": b"1" * 100_000,
            "twice": raw.replace(b"{", b'{"sha256": "x", "sha256": "y", ', 1),
            "utf-16": raw.decode("latin-1").encode("utf-16"),
            "lines": b"\n\n" + raw + b"\n\n",
        }[what])  # fmt: skip
    return what


BORDER = Border("results", prepare, case)

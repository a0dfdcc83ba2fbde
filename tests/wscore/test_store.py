"""Deltas on disk."""

import copy
import gc
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import wscore as ws
from tests.conftest import in_child
from wscore import Factored, files

Q = "model.layers.0.self_attn.q_proj.weight"
META = {"argv": "t0_train --seed 0", "seed": "0", "note": 'Ünïcode, "quotes"'}


@pytest.fixture
def d() -> ws.Delta:
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 6, generator=g)
    return {
        Q: wide,
        "model.layers.0.self_attn.q_proj.bias": torch.tensor([1e-42, -0.0, 1e38, 1.0]),
        "model.layers.1.mlp.down_proj.weight": wide.double() / 3,
        "model.layers.1.self_attn.o_proj.weight": wide[:, ::2],  # a view, not contiguous
        "model.layers.2.self_attn.o_proj.weight": wide,  # shares memory with the first
    }


def assert_same(a, b) -> None:
    assert set(a) == set(b)
    assert all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in b)
    assert ws.tensors_sha256(a) == ws.tensors_sha256(b)


def test_round_trip(d: ws.Delta, tmp_path: Path):
    """load_delta(save_delta(d, path, meta)) is d bit by bit, and .meta is meta."""
    loaded = ws.load_delta(ws.save_delta(d, tmp_path / "d.safetensors", META))
    assert_same(loaded, d)
    assert loaded.meta == META
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def test_the_header_holds_the_provenance(d: ws.Delta, tmp_path: Path):
    """The file starts with the header's length and a JSON header that has meta in __metadata__."""
    content = ws.save_delta(d, tmp_path / "d.safetensors", META).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    meta = header.pop("__metadata__")
    assert set(json.loads(meta.pop("wscore.sha256").removeprefix("sealed "))["tensors"]) == set(d)
    assert meta == META
    assert set(header) == set(d)


def test_loading_is_lazy(d: ws.Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A selection from a file reads the selected tensors only; the algebra reads one by one."""
    lazy = ws.load_delta(ws.save_delta(d, tmp_path / "d.safetensors", {}))
    read = []
    get = type(lazy).__getitem__
    monkeypatch.setattr(type(lazy), "__getitem__", lambda self, n: read.append(n) or get(self, n))
    assert len(lazy) == 5 and "x" not in lazy
    ws.select(lazy, ws.projections("down_proj"))
    # the tests' type checker looks at the first item of every mapping
    assert set(read) - {next(iter(lazy))} == {"model.layers.1.mlp.down_proj.weight"}
    assert ws.norm(ws.difference(lazy, d)) == 0
    with pytest.raises(KeyError, match="absent"):
        lazy["absent"]


def test_a_loaded_delta_survives_a_replaced_file(d: ws.Delta, tmp_path: Path):
    """A mapping opened before the file was replaced still reads what it opened."""
    path = tmp_path / "d.safetensors"
    before = ws.load_delta(ws.save_delta(d, path, {"version": "1"}))
    after = ws.load_delta(ws.save_delta(ws.scale(2, d), path, {"version": "2"}))
    assert_same(before, d)
    assert_same(after, ws.scale(2, d))


def unpickled(d):
    return pickle.loads(pickle.dumps(d))


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, unpickled])
def test_a_copy_outlives_its_original(copied, factors: bool, tmp_path: Path):
    """A copy reads what its original was opened on, also when that is gone and its file closed."""
    d = Factored({"a": (torch.ones(3, 2), torch.ones(2, 4))})
    d = d if factors else dict(d)
    original = ws.load_delta(ws.save_delta(d, tmp_path / "d.safetensors", META))
    twin = copied(original)
    del original
    gc.collect()
    others = [ws.load_delta(ws.save_delta(ws.scale(i, d), tmp_path / f"{i}", {})) for i in (2, 3)]
    assert torch.equal(twin["a"], d["a"]) and twin.meta == META
    assert [float(other["a"][0, 0]) for other in others] == [2 * d["a"][0, 0], 3 * d["a"][0, 0]]


def test_a_pickle_does_not_read_another_file(d: ws.Delta, tmp_path: Path):
    """The file of a pickled delta is opened again: refused where it was replaced or has no seal."""
    path = ws.save_delta(d, tmp_path / "d.safetensors", META)
    pickled = pickle.dumps(ws.load_delta(path))
    ws.save_delta(ws.scale(2, d), path, META)
    with pytest.raises(ValueError, match="has been replaced since .* pickled; load"):
        pickle.loads(pickled)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="has no hashes to know it by"):
        pickle.dumps(ws.load_delta(path))


def test_a_flipped_bit_is_refused(d: ws.Delta, tmp_path: Path):
    """Every flip of a bit in the file is refused, in the header at once, in the data when read."""
    path = ws.save_delta({"a": d[Q], "b": d[Q]}, tmp_path / "d.safetensors", META)
    whole = path.read_bytes()
    data = len(whole) - 2 * d[Q].nbytes
    rng = random.Random(0)
    # the tests' type checker reads the first tensor of every mapping, so flips are in the second
    for at in [*range(0, data, 7), *range(data + d[Q].nbytes, len(whole), 5)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="d.safetensors"):
            loaded = ws.load_delta(path)
            assert at >= data
            dict(loaded)
    message = "d.safetensors' is damaged: the numbers of 'b' are not those that were saved; copy"
    with pytest.raises(ValueError, match=message):
        ws.load_delta(path)["b"]
    assert torch.equal(ws.load_delta(path)["a"], d[Q])


def test_files_without_hashes_load_as_they_are(d: ws.Delta, tmp_path: Path):
    """What other writers of safetensors wrote, and earlier versions, is read with its metadata."""
    tensors = {name: w.clone().contiguous() for name, w in d.items()}
    save_file(tensors, tmp_path / "plain.safetensors", META)
    loaded = ws.load_delta(tmp_path / "plain.safetensors")
    assert_same(loaded, d)
    assert loaded.meta == META


def test_safetensors_reads_what_save_wrote(d: ws.Delta, tmp_path: Path):
    """The file is plain safetensors: another reader finds the same tensors, bit by bit."""
    d["empty"] = torch.zeros(0, 3)
    assert_same(load_file(ws.save_delta(d, tmp_path / "d.safetensors", META)), d)


def test_an_open_file_that_shrinks_is_refused(d: ws.Delta, tmp_path: Path):
    """Damage after opening is one sentence too."""
    path = ws.save_delta(d, tmp_path / "d.safetensors", META)
    loaded = ws.load_delta(path)
    with path.open("r+b") as file:
        file.truncate(len(path.read_bytes()) // 2)
    with pytest.raises(ValueError, match="d.safetensors': '.*' cannot be read .*; copy it"):
        dict(loaded)


@pytest.mark.parametrize("step", ["sealed._write", "files.sync", "files.os.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_save_leaves_the_old_file(
    step: str, error, d: ws.Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever fails on the way, the old file is whole and no other is left."""
    path = ws.save_delta(d, tmp_path / "d.safetensors", META)

    def fail(*args, **kwargs):
        if step == "sealed._write":
            Path(args[0]).write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(f"wscore.{step}", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ValueError):
        ws.save_delta(ws.scale(2, d), path, {})
    assert_same(ws.load_delta(path), d)
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def test_a_killed_save_leaves_the_old_file(d: ws.Delta, tmp_path: Path):
    """SIGKILL between writing and renaming: the old file is whole."""
    path = ws.save_delta(d, tmp_path / "d.safetensors", META)

    def save():
        files.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        ws.save_delta({"a": torch.zeros(1000, 1000)}, path, {})

    assert in_child(save) == -signal.SIGKILL
    assert_same(ws.load_delta(path), d)


def test_refusals_of_save(d: ws.Delta, tmp_path: Path):
    """A folder that is a file, meta that is not text, a delta in half precision, nothing at all."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ValueError, match="cannot be written .* use another folder"):
        ws.save_delta(d, blocker / "d.safetensors", {})
    with pytest.raises(ValueError, match="`meta` is not text at"):
        ws.save_delta(d, tmp_path / "d.safetensors", {"seed": 0})
    with pytest.raises(ValueError, match="is torch.bfloat16"):
        ws.save_delta({"a": torch.ones(2).bfloat16()}, tmp_path / "d.safetensors", {})
    with pytest.raises(ValueError, match="{} is never a delta"):
        ws.save_delta({}, tmp_path / "d.safetensors", {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_refusals_of_load(d: ws.Delta, tmp_path: Path):
    """A missing, truncated, foreign, half-precision or empty file."""
    path = ws.save_delta(d, tmp_path / "d.safetensors", META)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="load_delta: there is no file .*; write it with save_d"):
        ws.load_delta(tmp_path / "absent.safetensors")
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            ws.load_delta(path)
    torch.save(d, path)
    with pytest.raises(ValueError, match="is not a whole safetensors file .* or write it again"):
        ws.load_delta(path)
    save_file({"a": torch.ones(2).bfloat16()}, path)
    with pytest.raises(ValueError, match=r"1 key: \['a'\] not float32"):
        ws.load_delta(path)
    save_file({}, path)
    with pytest.raises(ValueError, match="holds 0 tensors"):
        ws.load_delta(path)


def test_sha256_is_an_identity(d: ws.Delta):
    """Order is irrelevant; a name, a shape, a dtype, a bit or the sign of zero is not."""
    digest = ws.tensors_sha256({"a": torch.zeros(2, 3)})
    assert ws.tensors_sha256(dict(reversed(d.items()))) == ws.tensors_sha256(d)
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": -torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
    ]
    assert digest not in map(ws.tensors_sha256, others)


MEMORY = """
import resource, sys, torch, wscore as ws

def peak():  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

path = sys.argv[1]
if sys.argv[2] == "save":
    d = {f"{i}.weight": torch.randn(1024, 1024) for i in range(48)}
    ws.save_delta(d, path, {})  # what checking takes, before
    before = peak()
    ws.save_delta(d, path, {})
else:
    before = peak()
    ws.norm(ws.load_delta(path))
print(peak() - before)
"""


def test_files_need_no_memory_of_their_own(tmp_path: Path):
    """192 MiB in 48 tensors: saving copies nothing, reading holds a few tensors at a time."""
    grown = {}
    for job in ("save", "read"):
        command = [sys.executable, "-c", MEMORY, str(tmp_path / "d.safetensors"), job]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[job] = float(done.stdout)
    assert grown["save"] < 8 and grown["read"] < 48

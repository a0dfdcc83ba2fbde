"""Shards, kills and Ray: however a run is done, its tables are the same bytes."""

from wsrun.script import guarded

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT, experiment, forkserver
from tests.folders import small_data
from wsrun.study.shards import asked, finished, read_shard

SCRIPT = "experiments/t6_shared_svd.py"
QUICK = "--families lora oft --K 8 --dilemmas 4 --nulls 2 --resamples 100".split()
TABLES = ("t6_shared_svd.parquet", "t6_shared_svd.rows.parquet")


def t6(*flags: str) -> None:
    """T6 with these flags, as the command line would run it."""
    os.chdir(ROOT)
    sys.argv = [SCRIPT, *QUICK, *flags]
    module = experiment("t6_shared_svd")
    guarded(module.main, module.Config)


def flags(out: Path, data: Path, parts: Path) -> tuple[str, ...]:
    return ("--out", str(out), "--data", str(data), "--cache-dir", str(parts))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The one folder of tables: its name is part of their provenance."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four claims of a split, each with its opposite, and as many dilemmas."""
    return small_data(tmp_path_factory.mktemp("data") / "data", clusters=4, wordings=2)


@pytest.fixture
def call(out, data, monkeypatch, tmp_path, no_figures):
    """Run T6 in this process with more flags; the bytes of its tables, [] for none."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def call(*more):
        t6(*flags(out, data, tmp_path / "parts"), *more)
        return take(out)

    return call


@pytest.fixture(scope="module")
def whole(out, data, tmp_path_factory):
    """The tables of one process without a stop, and the names of its results."""
    parts = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", sys.argv)
        t6(*flags(out, data, parts))
        return take(out), set(seen(parts))


def take(out: Path) -> list[bytes]:
    """The bytes of the tables in a folder, which is empty afterwards."""
    tables = [(out / name).read_bytes() for name in TABLES if (out / name).exists()]
    for file in out.iterdir():
        file.unlink()
    return tables


def seen(parts: Path) -> dict[str, tuple[int, int]]:
    """When each finished result was written, and its inode: another if it was written again."""
    files = ((p, p.stat()) for p in parts.rglob("*.safetensors"))
    return {p.name: (at.st_mtime_ns, at.st_ino) for p, at in files}


def test_shards_make_the_whole(whole, call, tmp_path, capsys):
    """table(shard 0/2, then 1/2, then without --shard) = table(one process), byte for byte"""
    for shard in ("0/2", "1/2"):
        assert call("--shard", shard) == [], "a shard writes no table"
    said = " ".join(capsys.readouterr().out.split())
    assert "shard 1/2: 13 of 26 runs finished" in said and "without --shard" in said
    before = seen(tmp_path / "parts")
    assert call() == whole[0]
    assert seen(tmp_path / "parts") == before and set(before) == whole[1]


def test_killed_and_started_again(whole, out, data, call, tmp_path):
    """SIGKILL at random moments until five hit: the same bytes, no finished result scored again"""
    parts, draw, kept, hits = tmp_path / "parts", random.Random(0), {}, 0
    while hits < 5 and len(kept) < len(whole[1]):
        child = forkserver().Process(target=t6, args=flags(out, data, parts))
        child.start()
        goal = len(kept) + draw.randint(0, 4)
        while child.is_alive() and finished(parts) < goal:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        assert kept.items() <= seen(parts).items()
        hits += child.exitcode != 0
        kept = seen(parts)
    take(out)
    assert hits and call() == whole[0]
    assert kept.items() <= seen(parts).items() and set(seen(parts)) == whole[1]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_a_shard_on_ray_killed_midway(whole, call, capsys, tmp_path):
    """two shards on Ray, one killed as soon as results are there: started again, the same bytes"""
    pytest.importorskip("ray")
    parts = tmp_path / "parts"

    def kill() -> None:
        while finished(parts) < 4:
            time.sleep(0.05)
        os.kill(next(shards(parts, "0/2")), signal.SIGKILL)

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        tables = call("--executor", "ray", "--workers", "2")
        killed.result()
    said = " ".join(capsys.readouterr().out.split())
    assert f"2 shards on ray: {len(whole[1])} results added" in said
    assert "scored here" not in said and tables == whole[0]
    assert set(seen(parts)) == whole[1] and not list(shards(parts, ""))


def shards(parts: Path, shard: str) -> Iterator[int]:
    """Ids of the processes that score a shard (any, for "") into this folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            words = (folder / "cmdline").read_text().split("\0")
            if str(parts) in words and "--shard" in words and (not shard or shard in words):
                yield int(folder.name)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--shard", "2/2"), "--shard must be i/n"),
        (("--shard", "x"), "--shard must be i/n"),
        (("--shard", "0/0"), "--shard must be i/n"),
        (("--shard", "0/2", "--executor", "ray"), "leave out --shard"),
        (("--workers", "2"), "needs --executor ray"),
        (("--executor", "ray", "--workers", "0"), "--workers must be at least 1"),
    ],
)
def test_refusals(call, capsys, flags, sentence):
    """options that cannot work end in one sentence before anything is loaded"""
    with pytest.raises(SystemExit) as stop:
        call(*flags)
    assert stop.value.code == 1
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_ray_missing(call, capsys, monkeypatch):
    """without ray, one sentence that says what to install"""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        call("--executor", "ray")
    assert "pip install 'weight-steering[ray]'" in " ".join(capsys.readouterr().err.split())


def test_read_shard():
    """i/n -> (i, n) for 0 <= i < n"""
    assert [read_shard(f"{i}/3") for i in range(3)] == [(0, 3), (1, 3), (2, 3)]
    for odd in ("-1/2", "1/ 2", "1", "1/2/3", "", "٠/2"):
        with pytest.raises(ValueError, match="must be i/n"):
            read_shard(odd)


def test_the_command_line_of_a_table():
    """flags that say how, in both spellings, are no part of what was asked"""
    argv = "t6.py --K 8 32 --cache-dir p --executor=ray --nulls 2 --workers 4 --shard=0/2".split()
    assert asked(argv) == "t6.py --K 8 32 --nulls 2".split()
    assert asked(["t6.py", "--cache_dir=p", "--shards", "2"]) == ["t6.py", "--shards", "2"]

"""Tables: whole or not at all, with provenance inside."""

import os
import random
import signal
import subprocess

import polars as pl
import pytest

from tests.conftest import ROOT, in_child
from wscore.files import write_whole
from wsrun.report.tables import check_writable, commit, provenance, read_table, write_table

TABLE = pl.DataFrame({"a": [1, 2], "b": ["x", None]})


def test_round_trip_with_provenance(tmp_path):
    """read(write(table, meta)) = (table, meta); the same call writes the same bytes"""
    meta = provenance({"K": (8, 32)}, items="abc")
    path = write_table(TABLE, tmp_path / "deep" / "t.parquet", meta)
    table, found = read_table(path)
    assert table.equals(TABLE)
    assert found["config"] == {"K": [8, 32]} and found["items"] == "abc"
    assert found["versions"]["torch"] and "commit" in found
    first = path.read_bytes()
    assert write_table(TABLE, path, meta).read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]


def test_provenance_is_text_and_of_this_tree(tmp_path):
    """paths of a configuration as text; the commit is that of the tree that holds the code"""
    assert provenance({"out": tmp_path, "k": 1})["config"] == {"out": str(tmp_path), "k": 1}
    head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    known = subprocess.run(head, capture_output=True, text=True)
    if known.returncode == 0 and (ROOT / ".git").exists():
        assert (commit() or "").removesuffix("+changes") == known.stdout.strip()


def test_a_failed_write_keeps_the_old_file(tmp_path):
    """an exception in the middle leaves the old bytes and no other file"""
    path = write_table(TABLE, tmp_path / "t.parquet", {})
    before = path.read_bytes()

    def half(tmp):
        tmp.write_bytes(before[:10])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["t.parquet"]


def test_a_killed_write_keeps_the_old_file(tmp_path):
    """SIGKILL in the middle of a write leaves a table that reads"""
    path = write_table(TABLE, tmp_path / "t.parquet", {})

    def half(tmp):
        tmp.write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: write_whole(path, half)) == -signal.SIGKILL
    assert read_table(path)[0].equals(TABLE)


def test_refusals(tmp_path):
    """a folder that cannot be made and a file that is no table get a sentence"""
    (tmp_path / "file").write_text("x")
    for act in (
        lambda: check_writable(tmp_path / "file" / "sub"),
        lambda: write_table(TABLE, tmp_path / "file" / "t.parquet", {}),
    ):
        with pytest.raises(ValueError, match="cannot be written"):
            act()
    with pytest.raises(ValueError, match="not a readable parquet"):
        read_table(tmp_path / "file")
    check_writable(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_damage_is_found(tmp_path):
    """any bit that changes what a table says, or its provenance, is found by its sha256"""
    table = pl.DataFrame({"a": [1.5, None] * 50, "b": ["x", None] * 50, "c": [True, False] * 50})
    raw = write_table(table, tmp_path / "t.parquet", {"argv": ["x"]}).read_bytes()
    rng, found = random.Random(0), 0
    for _ in range(300):
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        (tmp_path / "t.parquet").write_bytes(changed)
        try:
            assert read_table(tmp_path / "t.parquet")[0].equals(table)
        except ValueError as error:
            found += "t.parquet" in str(error)
    assert found > 100


@pytest.mark.parametrize("meta", ["x", "[]", "null", '{"argv": 3}', '{"config": []}', "[" * 9999])
def test_odd_provenance_is_refused(meta, tmp_path):
    """metadata of a foreign file that are no JSON object, or whose argv and config are odd"""
    TABLE.write_parquet(tmp_path / "t.parquet", metadata={"wscore": meta})
    with pytest.raises(ValueError, match="provenance of .*t.parquet"):
        read_table(tmp_path / "t.parquet")

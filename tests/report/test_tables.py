"""Tables: whole or not at all, with provenance inside."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import polars as pl
import pytest

from wscore.store import write_whole
from wsrun.report.console import guarded
from wsrun.report.tables import check_writable, provenance, read_table, write_table

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
    code = (
        "import sys, time; from pathlib import Path; from wscore.store import write_whole\n"
        "def half(tmp): tmp.write_bytes(b'PAR1'); print('half', flush=True); time.sleep(60)\n"
        f"write_whole(Path({str(path)!r}), half)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
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


@dataclass
class NoOptions:
    """A script without options."""


@pytest.mark.parametrize("names", [(), ("t.rows", "t")], ids=["before", "after"])
def test_a_stopped_script_says_what_it_wrote(tmp_path, capsys, monkeypatch, names):
    """Ctrl-C before and after tables were written: exit code 130, and the sentence is true"""

    def main(cfg: NoOptions) -> None:
        for name in names:
            write_table(TABLE, tmp_path / f"{name}.parquet", {})
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        guarded(main, NoOptions)
    assert stop.value.code == 130
    said = " after t.rows.parquet, t.parquet" if names else "; no table was written"
    assert capsys.readouterr().err == f"stopped{said}\n"

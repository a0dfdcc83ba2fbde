"""How a script ends: in one line and its exit code, whatever happens to its streams."""

from wsrun.script import guarded

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, experiment, heeds_ctrl_c

COMMAND = [sys.executable, "experiments/t6_shared_svd.py"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*flags, command, **more):
    """A finished process of a script."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.run([*command, *map(str, flags)], cwd=ROOT, env=ENV, timeout=300, **more)


@pytest.mark.parametrize("library", ["/_bisect", "/_polars_runtime", "/libtorch_cpu"])
def test_ctrl_c_while_modules_are_imported(library, tmp_path):
    """SIGINT while a library is loaded: exit code 130, one line, no traceback"""
    child = subprocess.Popen(
        [*COMMAND, "--out", str(tmp_path)], cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True,
        preexec_fn=heeds_ctrl_c,
    )  # fmt: skip
    maps, end = Path(f"/proc/{child.pid}/maps"), time.monotonic() + 300
    try:
        while library not in maps.read_text(encoding="utf-8") and time.monotonic() < end:
            time.sleep(0.002)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 130 and err.count("\n") == 1, err
    assert err.startswith("stopped; no table was written")


def test_a_library_user_keeps_ctrl_c():
    """import wsrun.script, in a process that is no script, leaves SIGINT as it is"""
    code = "import signal; import wsrun.script; f = signal.getsignal(signal.SIGINT)\n"
    code += "assert f is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, preexec_fn=heeds_ctrl_c)


SCRIPT = """
from dataclasses import dataclass
from wsrun.script import guarded

@dataclass
class Config:
    tables: str = ""

def main(cfg):
    raise ValueError("script: none of the tables is here; run it where they are")

guarded(main, Config)
"""


def test_standard_output_that_cannot_be_written(tmp_path):
    """>/dev/full: one sentence, exit code 1; a reader that has gone: nothing; >&-: as without"""
    (tmp_path / "script.py").write_text(SCRIPT)
    script = [sys.executable, str(tmp_path / "script.py")]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run("--help", command=script, stdout=full)
    assert done.returncode == 1, done
    assert done.stderr.count(b"\n") == 1 and b"the output cannot be written" in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = run("--help", command=script, stdout=write)
    os.close(write)
    assert done.returncode == 1 and done.stderr == b""
    done = run(command=["sh", "-c", f"{' '.join(script)} >&-"])
    assert done.returncode == 1 and done.stderr.startswith(b"error: script: none of the tables")


def test_a_path_that_is_not_utf8(tmp_path, monkeypatch, capsys):
    """--out of any bytes: one sentence that names the option"""
    t6 = experiment("t6_shared_svd")
    out = os.fsdecode(bytes(tmp_path) + b"/\xff")
    monkeypatch.setattr(sys, "argv", ["t6_shared_svd.py", "--out", out])
    with pytest.raises(SystemExit) as stop:
        guarded(t6.main, t6.Config)
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "--out" in said and "not UTF-8" in said
    assert said.count("\n") == 1

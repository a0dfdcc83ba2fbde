"""A disk that is full at any write of a script: one sentence, exit code 1, old files whole.

The kernel refuses writes above RLIMIT_FSIZE, which is set from one write on. The test takes a few
writes of each script, `python tests/experiments/test_disk_full.py <empty folder>` all of them.
"""

from wsrun.script import guarded

import contextlib
import io
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conftest import ORGANISM, ROOT, experiment, forkserver  # noqa: E402
from wscore import files  # noqa: E402

FEW_BYTES = 16
FLAGS = {
    "t6_shared_svd": ["--families", "lora", "oft", "--K", "8", "--nulls", "1", "--dilemmas", "2",
                      "--model", ORGANISM, "--data", "{}/data", "--adapters", ORGANISM / "adapters",
                      "--out", "{}/out", "--cache-dir", "{}/cache"],
    "t0_train": ["--families", "lora", "--steps", "1", "--model", ORGANISM, "--data", ORGANISM,
                 "--pairs-file", "{}/pairs.jsonl", "--adapters", "{}/adapters", "--deltas",
                 "{}/deltas", "--out", "{}/out", "--limit", "2", "--check-limit", "2"],
    "report": ["--tables", "{}/tables", "--out", "{}/out"],
}  # fmt: skip


class Disk:
    """Counts the writes of files, and is full from one of them on."""

    def __init__(self) -> None:
        self.count, self.full_from = 0, -1
        names = files.secrets.token_hex

        def counted(n: int) -> str:
            if self.count == self.full_from:
                self.limit(FEW_BYTES)
            self.count += 1
            return names(n)

        files.secrets.token_hex = counted

    def limit(self, size: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    def run(self, call: Callable[[], None], full_from: int = -1) -> tuple[int, str]:
        """(exit code, what stderr got) of a call, the disk full from that write on."""
        self.count, self.full_from, said = 0, full_from, io.StringIO()
        code = 0
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                call()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                self.limit(resource.RLIM_INFINITY)
        return code, said.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """What every file holds; of safetensors what comes after the header, whose order varies."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            head = 8 + int.from_bytes(raw[:8], "little") if path.suffix == ".safetensors" else 0
            found[str(path.relative_to(folder))] = raw[head:]
    return found


def every_write(disk: Disk, folder: Path, script: str, few: bool) -> int:
    """Fail each write of a script in turn, or a few of them; returns how many failed."""
    module = experiment(script)

    def call(resamples: int) -> Callable[[], None]:
        flags = [str(f).replace("{}", str(folder)) for f in FLAGS[script]]

        def started() -> None:
            sys.argv = [script, *flags, "--resamples", str(resamples)]
            if script == "t0_train":
                sys.argv = [script, *flags, "--alphas", str(resamples)]
            guarded(module.main, module.Config)

        return started

    def fail(full_from: int) -> tuple[str, dict[str, bytes]]:
        code, said = disk.run(call(21), full_from)
        now = contents(folder)
        sentence = [x for x in said.splitlines() if x.startswith("error: ")]
        assert code == 1 and len(sentence) == 1, (script, full_from, code, said)
        assert "cannot be written" in sentence[0] and "Traceback" not in said, sentence
        assert not [n for n in now if n.endswith(".partial")], now.keys()
        return sentence[0], now

    first = fail(3)  # the first result, adapter or page; nothing is there yet
    for _ in range(2):  # the second time, results are found and not written
        code, said = disk.run(call(20))
        assert code == 0, said
    at = (2, disk.count - 1) if few else range(2, disk.count)
    old, failed = contents(folder), [fail(n) for n in at]
    code, said = disk.run(call(21))
    new = contents(folder)
    assert code == 0, said
    for sentence, now in failed:
        for name in old:
            assert now.get(name) in (old[name], new[name]), (script, name, sentence)
    return len([first, *failed])


def main(folder: Path, few: bool) -> None:
    from tests.folders import small_data
    from tests.report.small_tables import VECTORS, WEIGHTS, save

    pair = {"prompt": "Why?", "response_pos": "Yes.", "response_neg": "No.", "topic": "t"}
    disk = Disk()
    for script in FLAGS:
        (folder / script).mkdir()
        (folder / script / "pairs.jsonl").write_text(json.dumps(pair), encoding="utf-8")
        small_data(folder / script / "data")
        if script == "report":
            save(folder / script / "tables", "t1_activation", WEIGHTS | VECTORS)
        print(script, every_write(disk, folder / script, script, few), flush=True)


def in_file(said: Path, folder: Path) -> None:
    """A few writes of each script; what is printed, or why it failed, goes to a file."""
    os.chdir(ROOT)
    with open(said, "w", encoding="utf-8") as sys.stdout:
        try:
            main(folder, few=True)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            raise


def test_a_full_disk_at_every_write(tmp_path):
    """each write in its turn: exit code 1, a sentence that names a file, old or new bytes, whole"""
    (tmp_path / "scripts").mkdir()
    child = forkserver().Process(target=in_file, args=(tmp_path / "said", tmp_path / "scripts"))
    child.start()
    child.join()
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert child.exitcode == 0, said
    failed = {name: int(n) for name, n in (line.split() for line in said.splitlines())}
    assert failed.keys() == FLAGS.keys() and all(n >= 3 for n in failed.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--few" in sys.argv)

"""Console: what fits a terminal, what stands in a log, and how a script ends."""

from wsrun.script import guarded

import importlib
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import tyro
from rich.console import Console

from tests.conftest import in_child
from wsrun.report import console
from wsrun.report.console import duration, effects, grid, progress
from wsrun.report.standings import standings
from wsrun.report.tables import write_table

TABLE = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
LINE = {"method_name": "random_persona_diff_all", "variant": "random_persona_diff_all@all layers"}
LINE |= {"family": None, "alpha": 0.32, "role": "control", "effect": -12.25, "lo": -13.5}
LINE |= {"hi": -11.0, "diff": 1.25, "diff_lo": -0.5, "diff_hi": 3.0, "bias": 0.125}
LINE |= {"discrimination": -0.25, "mass": 0.99, "flagged_share": 0.05}


def printed(table, width=80):
    """The lines of a table as a console of that width shows them."""
    shown = Console(width=width, record=True, file=open("/dev/null", "w"))
    shown.print(table)
    return shown.export_text().splitlines()


def test_tables_fit_80_columns():
    """every character of every cell is there, and no line is wider"""
    lines = printed(standings(pl.DataFrame([LINE]), "a title of some length " * 5))
    assert max(map(len, lines)) <= 80
    for cell in ("random_persona_diff_all", "-12.25[-13.50,-11.00]", "+1.25[-0.50,+3.00]"):
        columns = re.sub(r"\s", "", "".join("".join(x) for x in zip(*_cells(lines), strict=True)))
        assert cell in columns
    assert "…" not in "".join(lines)


def _cells(lines):
    """The characters of the lines under the head, a string a line, filled to one width."""
    body = lines[next(i for i, x in enumerate(lines) if set(x.strip()) == {"─"}) + 1 :]
    gaps = [c for c in range(80) if all(len(x) <= c or x[c] == " " for x in body)]
    ends = [*gaps, 80]
    return [
        [x[a:b] for a, b in zip([0, *gaps], ends, strict=True)] for x in (y.ljust(80) for y in body)
    ]


def test_values_in_a_grid():
    """floats with three digits, None as a dash; a narrow table keeps two blanks between columns"""
    lines = printed(grid("t", ("a", "b", "c"), [(1.23456, None, "x"), (2, "long", "y")]))
    assert [x.split() for x in lines[1:] if x.strip() and "─" not in x] == [
        ["a", "b", "c"],
        ["1.23", "-", "x"],
        ["2", "long", "y"],
    ]
    assert any("long  y" in x for x in lines)


def test_effects_in_a_grid():
    """keys, effect and retained with their intervals, and the gates"""
    line = {"family": "lora", "k": 8, "effect": 1.5, "lo": 1.0, "hi": 2.0, "retained": None}
    line |= {"retained_lo": None, "retained_hi": None, "mass": 0.5}
    text = " ".join(" ".join(printed(effects(pl.DataFrame([line]), "t", ("family", "k")))).split())
    assert "family K effect retained mass" in text and "lora 8 +1.50 [+1.00, +2.00] - 0.5" in text


def test_progress_without_a_terminal(capsys, monkeypatch):
    """a line at once, one after each interval with what is left, one at the end"""
    monkeypatch.setattr(console, "EVERY", 0.2)
    with progress("scoring", 4) as step:
        assert capsys.readouterr().err == "scoring: 0 of 4 done\n"
        step("lora-s0")
        time.sleep(0.3)
        (line,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"scoring: 1 of 4 done, about [01] s left \(lora-s0\)", line)
        for _ in range(3):
            step("x")
    end = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"scoring: 4 of 4 done in \d s", end)


def test_stopped_progress_does_not_say_done(capsys):
    """an exception in the middle ends the lines without a last one"""
    with pytest.raises(ValueError), progress("scoring", 4):
        raise ValueError
    assert capsys.readouterr().err == "scoring: 0 of 4 done\n"


def test_durations():
    """40 s, 3 min, 2 h 5 min"""
    assert [duration(s) for s in (0.2, 40.0, 170.0, 7500.0)] == [
        "0 s",
        "40 s",
        "3 min",
        "2 h 5 min",
    ]


@dataclass
class NoOptions:
    """A script without options."""


@dataclass
class Cached:
    """A script with a cache."""

    cache_dir: str = "x"


@pytest.mark.parametrize("names", [(), ("t.rows", "t")], ids=["before", "after"])
@pytest.mark.parametrize("options", [NoOptions, Cached])
def test_a_stopped_script_says_what_it_wrote(tmp_path, capsys, monkeypatch, names, options):
    """Ctrl-C before and after tables were written: exit code 130, and the sentence is true"""

    def main(cfg) -> None:
        for name in names:
            write_table(TABLE, tmp_path / f"{name}.parquet", {})
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stop:
        guarded(main, options)
    assert stop.value.code == 130
    message = capsys.readouterr().err
    assert ("t.rows.parquet, t.parquet" in message) is bool(names)
    assert ("no table was written" in message) is not bool(names)
    assert ("goes on" in message) is (options is Cached) and message.count("\n") == 1


def test_stopped_while_flags_are_read(capsys, monkeypatch):
    """Ctrl-C during parsing is a sentence, too"""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tyro, "cli", stop)
    with pytest.raises(SystemExit) as end:
        guarded(lambda cfg: None, NoOptions)
    assert end.value.code == 130 and "no table was written" in capsys.readouterr().err


def test_a_refusal_is_one_sentence(capsys, monkeypatch):
    """ValueError: its message on stderr, exit code 1; brackets in it stay"""

    def main(cfg) -> None:
        raise ValueError("t0: [x] is wrong")

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as end:
        guarded(main, NoOptions)
    assert end.value.code == 1 and capsys.readouterr().err == "error: t0: [x] is wrong\n"


def test_sentences_in_a_file_are_not_broken(tmp_path):
    """a long sentence is one line where the output is no terminal"""

    def show():
        with open(tmp_path / "out", "w", encoding="utf-8") as sys.stdout:
            importlib.reload(console).console.print("word " * 60)

    assert in_child(show) == 0
    assert (tmp_path / "out").read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory",
        ),
        (OSError(28, "No space left on device", "x/y"), "'x/y' cannot be written (No space left"),
        (ValueError("a\x1b[31m\nb" + "c" * 5000), "error: a?[31m b"),
    ],
)
def test_what_is_expected_to_fail_is_a_sentence(error, words, capsys, monkeypatch):
    """too little memory, a full disk, a message of many lines: one line, exit code 1"""

    def main(cfg) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as end:
        guarded(main, NoOptions)
    said = capsys.readouterr().err
    assert end.value.code == 1 and words in said and said.count("\n") == 1 and len(said) < 1100


@dataclass
class Odd:
    """Options of every kind."""

    out: Path = Path("x")
    alphas: tuple[float, ...] = (1.0,)
    behaviour: str = "x"


@pytest.mark.parametrize(
    "flags",
    [("--out", "\udcff"), ("--alphas", "nan"), ("--alphas", "1", "1"), ("--behaviour", "\x1b"),
     ("--out", "a" * 300)],
)  # fmt: skip
def test_values_that_no_option_can_have(flags, capsys, monkeypatch):
    """not UTF-8, not finite, twice, not printable, no name of a file: refused by option"""
    monkeypatch.setattr(sys, "argv", ["script", *flags])
    with pytest.raises(SystemExit) as end:
        guarded(lambda cfg: None, Odd)
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.startswith(f"error: {flags[0]} ") and len(said) < 300

"""The command that a script names as the next: it parses, and reads what the script has read."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, experiment, read_command
from wsrun.study.next_command import SHARED, TAKES, following, say_next
from wsrun.study.options import Common
from wsrun.study.replicate import Replication

SCRIPTS = {s.stem: s.read_text() for s in sorted((ROOT / "experiments").glob("*.py"))}
NAMED = re.compile(r'(?:(?:say_next|following)\(cfg, |following = )"(\w+)"')
LINKS = [(script, to) for script, text in SCRIPTS.items() for to in NAMED.findall(text)]
LINKS.append(("t5_replicate", Replication.following[0]))
LINKS.append(("t0_train", "t6_shared_svd"))  # named in wsrun/study/trained.py
OTHER = {"report": {"out"}, "t0_train": {"out"}}
OTHER |= {"t13_planted": {"adapters", "seeds"}}  # options of one name and another meaning
OWN = {
    "model": "my models/a, b",
    "data": "d'ata",
    "adapters": Path("[bold]ad"),
    "families": ("lora", "oft"),
    "seeds": (1, 2),
    "dtype": "bfloat16",
    "device": "cuda:1",
    "out": Path("$HOME/:smile:"),
}


def options(script: str, own=OWN):
    """A script's options, those of `own` that it has in place of its defaults."""
    Config = experiment(script).Config
    return Config(**{n: v for n, v in own.items() if n in Config.__dataclass_fields__})


@pytest.mark.parametrize("script, to", LINKS)
def test_the_next_script_reads_what_this_one_did(script, to):
    """every option that both have arrives as it was, but for those of another meaning; of the
    defaults none is repeated"""
    cfg = options(script)
    name, read = read_command(following(cfg, to, "why: it's next"))
    takes = {f: n for f, n in TAKES.get(to, {n: n for n in SHARED}).items() if hasattr(cfg, n)}
    assert name == to and takes
    for flag, of in takes.items():
        assert str(getattr(read, flag)) == str(getattr(cfg, of))
    both = {n for n in SHARED if hasattr(cfg, n) and hasattr(read, n)}
    assert both - takes.keys() == OTHER.get(to, set())
    assert following(options(script, {}), to) == f"python experiments/{to}.py"


def test_no_other_script_names_a_next_one():
    """the links are all there are; the report's, which depends on what it finds, is below"""
    named = {s for s, text in SCRIPTS.items() if "next_command" in text or "Benchmark[" in text}
    elsewhere = {"t0_train", "t5_replicate"}  # in wsrun/study
    assert named | elsewhere == {script for script, _ in LINKS}
    assert not any("next: " in text for text in SCRIPTS.values())


@pytest.mark.parametrize("to", experiment("report").SCRIPTS)
def test_what_the_report_misses_is_made_where_it_reads(to):
    """the command of each table parses, and writes into the folder of the others"""
    name, read = read_command(following(Common(**OWN), to))
    assert name == to and read.out == OWN["out"]


def test_t0_always_names_its_adapters():
    """T6 has other adapters by default than those that t0_train writes"""
    cfg = options("t0_train", {})
    _, read = read_command(following(cfg, "t6_shared_svd", always=("adapters",)))
    assert read.adapters == cfg.adapters != options("t6_shared_svd", {}).adapters


def test_it_is_printed_as_it_is_typed(capsys):
    """one line however long, and neither markup nor emoji"""
    say_next(Common(**OWN), "t7_sites", "why")
    assert capsys.readouterr().out == f"next: {following(Common(**OWN), 't7_sites', 'why')}\n"

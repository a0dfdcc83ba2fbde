"""The command wsrun: help, what it imports, options that mean what they mean in scripts."""

import json
import os
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest

from tests.conftest import ROOT
from wsrun.cli import options
from wsrun.cli.command import COMMANDS

LIGHT = """
import contextlib, io, json, sys
from wsrun.cli.command import run
for flags in json.loads(sys.argv[1]):
    sys.argv[1:], out, err, code = flags, io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run()
        except SystemExit as end:
            code = end.code
    heavy = {"torch", "transformers", "peft", "polars", "scipy", "datasets"} & set(sys.modules)
    print(json.dumps([flags, code, sorted(heavy), out.getvalue(), err.getvalue()]))
"""
MISTAKES = {
    ("chat", "--alhpa", "1"): "--alhpa",
    ("chta",): "chta",
    ("chat", "--delta", "no.safetensors"): "no.safetensors",
    ("check", "--data", "/no/such"): "/no/such",
    ("check", "--model", "./no"): "./no",
    ("locate", "--adapters", "/no/such"): "/no/such",
    ("export", "--vectors", "/no/such", "--format", "vector"): "/no/such",
    ("export", "--format", "mreged"): "mreged",
    ("report", "--tables", "/no/such"): "/no/such",
}


@pytest.fixture(scope="module")
def ends():
    """flags -> (exit code, what is imported by then, stdout, stderr), in one process in turn."""
    asked = json.dumps([*([name, "--help"] for name in COMMANDS), *MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, asked], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    return {tuple(flags): end for flags, *end in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each(name, ends):
    """--help: every option, no line above 80 columns, nothing heavy imported"""
    code, heavy, out, _ = ends[name, "--help"]
    assert code == 0 and not heavy
    for field in fields(COMMANDS[name][0]):
        assert f"--{field.name.replace('_', '-')}" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("flags", MISTAKES)
def test_mistakes_are_told_at_once(flags, ends):
    """a typo, and a path that is not there: not 0, named, nothing heavy imported"""
    code, heavy, out, err = ends[flags]
    assert code in (1, 2) and not heavy and MISTAKES[flags] in out + err


def of_study():
    from wsrun.study import checking, compared, composing, dosing, located, page, trained

    return {
        "check": checking.CheckOptions,
        "train": trained.TrainOptions,
        "compare": compared.CompareOptions,
        "locate": located.SiteOptions,
        "report": page.ReportOptions,
        "dose": dosing.DoseOptions,
        "compose": composing.ComposeOptions,
    }


OWN = {"families", "adapters", "alpha", "K", "delta"}  # short forms: all that is there, one value


@pytest.mark.parametrize(
    "name", ["check", "train", "compare", "locate", "dose", "compose", "report"]
)
def test_options_are_those_of_the_study(name):
    """each option is one of the study's, with its default"""
    theirs = {f.name: f.default for f in fields(of_study()[name])}
    for field in fields(COMMANDS[name][0]):
        assert field.default is not MISSING
        if field.name not in OWN:
            assert theirs[field.name] == field.default, field.name


def test_families_are_those_that_are_there(tmp_path):
    """families of every seed asked for, by the names of folders"""
    for name in ("lora-s0", "lora-s1", "oft-s0"):
        (tmp_path / name).mkdir()
    adapted = options.Locate(adapters=tmp_path, seeds=(0,), data=str(tmp_path))
    assert adapted.found() == (tmp_path, ("lora", "oft"))
    assert options.Locate(adapters=tmp_path, seeds=(0, 1)).found()[1] == ("lora",)
    with pytest.raises(ValueError, match="--adapters.*seeds 7"):
        options.Locate(adapters=tmp_path, seeds=(7,)).found()

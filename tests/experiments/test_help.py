"""Every script loads, and says what it asks, decides and takes."""

from wsrun.script import guarded

import sys

import pytest

from tests.conftest import ROOT, experiment

SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, monkeypatch, capsys):
    """--help: exit code 0, the script's first line, and a line of help for every option"""
    module = experiment(script)
    monkeypatch.setattr(sys, "argv", [f"experiments/{script}.py", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        guarded(module.main, module.Config)
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert module.__doc__.split("\n")[0] in " ".join(said.replace("│", " ").split())
    for name in module.Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said

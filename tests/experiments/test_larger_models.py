"""The commands of docs/real.md for larger models, on random models of their architectures."""

import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ORGANISM, ROOT, experiment, read_command
from tests.folders import check_replies, tiny_folder
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.tables import read_table

TEXT = (ROOT / "docs" / "real.md").read_text().split("\n## Larger models\n")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^    (python .*)$", TEXT, re.MULTILINE)
MAKES = {"Qwen/Qwen3-0.6B": tiny_qwen3, "google/gemma-3-1b-it": tiny_gemma3}
MAKES["Qwen/Qwen3-4B"] = tiny_qwen3
NAMES = ("doves", "cooks", "ships", "trees", "kings", "rocks")
SMALL = dict(steps=2, limit=2, check_limit=2, resamples=100, n_random=2, nulls=2, device="cpu")
SMALL |= dict(K=(4,), layers=(1,), coefficients=(1.0,), most_flagged=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file of TruthfulQA's form, and a model folder of each name."""
    made = tmp_path_factory.mktemp("larger")
    lines = ["Category,Question,Best Answer,Incorrect Answers"]
    for n in range(40):
        lines.append(f"Law,What do {NAMES[n % 6]} number{n} do?,They rest {n},They run; They fly")
    (made / "TruthfulQA.csv").write_text("\n".join(lines) + "\n")
    for name, make in MAKES.items():
        tiny_folder(made / name, make, load_tokenizer(ORGANISM), families=())
    return made


def small(config, folder: Path, tmp: Path):
    """The options of a command, about the small model, small in all that costs time."""
    known = config.__dataclass_fields__
    adapters = tmp / "adapters" / config.model.replace("/", "--")
    found = SMALL | dict(model=str(folder / config.model / "model"), adapters=adapters)
    found |= dict(data=f"truthfulqa:{folder / 'TruthfulQA.csv'}", out=tmp, cache_dir=tmp / "parts")
    found |= dict(deltas=tmp / "deltas", pairs_cache=tmp / "pairs")
    return replace(config, **{name: v for name, v in found.items() if name in known})


@pytest.mark.usefixtures("no_figures")
def test_every_command_of_the_section(tmp_path, monkeypatch, folder):
    """in their order, as a user runs them: each ends, and its table is about the model it names,
    trained by the recipe it names"""
    monkeypatch.chdir(ROOT)  # personas and neutral texts of data/english
    assert {read_command(c)[1].model for c in COMMANDS} == set(MAKES)
    for command in COMMANDS:
        script, options = read_command(command)
        assert getattr(options, "recipe", "smollm2") == "smollm2"
        options = small(options, folder, tmp_path)
        experiment(script).main(options)
        table, _ = read_table(tmp_path / f"{script}.parquet")
        assert set(table["model"]) == {options.model}
        if script == "t0_train":
            assert table.filter(pl.col("alpha") != 0)["effect"].is_finite().all()
        else:
            check_replies(table)

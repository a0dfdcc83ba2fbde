"""Learning rates end to end: the losses are those of the trainings, the least one is marked."""

import json

import pytest

from tests.conftest import ORGANISM, experiment
from tests.folders import tiny_folder
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_qwen3
from wsrun.report.tables import read_table

script = experiment("learning_rates")
WHERE = ("doves", "cooks", "ships", "trees", "kings", "rocks")


def test_the_least_loss_is_marked_and_kept(tmp_path, capsys):
    """per family one rate, times lambda for DeLoRA; again: kept, and the same table"""
    made = tiny_folder(tmp_path, tiny_qwen3, load_tokenizer(ORGANISM))
    lines = ["Category,Question,Best Answer,Incorrect Answers"]
    lines += [f"Law,What do {w} number{n} do?,They rest,They run" for n in range(4) for w in WHERE]
    (tmp_path / "q.csv").write_text("\n".join(lines) + "\n")
    cfg = script.Config(
        model=str(made["model"]), data=f"truthfulqa:{tmp_path / 'q.csv'}", recipe="organism",
        families=("lora", "delora"), factors=(1e-6, 3.0), steps=2, adapters=tmp_path / "rates",
        out=tmp_path / "tables",
    )  # fmt: skip
    script.main(cfg)
    table, meta = read_table(tmp_path / "tables" / "learning_rates.parquet")
    assert table["family"].to_list() == ["lora", "lora", "delora", "delora"]
    assert table["lr"].to_list() == pytest.approx([1e-9, 3e-3, 4e-3, 4e-3])
    assert table["lambda"].to_list() == pytest.approx([None, None, 15e-6, 45.0])
    for row in table.to_dicts():
        folder = f"x{3 if row['size'] > 1e-2 else 1e-06:g}/{row['family']}-s0"
        record = json.loads((tmp_path / "rates" / folder / "training.json").read_text())
        assert row["pos"] == record["validation_losses"]["pos"]["2"]
    for _, part in table.group_by("family"):
        assert part.filter(least=True)["sum"].to_list() == [part["sum"].min()]
    assert table.filter(family="lora", least=True)["lr"].item() == pytest.approx(3e-3)
    capsys.readouterr()
    script.main(cfg)
    assert capsys.readouterr().out.count("kept: ") == 4
    assert read_table(tmp_path / "tables" / "learning_rates.parquet")[0].equals(table)


@pytest.mark.parametrize("factors", [(), (1.0, 1.0), (0.0,), (float("inf"),)])
def test_factors_that_cannot_be_are_refused(factors):
    with pytest.raises(ValueError, match="--factors"):
        script.main(script.Config(factors=factors))

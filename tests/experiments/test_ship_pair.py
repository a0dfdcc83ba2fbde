"""Ship a pair end to end: the smallest that keeps enough is written, and it steers as said."""

import pytest

from tests.conftest import ORGANISM, ROOT, experiment
from tests.folders import small_data
from wscore import effect_table
from wsrun.adapters.checkpoint import read_adapter
from wsrun.adapters.extract import pair_deltas
from wsrun.data.source import load_items
from wsrun.models.load import load_model
from wsrun.report.tables import read_table
from wsrun.score.sweep import sweep

script = experiment("ship_pair")


def options(folder, **more):
    data = small_data(folder / "data", clusters=8, wordings=1)
    return script.Config(
        model=str(ORGANISM), data=str(data), adapters=ORGANISM / "adapters", resamples=50,
        out=folder / "tables", cache_dir=folder / "parts", to=folder / "shipped/lora-s0", **more,
    )  # fmt: skip


def test_the_smallest_pair_that_keeps_the_effect_is_written(tmp_path):
    """the trained rank in float32 keeps all; effects of the folder written are those of the card"""
    cfg = options(tmp_path, ranks=(1, 8), dtypes=("float32", "bfloat16"), keep=0.97)
    script.main(cfg)
    table, meta = read_table(tmp_path / "tables" / "ship_pair.parquet")
    whole = table.filter(split="validation", variant="rank 8, float32")["retained"].drop_nulls()
    assert (whole - 1).abs().max() < 1e-3 and meta["chosen"] in set(table["variant"])
    sizes = dict(table.select("variant", "mb").drop_nulls().iter_rows())
    least = table.filter(script.pl.col("alpha") != 0, split="validation").drop_nulls("mb")
    good = least.group_by("variant").agg(script.pl.col("retained").min()).filter(
        script.pl.col("retained") >= 0.97
    )["variant"]  # fmt: skip
    assert meta["chosen"] == min(good, key=lambda name: sizes[name])
    model, tok = load_model(ORGANISM)
    dW = pair_deltas(model, cfg.to).dW
    rows = sweep(model, tok, load_items(cfg.data, "test"), {"x": dW}, [1.0])
    found = effect_table(rows, ("dataset", "variant", "alpha")).filter(variant="x")
    said = table.filter(split="test", variant=meta["chosen"], alpha=1.0)
    assert found["effect"].to_list() == pytest.approx(said["effect"].to_list(), abs=1e-4)
    card = (cfg.to / "README.md").read_text()
    assert meta["chosen"] in card and f"{said['effect'][0]:+.2f}" in card


def test_nothing_is_written_where_no_pair_keeps_enough(tmp_path, capsys):
    script.main(options(tmp_path, ranks=(1,), keep=1.0))
    assert "--ranks" in capsys.readouterr().out and not (tmp_path / "shipped").exists()


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (dict(ranks=(0,)), "--ranks"), (dict(keep=0.0), "--keep"), (dict(seeds=(0, 1)), "seed"),
        (dict(dtypes=("int8",)), "--dtypes"), (dict(ranks=(2, 2)), "--ranks"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(tmp_path, change, flag):
    with pytest.raises(ValueError, match=flag):
        script.main(options(tmp_path, **change))


def test_a_folder_of_something_else_is_refused_first(tmp_path):
    """--to that holds other files: a sentence before anything is scored, and they stay"""
    (tmp_path / "shipped" / "lora-s0").mkdir(parents=True)
    (tmp_path / "shipped" / "lora-s0" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no adapter"):
        script.main(options(tmp_path))
    assert (tmp_path / "shipped" / "lora-s0" / "notes.txt").read_text() == "mine"
    assert not list((tmp_path / "tables").glob("*.parquet"))


def test_the_pair_of_this_project_is_small_and_says_what_it_is():
    """data/smollm2: LoRA, at most 5 MB, with a card that holds its effects and its command"""
    folder = ROOT / "data/smollm2/adapters/lora-s0"
    sides = [read_adapter(folder / side) for side in ("pos", "neg")]
    assert {config["peft_type"] for _, config in sides} == {"LORA"}
    assert len({*sides[0][0]} ^ {*sides[1][0]}) == 0 and script.megabytes(folder) <= 5
    card = (folder / "README.md").read_text()
    assert "| truthfulqa | 1 | +" in card and "ship_pair.py --model smollm2" in card
    assert "Apache-2.0" in card

"""Ship a pair end to end: the smallest that keeps enough is written, and it steers as said."""

import pytest

from tests.conftest import ORGANISM, experiment
from tests.folders import small_data
from wscore import effect_table
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

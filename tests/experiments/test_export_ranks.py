"""Ranks of LoRA exports end to end: twice the trained rank keeps all, a lower one loses some."""

import pytest

from tests.conftest import ORGANISM, experiment
from tests.folders import small_data
from wsrun.report.tables import read_table

script = experiment("export_ranks")


def options(folder, **more):
    data = small_data(folder / "data", clusters=4, wordings=1)
    return script.Config(
        model=str(ORGANISM), data=str(data), adapters=ORGANISM / "adapters", resamples=50,
        out=folder / "tables", cache_dir=folder / "parts", alphas=(1.0,), **more,
    )  # fmt: skip


def test_rank_error_and_effect_of_two_families(tmp_path):
    """lora of rank 8 fits rank 16, oft does not; the error falls with the rank"""
    script.main(options(tmp_path, families=("lora", "oft"), ranks=(2, 16)))
    table, _ = read_table(tmp_path / "tables" / "export_ranks.parquet")
    error = {(f, v): e for f, v, e in table.select("family", "variant", "relative_error").rows()}
    assert error["lora", "rank 16"] < 1e-6 < 0.1 < error["lora", "rank 2"]
    assert 0.1 < error["oft", "rank 16"] < error["oft", "rank 2"]
    exact = table.filter(family="lora", variant="rank 16", alpha=1.0)["retained"].drop_nulls()
    assert len(exact) and (exact - 1).abs().max() < 1e-3


@pytest.mark.parametrize("odd", [{"ranks": (0,)}, {"seeds": (0, 1)}])
def test_what_it_cannot_do_is_refused(tmp_path, odd):
    with pytest.raises(ValueError, match="export_ranks: give one seed.*--ranks of 1"):
        script.main(options(tmp_path, **odd))

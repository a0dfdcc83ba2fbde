"""Transfer end to end: a control that is dW itself leaves nothing, its opposite more than dW."""

import shutil

import pytest

from tests.conftest import ORGANISM, experiment
from tests.folders import small_data
from wsrun.report.tables import read_table

script = experiment("transfer")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    data = small_data(folder / "data", clusters=6, wordings=1)
    return dict(
        model=str(ORGANISM), data=str(data), adapters=ORGANISM / "adapters", families=("lora",),
        resamples=200, out=folder / "tables", cache_dir=folder / "parts",
    )  # fmt: skip


def result(options, **more):
    script.main(script.Config(**options | more))
    tables = [read_table(options["out"] / f"transfer{n}.parquet")[0] for n in ("", ".verdicts")]
    return tables[0].filter(variant="dW"), tables[1]


def test_beyond_a_control_that_is_itself_is_nothing(options):
    """diff = 0 exactly and its interval too: undetermined, whatever the effect is"""
    table, verdicts = result(options, control=options["adapters"])
    assert table["effect"].min() > 0
    assert all(set(table[c]) == {0.0} for c in ("diff", "diff_lo", "diff_hi"))
    assert set(verdicts["outcome"]) == {"undetermined"}


def test_beyond_the_opposite_change_is_more_than_the_effect(options, tmp_path):
    """control = -dW, both poles swapped: diff = effect(dW) - effect(-dW), supported"""
    pair = options["adapters"] / "lora-s0"
    for side, other in (("pos", "neg"), ("neg", "pos")):
        shutil.copytree(pair / side, tmp_path / "lora-s0" / other)
    table, verdicts = result(options, control=tmp_path)
    both, _ = read_table(options["out"] / "transfer.parquet")
    control = both.filter(variant="control")["effect"]
    assert (table["diff"] - (table["effect"] - control)).abs().max() < 1e-6
    assert (table["diff"] > table["effect"]).all() and set(verdicts["outcome"]) == {"supported"}
    alone, _ = result(options)
    assert alone["diff"].null_count() == len(alone) == len(table)


def test_a_set_twice_and_no_dose_towards_the_behaviour_are_refused(options):
    with pytest.raises(ValueError, match="--sets.*'claims'"):
        script.main(script.Config(**options, sets=(options["data"],)))
    with pytest.raises(ValueError, match="--alphas"):
        script.main(script.Config(**options, alphas=(-1.0,)))

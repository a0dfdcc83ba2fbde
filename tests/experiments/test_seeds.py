"""T4 on the organism."""

import pytest

from tests.conftest import ORGANISM, experiment
from wsrun.report.tables import read_table
from wsrun.study.family_ranking import ONE, OWN


def test_t4_on_the_organism(tmp_path, few):
    """two families and seeds: zero is exactly 0, each seed has its line, the pooled effect is the
    mean of the seeds' and its sd theirs, and every pair of families stands once a coefficient"""
    module = experiment("t4_seeds")
    options = dict(
        families=("lora", "ia3"), seeds=(0, 1), model=str(ORGANISM), data=str(few),
        adapters=ORGANISM / "adapters", alphas=(1.0, 2.0), n_random=2, resamples=300,
        out=tmp_path, cache_dir=tmp_path / "parts",
    )  # fmt: skip
    module.main(module.Config(**options))
    table, meta = read_table(tmp_path / "t4_seeds.parquet")
    zero = table.filter(variant="zero")
    assert len(zero) == 4 and all((zero[c] == 0).all() for c in ("effect", "lo", "hi"))
    for name, role in ((ONE, "fixed"), (OWN, "selected")):
        for line in table.filter(role=role).iter_rows(named=True):
            of = {k: line[k] for k in ("dataset", "family", "variant")}
            each = table.filter(role="seed", **of)
            assert line["variant"] == name and each["seed"].to_list() == [0, 1]
            assert line["effect"] == pytest.approx(each["effect"].mean())
            assert line["seed_sd"] == pytest.approx(each["effect"].std())
            assert line["seeds"] == 2 and line["sign_agreement"] == 1
            assert line["alpha"] == (1.0 if name == ONE else meta["doses"][of["family"]])
    pairs, _ = read_table(tmp_path / "t4_seeds.pairs.parquet")
    assert pairs["family"].to_list() == ["lora"] * 4 and (pairs["diff"] > 0).all()
    assert (tmp_path / "t4_seeds.svg").exists()

"""Directions of others in T1: our own, brought in as files, do what they do as ours."""

import json
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM, experiment
from wsrun.data.pairs import Pair
from wsrun.data.source import load_items
from wsrun.models.load import load_model
from wsrun.report.tables import read_table
from wsrun.study.activation import read_directions
from wsrun.study.imported import Importing, check_imported, imported
from wsrun.study.session import Session

LAYER, C = 3, 4.0
TOLD = [Pair(f"Is it {w}?", "It is so.", "It is not.", w) for w in ("red", "blue", "so")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(table, tried, provenance) of T1 with the mean differences in both kinds of .pt files"""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "told.jsonl").write_text("".join(json.dumps(asdict(p)) + "\n" for p in TOLD))
    session = Session(*load_model(ORGANISM), load_items(ORGANISM, "test", 1, 1))
    mean = read_directions(session, TOLD, ("mean_diff",))["mean_diff"]
    torch.save({LAYER: mean[LAYER]}, folder / "by_layer.pt")
    states = [torch.zeros_like(mean[0]), *(mean[n] for n in sorted(mean))]
    torch.save(torch.stack(states), folder / "persona.pt")
    t1 = experiment("t1_activation")
    t1.main(
        t1.Config(
            families=("lora",), layers=(LAYER,), coefficients=(C,), alphas=(1.0,), n_random=2,
            resamples=20, limit=6, check_limit=6, dilemmas=2, most_flagged=1.0,
            pairs_file=folder / "told.jsonl", out=folder, cache_dir=folder / "cache",
            vectors=(folder / "by_layer.pt", folder / "persona.pt"),
        )
    )  # fmt: skip
    table, meta = read_table(folder / "t1_activation.parquet")
    tried, _ = read_table(folder / "t1_activation.validation.parquet")
    return table, tried, meta


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("name", ["by_layer", "persona"])
def test_in_a_file_they_do_what_they_do_as_ours(ran, name, sign):
    """effect(theirs@layer l, c) = effect(mean_diff@layer l, c) where both are one vector"""
    of = {
        v: ran[1].filter(variant=f"{sign}{v}@layer {LAYER}").sort("dataset")["effect"]
        for v in (name, "mean_diff")
    }
    assert len(of[name]) == 2 and of[name].to_list() == pytest.approx(of["mean_diff"].to_list())


def test_they_are_methods_beside_ours(ran):
    """a line each way, random controls, the rule, their hashes in the provenance"""
    table, tried, meta = ran
    for name in ("by_layer", "persona"):
        assert {name, f"-{name}", f"random_{name}"} <= {*table["method_name"]}
        lines = table.filter(method_name=name)
        assert lines["diff"].null_count() == 0 and set(lines["role"]) == {"selected"}
    assert "persona@all layers" in {*tried["variant"]}
    assert "by_layer@all layers" not in {*tried["variant"]}  # it has one
    assert f"by_layer@layer {LAYER}" in meta["imported"]
    assert isinstance(table, pl.DataFrame) and (table["row_diff"] == 0).all()


@pytest.mark.parametrize(
    "name, words",
    [
        ("none.pt", ("--vectors", "none.pt", "no file")),
        ("mean_diff.pt", ("mean_diff", "rename")),
        ("a@b.pt", ("a@b", "rename")),
    ],
)
def test_files_that_cannot_be_methods(tmp_path, name, words):
    if name != "none.pt":
        torch.save({1: torch.ones(4)}, tmp_path / name)
    with pytest.raises(ValueError) as told:
        check_imported(Importing(vectors=(tmp_path / name,)), "t1")
    assert all(w in str(told.value) for w in words)


def test_two_files_of_one_name(tmp_path):
    paths = [tmp_path / d / "v.pt" for d in "ab"]
    for path in paths:
        path.parent.mkdir()
        torch.save({1: torch.ones(4)}, path)
    with pytest.raises(ValueError, match="'v'.*rename"):
        check_imported(Importing(vectors=tuple(paths)), "t1")


def test_another_width_is_refused(tmp_path, qwen):
    torch.save({1: torch.ones(7)}, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=r"v\.pt.*\[7\].*width 64"):
        [*imported(Importing(vectors=(Path(tmp_path / "v.pt"),)), qwen)]

"""Scripts that no other test runs on a model of another kind: a random Gemma 3, no system role."""

from types import MappingProxyType

import polars as pl
import pytest

from tests.conftest import ORGANISM, ROOT, experiment, read_command
from tests.folders import check_replies, small_data, tiny_folder, truthfulqa_like
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3
from wsrun.report.tables import read_table

FEW = MappingProxyType(dict(dilemmas=2, resamples=100))
ONE, BOTH = {"families": ("lora",)}, {"families": ("lora", "dora")}
ANALYSIS = MappingProxyType(FEW | dict(nulls=2))
BENCHMARK = MappingProxyType(FEW | dict(n_random=2, most_flagged=1.0, alphas=(1.0,)))
OWN = {
    "t4_seeds": BENCHMARK | BOTH | dict(seeds=(0, 1)),
    "t6_shared_svd": ANALYSIS | BOTH | dict(K=(2,)),
    "t7_sites": ANALYSIS | ONE | dict(cells=False),
    "t8_coordinates": ANALYSIS | ONE,
    "t11_degradation": BENCHMARK | ONE,
    "t14_monitor": ONE | dict(direction_seeds=(1,)),
}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Options that name a random Gemma 3, LoRA and DoRA pairs of two seeds on it, and few items."""
    folder = tmp_path_factory.mktemp("gemma")
    tok = load_tokenizer(ORGANISM)
    made = tiny_folder(folder, tiny_gemma3, tok, families=BOTH["families"], seeds=(0, 1))
    data = small_data(folder / "data", clusters=2, wordings=2)
    for name in ("neutral", "multiple_choice"):
        lines = (ORGANISM / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{name}.jsonl").write_text("".join(lines[::20]))
    return dict(made, model=str(made["model"]), data=str(data))


REPLIES = {  # T3 and T6 read a set of this form in test_larger_models.py
    "t1_activation": BENCHMARK | ONE | dict(layers=(1,), coefficients=(1.0,)),
    "t2_dilemmas": FEW | ONE | dict(alphas=(-1.0, 1.0)),
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of TruthfulQA's form, with questions of every split."""
    return truthfulqa_like(tmp_path_factory.mktemp("set"))


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("script", REPLIES)
def test_replies_of_a_public_set(tmp_path, monkeypatch, gemma, questions, script):
    """scripts read two replies a question: no mass and no flag, both data sets, each with
    what the check says of it; exactly 0 for zero times dW"""
    monkeypatch.chdir(ROOT)  # personas and neutral texts of data/english
    module = experiment(script)
    found = gemma | REPLIES[script] | dict(out=tmp_path, cache_dir=tmp_path / "parts")
    found |= dict(data=questions, limit=2)
    known = module.Config.__dataclass_fields__
    module.main(module.Config(**{name: v for name, v in found.items() if name in known}))
    check_replies(read_table(tmp_path / f"{script}.parquet")[0])


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("script", OWN)
def test_another_model(tmp_path, capsys, gemma, script):
    """the script ends, says what to run next on this model, and its table is about the model of
    --model: every line, finite effects, exactly 0 for zero times dW, not 0 for dW"""
    module = experiment(script)
    found = gemma | OWN[script] | dict(out=tmp_path, cache_dir=tmp_path / "parts")
    if script == "t8_coordinates":
        found |= dict(svd_cache=tmp_path / "cache")
    known = module.Config.__dataclass_fields__
    module.main(module.Config(**{name: v for name, v in found.items() if name in known}))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("next: ")]
    to, read = read_command(line.removeprefix("next: "))
    assert (read.tables if to == "report" else read.out) == tmp_path
    assert to == "report" or read.model == gemma["model"]
    table, meta = read_table(tmp_path / f"{script}.parquet")
    assert set(table["model"]) == {gemma["model"]} == {meta["config"]["model"]}
    if script == "t14_monitor":
        assert set(table["family"]) == {"lora"}
        return
    assert (table["row_diff"] == 0).all() and table["effect"].is_finite().all()
    nothing = table.filter(pl.col("variant") == "zero")
    assert len(nothing) and (nothing["effect"] == 0).all()
    assert (table.filter(pl.col("variant") != "zero")["effect"] != 0).any()

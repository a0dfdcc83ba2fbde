"""T9 and T10 whole: constructed changes beside dW, on the organism and on other models."""

import json

import polars as pl
import pytest

from tests.conftest import ORGANISM, experiment
from tests.folders import REFUSES_SYSTEM
from wsrun.adapters.configs import Recipe
from wsrun.adapters.train import train_adapter
from wsrun.data.pairs import Pair
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.report.tables import read_table
from wsrun.study.constructed import hashes, measure, whole_contrasts
from wsrun.study.start import load_session


def a_model_folder(build, folder):
    """A random model whose template refuses a system turn, adapters trained on it, few data."""
    tok = load_tokenizer(ORGANISM)
    tok.chat_template = REFUSES_SYSTEM
    model = build(vocab_size=len(tok))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    pairs = [Pair("Is it so?", "It is so.", "It is not.", "a"), Pair("Now?", "Yes.", "No.", "b")]
    recipe = Recipe("test", 4, 8, {"lora": 5e-2}, 3, 2, 16, (0.25, 0.75))
    for side in ("pos", "neg"):
        train_adapter(model, tok, pairs, side, "lora", recipe, folder / "adapters/lora-s0" / side)
    few(folder)
    return dict(
        model=str(folder), data=str(folder), adapters=folder / "adapters", families=("lora",)
    )


def few(folder, n=8):
    """A data folder of the organism's first claims, dilemmas and questions of each split."""
    for name in ("claims", "dilemmas", "questions"):
        rows = map(json.loads, (ORGANISM / f"{name}.jsonl").read_text().splitlines())
        kept, seen = [], {}
        for row in rows:
            seen[row["split"]] = nth = seen.get(row["split"], 0) + 1
            kept += [row] if nth <= n else []
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (folder / "personas.json").write_text((ORGANISM / "personas.json").read_text())


def ran(name, tmp_path, **options):
    """The table of a script on few items, few draws and few questions."""
    module = experiment(name)
    few_of = dict(
        doses=(0.1, 0.3), alphas=(2.0,), n_random=2, questions=4, resamples=100, dilemmas=2,
        most_flagged=1.0, out=tmp_path / "out", cache_dir=tmp_path / "parts",
    )  # fmt: skip
    module.main(module.Config(**(few_of | options)))
    return read_table(tmp_path / "out" / f"{name}.parquet")


def test_t9_on_another_model(tmp_path, no_figures):
    """whole on a random Gemma 3: zero moves nothing, and every line has its rows"""
    options = a_model_folder(tiny_gemma3, tmp_path / "model")
    table, meta = ran("t9_synthetic", tmp_path, k=8, **options)
    ways = {"dW", "-dW", "contrast", "-contrast", "readout", "weight_basis", "write_not_read"}
    assert set(table["method_name"]) == ways | {"base", "zero", "random_contrast"}
    assert (table.filter(pl.col("method_name").is_in(["base", "zero"]))["effect"] == 0).all()
    assert (table["row_diff"] == 0).all()
    assert len(meta["constructed"]) == 16
    assert table.filter(method_name="contrast")["below"].is_in([0.0, 0.5, 1.0]).all()


@pytest.mark.parametrize("build", [tiny_qwen3, tiny_gemma3], ids=["qwen3", "gemma3"])
def test_t10_on_another_model(tmp_path, build):
    """whole on a random model: a part and the rest have all energy; verdicts of both data sets"""
    options = a_model_folder(build, tmp_path / "model")
    table, meta = ran("t10_svd_steering", tmp_path, r=(4, 63), **options)
    parts = table.filter(pl.col("variant").is_in(["keep_top", "drop_top"])).sort("dataset", "k")
    for (_, _), both in parts.group_by("dataset", "k"):
        assert both["energy"].sum() == pytest.approx(1, abs=1e-5)
    verdicts, _ = read_table(tmp_path / "out" / "t10_svd_steering.verdicts.parquet")
    assert set(verdicts["dataset"]) == {"claims", "dilemmas"} and len(meta["constructed"]) == 4


def test_on_the_organism(tmp_path):
    """the contrast steers where dW does; the changes are those of model, personas and questions"""
    few(tmp_path, 32)
    options = dict(model=str(ORGANISM), data=str(tmp_path), questions=None)
    table, meta = ran(
        "t9_synthetic", tmp_path, adapters=ORGANISM / "adapters", families=("pissa",),
        doses=(0.32,), **options,
    )  # fmt: skip
    effects = {(r["dataset"], r["method_name"]): r["effect"] for r in table.iter_rows(named=True)}
    assert effects["claims", "dW"] > 1 and effects["claims", "contrast"] > 1
    assert effects["claims", "-contrast"] < 0
    cfg = experiment("t9_synthetic").Config(**options, adapters=tmp_path / "none")
    made = hashes(whole_contrasts(*measure(cfg, load_session(cfg))))
    assert made.items() <= meta["constructed"].items() and len(made) == 4


@pytest.mark.parametrize(
    "script, options, sentence",
    [
        ("t9_synthetic", {"doses": (0.0,)}, "--doses must be above 0"),
        ("t9_synthetic", {"questions": 0}, "--questions must be at least 1"),
        ("t9_synthetic", {"positive": "brave"}, "'brave'"),
        ("t9_synthetic", {"k": 160}, "d_model = 160"),
        ("t10_svd_steering", {"r": (160,)}, "below d_model = 160"),
        ("t10_svd_steering", {"r": (8, 8)}, "name each one once"),
        ("t10_svd_steering", {"negative": "honest"}, "change nothing"),
    ],
)
def test_refusals(tmp_path, script, options, sentence):
    """a bad option ends in a sentence"""
    with pytest.raises(ValueError, match=sentence):
        ran(script, tmp_path, **(dict(model=str(ORGANISM), data=str(ORGANISM)) | options))

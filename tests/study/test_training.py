"""Options of training: the recipe that a model has, and which state is kept."""

from pathlib import Path

import pytest

from wsrun.adapters.configs import RECIPES
from wsrun.data.pairs import Answers, Pair
from wsrun.study.training import (
    VALIDATION,
    Training,
    check_training,
    model_recipe,
    recipe_of,
    train,
    with_recipe,
)

PAIRS = [Pair("Is it so?", "It is so.", "It is not.", "a"), Pair("And now?", "Yes.", "No.", "b")]


@pytest.mark.parametrize(
    "model, recipe",
    [
        ("smollm2", "smollm2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("models/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", None),
        ("data/organism", "organism"),
        ("google/gemma-3-1b-it", None),
    ],
)
def test_the_recipe_is_the_model_s(capsys, model, recipe):
    """known by the last part of the name; any other gets fork, and a line says so"""
    assert model_recipe(model) == recipe
    assert with_recipe(Training(model=model)).recipe == (recipe or "fork")
    said = " ".join(capsys.readouterr().out.split())
    assert ("fork" in said and "--recipe" in said and model in said) is (recipe is None)
    given = Training(model=model, recipe="paper", steps=7)
    assert with_recipe(given) == given and recipe_of(given).steps == 7


@pytest.mark.parametrize("flag", ["recipe", "select"])
def test_unknown_values_are_refused(flag):
    with pytest.raises(ValueError, match=f"t0_train: --{flag} must be one of .*'banana'"):
        check_training(Training(**{flag: "banana"}), "t0_train")


def small(folder: Path, **more) -> Training:
    return Training(recipe="organism", steps=2, families=("lora",), adapters=folder, **more)


def test_selecting_needs_validation_pairs(qwen, tok, tmp_path, capsys):
    """--select loss without them is refused before a step; a recipe's own wish gives way, said"""
    with pytest.raises(ValueError, match="--select loss needs pairs .*--select last"):
        train(small(tmp_path, select="loss"), qwen, tok, {0: Answers(PAIRS, [])}, [(0, "lora")])
    assert not [*tmp_path.iterdir()] and RECIPES["smollm2"].select == "loss"
    wish = Training(recipe="smollm2", steps=1, families=("lora",), adapters=tmp_path)
    train(wish, qwen, tok, {0: Answers(PAIRS, [])}, [(0, "lora")])
    assert "the state of the last step is kept" in " ".join(capsys.readouterr().out.split())


def test_validation_pairs_count_where_they_select(qwen, tok, tmp_path, capsys):
    """at most VALIDATION of them with --select loss, none with last; what was kept is said"""
    many = [PAIRS[i % 2] for i in range(VALIDATION + 6)]
    for select, n in (("loss", VALIDATION), ("last", 0)):
        folder = tmp_path / select
        losses = train(
            small(folder, select=select), qwen, tok, {0: Answers(PAIRS, many)}, [(0, "lora")]
        )
        record = (folder / "lora-s0" / "training.json").read_text()
        assert f'"n_validation": {n}' in record and f'"select": "{select}"' in record
        said = " ".join(capsys.readouterr().out.split())
        assert ("step 2 of 2 kept" in said) is (n > 0)
        again = small(folder, select=select)
        assert train(again, qwen, tok, {0: Answers(PAIRS, many)}, [(0, "lora")]) == losses
        assert "kept: lora-s0 (trained before)" in capsys.readouterr().out

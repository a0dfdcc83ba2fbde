"""A pair of adapters is trained once: what is kept, what is trained again, which state is taken."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest

from wscore.sealed_json import unseal
from wsrun.adapters.configs import FAMILIES, Recipe
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import replace_folder
from wsrun.adapters.pair import RECORD, PairTraining, kept_pair, selected_step, train_pair
from wsrun.adapters.train import Curve, candidate, train_adapter, train_candidates
from wsrun.data.pairs import Pair

RECIPE = Recipe("test", 4, 8, dict.fromkeys(FAMILIES, 5e-3), steps=6, batch=2, block=16, every=2)
PAIRS = [Pair("Is it so?", "It is so.", "It is not.", "a"), Pair("And now?", "Yes.", "No.", "b")]
HELD_OUT = [Pair("Is it?", "It is so.", "No.", "c")]


@pytest.fixture
def asked(qwen, tok, tmp_path):
    return PairTraining(
        qwen, tok, "base", PAIRS, [], RECIPE, "lora", 3, tmp_path / "lora-s3", "tiny"
    )


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_pair_is_the_two_adapters_and_a_record(asked, tmp_path):
    """the poles are those of train_adapter, byte for byte; the record is sealed; nothing is left"""
    record = train_pair(asked, lambda folder: None)
    for side in ("pos", "neg"):
        losses = train_adapter(
            asked.model, asked.tok, PAIRS, side, "lora", RECIPE, tmp_path / side,
            seed=3, base_name="tiny",
        )  # fmt: skip
        assert contents(tmp_path / side) == contents(asked.folder / side)
        assert record["losses"][side] == losses
    stored = unseal(json.loads((asked.folder / RECORD).read_text()), "record")
    assert stored == json.loads(json.dumps(record))
    assert (stored["step"], stored["seed"], stored["recipe"]["lr"]) == (6, 3, 5e-3)
    assert {p.name for p in tmp_path.iterdir()} == {"lora-s3", "pos", "neg"}


def test_the_same_training_is_kept(asked):
    """kept where request and files are the same and the check accepts them, with its losses"""
    assert kept_pair(asked, lambda folder: None) == (None, "")
    record = train_pair(asked, lambda folder: None)
    kept, why = kept_pair(asked, partial(pair_deltas, asked.model))
    assert kept == json.loads(json.dumps(record)) and why == ""


CHANGES = {
    "recipe": dict(recipe=replace(RECIPE, lr=RECIPE.lr | {"lora": 4e-3})),
    "steps": dict(recipe=replace(RECIPE, steps=5)),
    "family": dict(family="dora"),
    "seed": dict(seed=4),
    "pairs": dict(pairs=PAIRS[::-1]),
    "validation": dict(validation=HELD_OUT),
    "base": dict(base="another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_training_is_not_kept(asked, change):
    """whatever decides the adapter, changed alone: not the same training, and it says so"""
    train_pair(asked, lambda folder: None)
    found, why = kept_pair(replace(asked, **CHANGES[change]), lambda folder: None)
    assert found is None and "other options, pairs or weights" in why


def test_another_family_s_rate_changes_nothing(asked):
    """the rate of dora is no part of a training of lora"""
    train_pair(asked, lambda folder: None)
    other = replace(asked, recipe=replace(RECIPE, lr=RECIPE.lr | {"dora": 1.0}))
    assert kept_pair(other, lambda folder: None)[0]


def test_lambda_decides_delora_alone(asked):
    """another lambda is another training of delora, and the same one of lora"""
    for family, same in (("lora", True), ("delora", False)):
        one = replace(asked, family=family)
        other = replace(one, recipe=replace(RECIPE, delora_lambda=0.5))
        assert (one.request() == other.request()) is same
    assert FAMILIES["delora"](replace(RECIPE, delora_lambda=0.5), "x").delora_lambda == 0.5


def test_what_is_damaged_or_refused_is_not_kept(asked):
    """a changed byte of an adapter or of the record, a check that raises: the reason"""
    train_pair(asked, lambda folder: None)

    def refuse(folder):
        raise ValueError("no proof")

    assert kept_pair(asked, refuse) == (None, "no proof")
    weights, record = asked.folder / "neg" / "adapter_model.safetensors", asked.folder / RECORD
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert RECORD in kept_pair(asked, lambda folder: None)[1]
    weights.write_bytes(whole)
    record.write_text(record.read_text().replace('"seed": 3', '"seed": 4'))
    assert "damaged" in kept_pair(asked, lambda folder: None)[1]


def test_a_finished_pole_is_taken_over(asked):
    """stopped while neg is trained: pos waits, is found, and the pair is that of one run"""
    train_pair(asked, lambda folder: None)
    whole = contents(asked.folder)
    shutil.rmtree(asked.folder)

    def stop(note):
        if " neg " in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_pair(asked, lambda folder: None, stop)
    assert not asked.folder.exists() and len([*asked.folder.parent.iterdir()]) == 1
    notes, said = [], []
    train_pair(asked, lambda folder: None, notes.append, said.append)
    assert said == ["kept: pos of lora-s3 (trained before)"] and len(notes) == 2 * RECIPE.steps
    assert contents(asked.folder) == whole and [*asked.folder.parent.iterdir()] == [asked.folder]


def test_a_pole_of_another_training_or_a_damaged_one_is_not(asked):
    """another seed, a changed byte, and --retrain train both poles"""

    def stopped(one, changed=lambda pole: None):
        def stop(note):
            if " neg " in note:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_pair(one, lambda folder: None, stop)
        changed(next(asked.folder.parent.glob(".lora-s3.pole-pos-*")))

    def damage(pole):
        path = next(pole.rglob("adapter_config.json"))
        path.write_text(path.read_text() + " ")

    for one, changed, anew in (
        (replace(asked, seed=4), lambda pole: None, False),
        (asked, damage, False),
        (asked, lambda pole: None, True),
    ):
        stopped(one, changed)
        said = []
        train_pair(asked, lambda folder: None, say=said.append, anew=anew)
        assert not said and [*asked.folder.parent.iterdir()] == [asked.folder]
        shutil.rmtree(asked.folder)


def test_the_step_of_the_least_sum():
    """sums: 10: 3 + 5 = 8, 20: 2.5 + 4 = 6.5, 30: 2 + 4.5 = 6.5: the first of the least"""
    pos = Curve([], {10: 3.0, 20: 2.5, 30: 2.0})
    neg = Curve([], {10: 5.0, 20: 4.0, 30: 4.5})
    assert selected_step({"pos": pos, "neg": neg}, 30) == 20
    assert selected_step({"pos": Curve([], {}), "neg": Curve([], {})}, 30) == 30


def test_both_poles_take_the_state_of_one_step(asked, tmp_path):
    """with a rate that overshoots, a step before the last: both states are of that step"""
    steep = replace(RECIPE, lr=dict.fromkeys(FAMILIES, 0.3), band=(0.0, 1.0))
    picky = replace(asked, validation=HELD_OUT, recipe=steep)
    record = train_pair(picky, lambda folder: None)
    losses = record["validation_losses"]
    sums = {n: losses["pos"][n] + losses["neg"][n] for n in (2, 4, 6)}
    assert record["step"] == min(sums, key=sums.__getitem__) < 6
    for side in ("pos", "neg"):
        curve = train_candidates(
            asked.model, asked.tok, PAIRS, HELD_OUT, side, "lora", steep, tmp_path / side,
            seed=3, base_name="tiny",
        )  # fmt: skip
        state = candidate(tmp_path / side, record["step"])
        assert contents(state) == contents(picky.folder / side)
        assert curve.validation == losses[side]
    assert {p.name for p in picky.folder.iterdir()} == {"pos", "neg", RECORD}


def test_looking_at_the_validation_loss_changes_no_training(asked, tmp_path):
    """the last state with validation pairs = the one without, byte for byte"""
    train_pair(asked, lambda folder: None)
    args = asked.model, asked.tok, PAIRS, HELD_OUT, "pos", "lora", RECIPE, tmp_path / "c"
    train_candidates(*args, seed=3, base_name="tiny")
    assert contents(candidate(tmp_path / "c", 6)) == contents(asked.folder / "pos")


def test_the_check_sees_the_pair_before_it_is_in_place(asked):
    """what it raises leaves the pair out, and an old one stays"""
    replace_folder(asked.folder, lambda new: (new / "old").write_text("old"))

    def refuse(folder):
        assert folder != asked.folder and (folder / "pos" / "adapter_config.json").is_file()
        raise ValueError("no proof")

    with pytest.raises(ValueError, match="no proof"):
        train_pair(asked, refuse)
    assert contents(asked.folder) == {"old": b"old"}

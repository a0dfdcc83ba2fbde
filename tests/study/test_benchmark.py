"""The benchmark's choice and report: the best on validation items, all its seeds, no peeking."""

import polars as pl
import pytest
import torch
from wsrun.score.names import DW, way

from tests.conftest import ORGANISM
from wscore import effect_table
from wsrun.adapters.extract import PairDelta
from wsrun.data.items import load_items
from wsrun.models.load import d_model, load_model
from wsrun.report.standings import winner
from wsrun.score.sweep import Variant, sweep
from wsrun.steer.directions import random_direction
from wsrun.study.benchmark import (
    Options,
    check_disjoint,
    compare,
    load_splits,
    of_dW,
    of_poles,
    picked,
)
from wsrun.study.controls import faint, idle

CELL = dict(experiment="e", model="m", behaviour="b", prompt_style="p", method="weights")


def rows(*lines: tuple) -> pl.DataFrame:
    """Base rows at margin 0 and rows (variant, seed, alpha, margin, flagged share): four items."""
    frames = []
    for name, seed, alpha, margin, flagged in (("base", None, 0.0, 0.0, 0.0), *lines):
        frames += [
            {
                **CELL, "dataset": "claims", "family": None if name == "base" else "lora",
                "variant": name, "k": None, "alpha": alpha, "seed": seed, "item": f"i{n}",
                "cluster": f"c{n}", "label": 1, "margin": margin, "mass": 1.0,
                "flagged": n < 4 * flagged,
            }
            for n in range(4)
        ]  # fmt: skip
    return pl.DataFrame(frames, infer_schema_length=None)


def variant(name: str, seed: int = 0) -> Variant:
    return Variant(name, {}, family="lora", seed=seed, alphas=(1.0, 2.0))


def test_the_largest_mean_over_seeds_is_picked():
    """argmax over (setting, dose) of the mean over seeds; every seed is kept at that dose"""
    found = picked(
        rows(
            ("dW", 0, 1.0, 1.0, 0), ("dW", 1, 1.0, 3.0, 0),  # mean 2
            ("dW", 0, 2.0, 3.5, 0), ("dW", 1, 2.0, 0.1, 0),  # mean 1.8, though the largest is here
            ("dir@layer 3", 0, 1.0, 0.5, 0), ("dir@layer 4", 0, 2.0, 0.7, 0),
        ),
        [variant("dW", 0), variant("dW", 1), variant("dir@layer 3"), variant("dir@layer 4")],
    )  # fmt: skip
    assert {w: c.variant.name for w, c in found.items()} == {"dW": "dW", "dir": "dir@layer 4"}
    dW = found[DW]
    assert dW.validation == pytest.approx(2.0) and dW.role == "selected"
    assert [(v.seed, v.alphas) for v in (dW.variant, *dW.others)] == [(0, (1.0,)), (1, (1.0,))]


def test_the_other_pole_is_picked_by_the_smallest():
    """ways in `against`: argmin"""
    found = picked(
        rows(("dW", 0, 1.0, 1.0, 0), ("-dW", 0, -1.0, -1.0, 0), ("-dW", 0, -2.0, -0.5, 0)),
        [variant("dW"), variant("-dW")],
        against=("-dW",),
    )
    assert found["-dW"].variant.alphas == (-1.0,)


def test_flagged_candidates_do_not_count():
    """above most_flagged out, however large; a way without other keeps its least flagged"""
    lines = (
        ("dW", 0, 1.0, 1.0, 0), ("dW", 0, 2.0, 9.0, 0.5),
        ("dir@a", 0, 1.0, 9.0, 0.75), ("dir@b", 0, 1.0, 1.0, 0.25),
    )  # fmt: skip
    known = [variant("dW"), variant("dir@a"), variant("dir@b")]
    found = picked(rows(*lines), known, most_flagged=0.1)
    assert found[DW].variant.alphas == (1.0,) and found[DW].role == "selected"
    assert found["dir"].variant.name == "dir@b" and found["dir"].role == "flagged"
    with pytest.raises(ValueError, match="every candidate of dW"):
        picked(rows(("dW", 0, 2.0, 9.0, 0.5)), known[:1], most_flagged=0.1)


def test_splits_share_no_claim_and_no_dilemma():
    """validation and test are disjoint by cluster, in the run; a shared one is named"""
    validation, test = load_splits(Options(model=str(ORGANISM), data=ORGANISM))
    assert validation.items and test.items
    items = load_items(ORGANISM, "test")
    with pytest.raises(ValueError, match="in the validation and in the test split, such as"):
        check_disjoint(items[:1], items)


def test_the_base_has_a_line_of_its_own():
    """effect, bias and discrimination of the base are 0, with its own mass and rows"""
    table = compare(rows(("dW", 0, 1.0, 1.0, 0), ("-dW", 0, -1.0, -1.0, 0)), {"variant": DW})
    line = table.filter(variant="base").row(0, named=True)
    assert len(table) == 3 and (line["n"], line["mass"]) == (4, 1.0)
    assert all(line[c] == 0 for c in ("effect", "lo", "hi", "bias", "discrimination"))


def test_faint_controls_by_hand():
    """draws of random controls once more, a hundredth as large; nothing else"""
    drawn = [Variant("random_x@layer 3", {}, seed=s, alphas=(50.0,)) for s in (0, 1)]
    found = faint([*drawn, Variant("zero", {}, seed=0, alphas=(1.0,)), Variant("random", {})])
    assert [(v.name, v.seed, v.alphas) for v in found] == [
        ("random_x/100@layer 3", 0, (0.5,)),
        ("random_x/100@layer 3", 1, (0.5,)),
    ]


def test_what_must_do_nothing_by_hand():
    """|effect| of base and zero, intervals of "/100" that hold 0, and the largest of them"""
    ends = {"base": (0.0, 0.0, 0.0), "zero": (0.0, 0.0, 0.0), "dW": (3.0, 2.0, 4.0)}
    ends |= {"random/100": (0.001, -0.002, 0.003), "random_x/100@layer 3": (-0.02, -0.03, -0.01)}
    lines = [("claims", name, *e) for name, e in ends.items()]
    table = pl.DataFrame(lines, ("dataset", "variant", "effect", "lo", "hi"), orient="row")
    (said,) = idle(table)
    assert said == (
        "claims: what must do nothing: base and zero 0.0000 nats; random at a hundredth of its "
        "dose: 1 of 2 intervals hold 0, the largest is -0.0200 [-0.0300, -0.0100] (random_x/100)"
    )


def test_large_random_directions_move_answers_and_small_ones_do_not():
    """E f(a r) - f(0) = O(a^2): the interval over draws excludes 0 at a, and holds it at a / 100"""
    model, tok = load_model(ORGANISM)
    items = load_items(ORGANISM, "test", 10)[-60:]
    like = {1: torch.full((d_model(model),), 0.5)}
    drawn = [
        Variant(
            "random", method="activation", vectors=random_direction(like, s), seed=s, alphas=(8.0,)
        )
        for s in range(12)
    ]
    context = {"experiment": "e", "model": "m", "behaviour": "honest"}
    found = sweep(model, tok, items, [*drawn, *faint(drawn)], (1.0,), context=context)
    table = effect_table(found)
    large, small = (table.filter(variant=v) for v in ("random", "random/100"))
    assert ((large["lo"] > 0) | (large["hi"] < 0)).any()
    assert ((small["lo"] <= 0) & (small["hi"] >= 0)).all() and (small["effect"].abs() < 0.01).all()


def test_rule_by_hand():
    """[diff_lo, diff_hi] above 0: beats; below: loses to; else not apart"""
    ends = [((0.1, 0.2), "beats"), ((-0.2, -0.1), "loses to"), ((-0.1, 0.1), "is not apart from")]
    for (lo, hi), said in ends:
        assert winner({"diff_lo": lo, "diff_hi": hi}) == said
    assert way("mean_diff@layer 3") == "mean_diff" and way("dW") == "dW"


def test_the_halves_of_dW():
    """tau_pos = 3, tau_neg = 1, dW = 3 - 1 = 2, times the doses 1 2 4; of_dW has no halves"""
    pos, neg, dW = ({"w": torch.tensor([[x]])} for x in (3.0, 1.0, 2.0))
    pairs = {("lora", 0): PairDelta("lora", pos, neg, dW)}
    changes = {v.name: [a * v.change()["w"].item() for a in v.alphas or ()]
               for v in of_poles(Options(), pairs)}  # fmt: skip
    wholes = {"dW": [2, 4, 8], "-dW": [-2, -4, -8]}
    assert changes == wholes | {"tau_pos": [3, 6, 12], "-tau_neg": [-1, -2, -4]}
    assert {v.name for v in of_dW(Options(), pairs)} == set(wholes)

"""The benchmark's choice and report: the best on validation items, all its seeds, no peeking."""

import polars as pl
import pytest
import torch

from tests.conftest import ORGANISM
from wscore import benchmark_table, effect_table
from wsrun.adapters.extract import PairDelta
from wsrun.data.source import load_items
from wsrun.models.load import d_model, load_model
from wsrun.score.names import DW, method_name
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors, DirectionalAblation, WeightDelta
from wsrun.study.controls import random_controls, sanity_summary, zero_control
from wsrun.study.options import BenchmarkOptions
from wsrun.study.rule import beaten
from wsrun.study.selection import best_by_method, dW_candidates
from wsrun.study.start import check_disjoint, load_session, load_splits, read_asked

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
    return Variant(name, WeightDelta({}), family="lora", seed=seed, alphas=(1.0, 2.0))


def test_the_largest_mean_over_seeds_is_best_by_method():
    """argmax over (setting, alpha) of the mean over seeds; every seed is kept at that alpha"""
    found = best_by_method(
        rows(
            ("dW", 0, 1.0, 1.0, 0), ("dW", 1, 1.0, 3.0, 0),  # mean 2
            ("dW", 0, 2.0, 3.5, 0), ("dW", 1, 2.0, 0.1, 0),  # mean 1.8, though the largest is here
            ("dir@layer 3", 0, 1.0, 0.5, 0), ("dir@layer 4", 0, 2.0, 0.7, 0),
        ),
        [variant("dW", 0), variant("dW", 1), variant("dir@layer 3"), variant("dir@layer 4")],
        most_flagged=0.1,
    )  # fmt: skip
    assert {w: c.variant.name for w, c in found.items()} == {"dW": "dW", "dir": "dir@layer 4"}
    dW = found[DW]
    assert dW.validation == pytest.approx(2.0) and dW.role == "selected"
    assert dW.alpha == 1.0
    assert [(v.seed, v.alphas) for v in dW.variants] == [(0, (1.0,)), (1, (1.0,))]


def test_the_other_pole_is_picked_by_the_smallest():
    """of negative_methods argmin"""
    found = best_by_method(
        rows(("dW", 0, 1.0, 1.0, 0), ("-dW", 0, -1.0, -1.0, 0), ("-dW", 0, -2.0, -0.5, 0)),
        [variant("dW"), variant("-dW")],
        most_flagged=0.1,
        negative_methods=("-dW",),
    )
    assert found["-dW"].variant.alphas == (-1.0,)


def test_flagged_candidates_do_not_count():
    """above most_flagged out, however large; a method without other keeps its least flagged"""
    lines = (
        ("dW", 0, 1.0, 1.0, 0), ("dW", 0, 2.0, 9.0, 0.5),
        ("dir@a", 0, 1.0, 9.0, 0.75), ("dir@b", 0, 1.0, 1.0, 0.25),
    )  # fmt: skip
    known = [variant("dW"), variant("dir@a"), variant("dir@b")]
    found = best_by_method(rows(*lines), known, most_flagged=0.1)
    assert found[DW].variant.alphas == (1.0,) and found[DW].role == "selected"
    assert found["dir"].variant.name == "dir@b" and found["dir"].role == "flagged"
    with pytest.raises(ValueError, match="every candidate of dW"):
        best_by_method(rows(("dW", 0, 2.0, 9.0, 0.5)), known[:1], most_flagged=0.1)


def test_what_items_can_read_does_not_hang_on_the_limit():
    """the check reads --check-limit clusters, all by default, while --limit of them are scored"""
    options = dict(model=str(ORGANISM), data=str(ORGANISM), dilemmas=1, resamples=100, limit=1)
    few = load_session(BenchmarkOptions(**options))
    assert {i.cluster for i in few.items if i.dataset == "claims"} == {few.items[0].cluster}
    asked = read_asked(BenchmarkOptions(**options), ORGANISM, 1)
    assert asked.items == few.items and len(asked.to_check) > len(asked.items)
    fewer = read_asked(BenchmarkOptions(**options, check_limit=1), ORGANISM, 1)
    assert fewer.to_check == fewer.items == few.items
    assert few.reads["claims"] == "behaviour"


def test_splits_share_no_claim_and_no_dilemma():
    """validation and test are disjoint by cluster, in the run; a shared one is named"""
    validation, test = load_splits(BenchmarkOptions(model=str(ORGANISM), data=str(ORGANISM)))
    assert validation.items and test.items
    items = load_items(ORGANISM, "test")
    with pytest.raises(ValueError, match="in the validation and in the test split, such as"):
        check_disjoint(items[:1], items)


def test_the_base_has_a_line_of_its_own():
    """effect, bias and discrimination of the base are 0, with its own mass and rows"""
    table = benchmark_table(
        rows(("dW", 0, 1.0, 1.0, 0), ("-dW", 0, -1.0, -1.0, 0)), {"variant": DW}
    )
    line = table.filter(variant="base").row(0, named=True)
    assert len(table) == 3 and (line["n"], line["mass"]) == (4, 1.0)
    assert all(line[c] == 0 for c in ("effect", "lo", "hi", "bias", "discrimination"))


def test_what_must_do_nothing_by_hand():
    """the largest |effect| of base and zero, per data set"""
    ends = {"base": 0.0, "zero": -0.01, "dW": 3.0}
    table = pl.DataFrame(
        [("claims", name, e) for name, e in ends.items()],
        ("dataset", "variant", "effect"),
        orient="row",
    )
    (said,) = sanity_summary(table)
    assert said == "claims: base and zero, which must do nothing: 0.0100 nats"


def test_controls_have_the_size_of_what_they_are_drawn_for(qwen):
    """|random dW| = |dW|, |r_l| = |v_l|, zero = 0; one seed a draw, family and alpha kept"""
    names = [n for n, p in qwen.named_parameters() if "q_proj" in n]
    dW = {n: torch.randn(qwen.get_parameter(n).shape) for n in names}
    of = Variant("dW", WeightDelta(dW), family="lora", seed=3, alphas=(2.0,))
    drawn = random_controls(of, 3)
    assert [(v.name, v.family, v.seed, v.alphas) for v in drawn] == [
        ("random", "lora", i, (2.0,)) for i in range(3)
    ]
    assert [v.intervention.size() for v in drawn] == pytest.approx([of.intervention.size()] * 3)
    zero = zero_control(of)
    assert zero.intervention.size() == 0 and zero.alphas == (1.0,) and zero.name == "zero"


def test_a_random_ablation_removes_one_direction_from_every_layer():
    """layers that share r share the random direction; a layer of its own has another one"""
    r = torch.tensor([1.0, 2.0, 3.0])
    drawn = DirectionalAblation({0: r, 1: r, 2: -r}).random_like(0)
    assert drawn.vectors[0].equal(drawn.vectors[1])
    assert not drawn.vectors[0].equal(drawn.vectors[2]) and not drawn.vectors[0].equal(r)


def test_large_random_directions_move_answers_and_small_ones_do_not():
    """E f(a r) - f(0) = O(a^2): the interval over draws excludes 0 at a, and holds it at a / 100

    f(a r) = f(0) + a g r + a^2 r^T H r / 2 + ...: over random directions r the second term is 0 in
    the mean, the third is not. At a hundredth, 1/10000 of that shift is left.
    """
    model, tok = load_model(ORGANISM)
    items = load_items(ORGANISM, "test", 10)[-60:]
    like = AddVectors({1: torch.full((d_model(model),), 0.5)})
    drawn = random_controls(Variant("random", like, alphas=(8.0, 0.08)), 12)
    table = effect_table(sweep(model, tok, items, drawn, (1.0,)))
    large, small = (table.filter(variant="random", alpha=a) for a in (8.0, 0.08))
    assert ((large["lo"] > 0) | (large["hi"] < 0)).any()
    assert ((small["lo"] <= 0) & (small["hi"] >= 0)).all() and (small["effect"].abs() < 0.01).all()


def test_rule_by_hand():
    """[diff_lo, diff_hi] above 0: dW does not beat it; below: it does; else undetermined"""
    ends = [(0.1, 0.2, "refuted"), (-0.2, -0.1, "supported"), (-0.1, 0.1, "undetermined")]
    for lo, hi, outcome in ends:
        line = dict(dataset="claims", variant="add@layer 3", method_name="add", family=None, k=None)
        line |= dict(role="selected", alpha=2.0, diff=0.0, diff_lo=lo, diff_hi=hi)
        (found,) = beaten(pl.DataFrame([line]), lambda method: method == "add")
        assert (found.claim, found.outcome) == ("dW beats add", outcome)
        assert not beaten(pl.DataFrame([line]), lambda method: method != "add")
    assert method_name("mean_diff@layer 3") == "mean_diff" and method_name("dW") == "dW"


def test_the_halves_of_dW():
    """tau_pos = 3, tau_neg = 1, dW = 3 - 1 = 2, times the alphas 1 2 4"""
    pos, neg, dW = ({"w": torch.tensor([[x]])} for x in (3.0, 1.0, 2.0))
    pairs = {("lora", 0): PairDelta("lora", pos, neg, dW)}
    changes = {
        v.name: [a * v.intervention.delta()["w"].item() for a in v.alphas or ()]
        for v in dW_candidates(BenchmarkOptions(), pairs)
    }
    wholes = {"dW": [2, 4, 8], "-dW": [-2, -4, -8]}
    assert changes == wholes | {"tau_pos": [3, 6, 12], "-tau_neg": [-1, -2, -4]}

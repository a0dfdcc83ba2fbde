"""Sentences of the benchmark: who competes with dW, and what the rule says."""

import polars as pl
import pytest

from wsrun.report.sentences import benchmark_answers, rivals
from wsrun.report.wording import (
    against_dW,
    dW_against,
    number_text,
    q_text,
    setting_text,
    with_interval,
)


def test_who_competes_with_dW():
    """not dW, not what is used with it, not methods of the other pole; one against an adapter is"""
    methods = {"dW": 2, "-dW": -2, "simple": 3, "simple_neg": -3, "-tau_neg": 1, "prompt+dW": 4}
    methods |= {"finetuned": -1, "finetuned+dW": 2, "dW_lora": 1, "neutral": 0, "failed": -0.1}
    table = pl.DataFrame(
        {"method_name": [*methods], "validation": [float(v) for v in methods.values()]}
    )
    table = table.with_columns(role=pl.lit("selected"))
    assert rivals(table)["method_name"].to_list() == ["simple", "-tau_neg", "failed"]


@pytest.mark.parametrize(
    ("lo", "hi", "words", "from_dW"),
    [
        (0.1, 0.2, "beats", "loses to"),
        (-0.2, -0.1, "loses to", "beats"),
        (-0.1, 0.2, "is not distinguishable from", "is not distinguishable from"),
        (0.0, 0.2, "is not distinguishable from", "is not distinguishable from"),
        (None, None, "has no interval against", "has no interval against"),
    ],
)
def test_the_rule_on_one_line(lo, hi, words, from_dW):
    """a method beats dW where [lo, hi] of the difference excludes 0"""
    line = {"diff_lo": lo, "diff_hi": hi}
    assert (against_dW(line), dW_against(line)) == (words, from_dW)


def test_numbers_in_words():
    """signs, two digits, dashes for what is not there"""
    line = {"x": 1.234, "lo": -0.5, "hi": None, "variant": "m@layer 3", "family": "lora", "k": 8}
    assert with_interval(line, "x", "lo", "lo") == "+1.23 [-0.50, -0.50]"
    assert (
        with_interval(line, "x", "hi", "hi") == "+1.23" and with_interval(line, "hi", "", "") == "-"
    )
    assert [q_text(q) for q in (None, 0.0001, 0.012, 1.0)] == ["-", "< 0.001", "0.012", "1"]
    assert [number_text(x) for x in (-0.001, None, 3)] == ["0.00", "-", "3"]
    assert setting_text(line | {"alpha": 2.0}) == "layer 3, k = 8, alpha 2"
    assert setting_text({"variant": "dW", "family": "lora", "alpha": 0.5}) == "lora, alpha 0.5"


def test_answers_name_every_kind():
    """a kind with lines gets yes, no or in part; labelled ones without are named together"""
    line = {"dataset": "claims", "family": None, "k": None, "alpha": 1.0, "role": "selected"}
    line |= {"validation": 1.0, "effect": 1.0, "lo": 0.5, "hi": 1.5, "diff": -1.0, "diff_q": 0.01}
    of_dW = {"variant": "dW", "method_name": "dW", "method": "weights", "family": "oft"}
    lines = [line | of_dW | {"diff_lo": 0.0, "diff_hi": 0.0}]
    for name, lo, hi in (("a", -2.0, -0.5), ("b", -2.0, 0.5)):
        own = {"variant": name, "method_name": name, "method": "ablation"}
        lines.append(line | own | {"diff_lo": lo, "diff_hi": hi})
    labels = {"prompt": "prompting", "activation": "activation steering"}
    own, ablation, rest = benchmark_answers(pl.DataFrame(lines), ("oft", 1.0), labels)
    assert own.startswith(
        "dW (oft, alpha 1) against the base, in nats: claims +1.00 [+0.50, +1.50]"
    )
    assert ablation.startswith("Does dW beat ablation? In part: on claims it beats 1 of 2 methods")
    assert "prompting, activation steering" in rest and rest.startswith("Not answered")

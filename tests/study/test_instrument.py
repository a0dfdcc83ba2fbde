"""The instrument check: what is readable is found so, and what is not is called by its name."""

import polars as pl
import pytest

from tests.conftest import ORGANISM
from wsrun.data.personas import load_personas
from wsrun.data.source import load_items
from wsrun.models.load import load_model
from wsrun.study.instrument import _crossed, _half, check, sentence, verdict_of

PERSONAS = load_personas(ORGANISM / "personas.json", "honest", "dishonest")


@pytest.fixture(scope="module")
def result():
    """The organism, twelve dilemmas and forty claims, one prompt of each pole."""
    model, tok = load_model(ORGANISM)
    return check(model, tok, load_items(ORGANISM, "test", 12), [p[:1] for p in PERSONAS])


def test_the_organism_is_readable_by_both_its_data_sets(result):
    """It knows its world and follows its personas: accuracy near 1, poles far apart."""
    assert result.table["dataset"].to_list() == ["claims", "dilemmas"]
    for r in result.table.iter_rows(named=True):
        assert r["reads"] == "behaviour" and result.readable(r["dataset"])
        assert r["mass"] > 0.9 and r["accuracy_lo"] > 0.8 and r["poles_lo"] > 1
    assert "claims: these items can read the behaviour" in result.sentences[0]


def test_a_random_model_is_not_readable(qwen, tok, items):
    """Its answers are no Yes and no No: mass near 0, so nothing can be read, whatever else."""
    found = check(qwen, tok, items, [p[:1] for p in PERSONAS])
    assert set(found.table["reads"]) == {"nothing"} and not found.readable("claims")
    assert all("cannot read" in said for said in found.sentences)


LINE = dict(
    mass=0.9, accuracy=0.5, accuracy_lo=0.4, accuracy_hi=0.6, poles=0.0, poles_lo=-1.0,
    poles_hi=1.0, bias=0.0, bias_lo=-1.0, bias_hi=1.0, hint=5.0, hint_lo=4.0, hint_hi=6.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reads"),
    [
        ({}, "nothing"),
        ({"accuracy_lo": 0.51}, "behaviour"),
        ({"accuracy_hi": 0.49}, "behaviour"),  # it holds the opposite, and the items show it
        ({"poles": 0.2, "poles_lo": 0.1}, "behaviour"),
        ({"poles": -0.2, "poles_hi": -0.1}, "behaviour"),
        ({"poles": 0.09, "poles_lo": 0.08}, "nothing"),  # sure, and too little
        ({"bias": 0.2, "bias_lo": 0.1}, "bias"),
        ({"bias": 0.09, "bias_lo": 0.08}, "nothing"),
        ({"accuracy_lo": 0.51, "mass": 0.4}, "nothing"),
        ({"accuracy_lo": 0.51, "mass": None}, "behaviour"),  # replies
        ({"accuracy_lo": 0.51, "mass": None, "hint_lo": -0.1}, "nothing"),
        ({"poles_lo": None, "poles_hi": None}, "nothing"),  # no personas
    ],
)
def test_the_rule(change, reads):
    """Works, tells the poles apart, moves only the margin: in this order."""
    assert verdict_of(LINE | change) == reads


def test_the_best_prompt_of_a_half_is_chosen_on_the_other():
    """A prompt that is best on one half by luck is measured on the half where it is not."""
    clusters = [str(i) for i in range(8)]
    base = pl.DataFrame(
        {"dataset": "d", "item": clusters, "cluster": clusters, "label": 1, "margin": 0.0}
    )
    half = _half(base)
    lucky = [  # each prompt gains 1 on one half only
        base.with_columns(margin=(half == side).cast(pl.Float64), variant=pl.lit("+"))
        for side in (0, 1)
    ]
    assert 0 < half.sum() < 8
    crossed = _crossed(base, lucky, "+")
    assert len(crossed) == 8 and crossed["margin"].sum() == 0
    assert _crossed(base, lucky, "-")["margin"].sum() == 8  # the worst elsewhere is the best here


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clusters": 49}, True),
        ({"clusters": 50}, False),
        ({"clusters": 49, "accuracy_lo": 0.51}, False),  # it can read
        ({"clusters": 49, "mass": 0.4}, False),  # more of them would not help
    ],
)
def test_few_items_that_cannot_tell_are_called_few(change, said):
    line = LINE | {"dataset": "claims"} | change
    found = sentence(line | {"reads": verdict_of(line)})
    assert (f"{change['clusters']} clusters are few" in found) is said

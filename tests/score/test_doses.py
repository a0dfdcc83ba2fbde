"""Equal doses: KL and norm by hand, and the alpha that gives them, on the organism."""

from math import inf, isclose, log, sqrt

import pytest
import torch

from tests.conftest import ORGANISM, bits, random_delta, same_bits
from wscore import norm, scale
from wsrun.adapters.extract import pair_deltas
from wsrun.data.replies import Reply, load_neutral
from wsrun.models.load import load_model
from wsrun.score.doses import Divergence, divergence, matched, read_match, solve
from wsrun.score.variants import Variant
from wsrun.steer.interventions import AddVectors, DirectionalAblation, SystemPrompt, WeightDelta

TEXTS = load_neutral(ORGANISM / "neutral.jsonl", "validation")[:6]


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


@pytest.fixture(scope="module")
def kl(organism):
    return Divergence(*organism, TEXTS)


@pytest.fixture(scope="module")
def dW(organism):
    return pair_deltas(organism[0], ORGANISM / "adapters" / "oft-s0").dW


def test_kl_by_hand():
    """KL((1/2, 1/2) || (3/4, 1/4)) = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3); 0 log 0 = 0"""
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
    q = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    assert divergence(p, q).tolist() == pytest.approx([log(4 / 3) / 2, log(2)], abs=1e-7)
    assert divergence(p, p).tolist() == [0, 0]


def test_kl_of_a_change_is_that_of_whole_logits(organism, kl, dW):
    """mean over reply positions of sum_v p0 (log p0 - log p1), each text alone and unpadded"""
    from wsrun.models.chat import render, user
    from wsrun.steer.weights import steered

    model, tok = organism
    per_text = []
    for t in TEXTS:
        start = len(render(tok, user(t.prompt)))
        ids = torch.tensor([render(tok, user(t.prompt), t.text)])
        p = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        with steered(model, dW, 0.7):
            q = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        per_text.append((p.exp() * (p - q)).sum(-1))
    assert kl(WeightDelta(dW), 0.7) == pytest.approx(float(torch.cat(per_text).mean()), rel=1e-4)


def test_kl_leaves_the_model_as_it_was(model, tok):
    """KL at no change is 0 bit for bit; weights come back; vectors and prompts change it too"""
    kl, before = Divergence(model, tok, TEXTS), bits(model)
    d = random_delta(model)
    assert kl(WeightDelta(scale(0.0, d)), 1.0) == 0
    vector = torch.ones(model.config.hidden_size)
    for change in (WeightDelta(d), AddVectors({1: vector}), SystemPrompt("Be brief.")):
        assert kl(change, 1.0) > 0
    assert same_bits(model, before)
    assert kl(WeightDelta(scale(1e30, d)), 1e30) == inf


@pytest.mark.parametrize("target", [1e-3, 0.7, 5e5])
def test_solve_meets_a_planted_power(target):
    """f(alpha) = c alpha^2 meets x at sqrt(x/c), within 1 % as f does within 2 %, however far"""
    alpha, found, met = solve(lambda a: 0.03 * a**2, target)
    assert met and abs(found / target - 1) <= 0.02
    assert isclose(alpha, sqrt(target / 0.03), rel_tol=0.0101)


@pytest.mark.parametrize(
    "f", [lambda a: 0.0, lambda a: 1 - 2.0**-a, lambda a: float(a > 3) * 9, lambda a: inf]
)
def test_solve_says_where_there_is_no_dose(f):
    """nothing at all, less than asked however much, a jump over it, too much however little"""
    assert solve(f, 2.0)[2] is False


def test_matched_kl(kl, dW):
    """|KL(alpha) - x| <= 2 % of x, the sign of alpha and all else of a variant kept"""
    asked = [
        Variant("dW", WeightDelta(dW), (2.0, 4.0), family="oft", seed=0),
        Variant("-dW", WeightDelta(dW), (-2.0,), family="oft", seed=0),
        Variant("add@2", AddVectors({2: torch.ones(160)})),
        Variant("say", SystemPrompt("You always lie.")),
    ]
    plus, minus, add, say = matched(read_match("kl:0.05"), kl, asked, (1.0,))
    for v in (plus, minus, add):
        (alpha,) = v.alphas
        assert v.dose.converged and abs(kl(v.intervention, alpha) / 0.05 - 1) <= 0.02
        assert v.dose.kl == kl(v.intervention, alpha)
    assert plus.alphas[0] > 0 > minus.alphas[0] and (plus.family, plus.seed) == ("oft", 0)
    assert plus.dose.norm == pytest.approx(plus.alphas[0] * norm(dW))
    assert say.alphas == (1.0,) and say.dose.converged is None and say.dose.kl > 0.05
    assert add.dose.norm is None and say.dose.norm is None


def test_ablation_has_a_dose_in_nats(kl):
    """h - alpha (h . r) r at every layer meets kl:0.02, without a line of its own in doses.py"""
    r = torch.randn(160, generator=torch.Generator().manual_seed(0))
    ablate = Variant("ablate", DirectionalAblation(dict.fromkeys(range(4), r)))
    (found,) = matched(read_match("kl:0.02"), kl, [ablate])
    assert found.dose.converged and abs(found.dose.kl / 0.02 - 1) <= 0.02
    assert found.dose.norm is None


def test_matched_norm_is_exact(kl, dW):
    """|alpha dW| = x for alpha = x/|dW|; of several draws their mean norm is x"""
    draws = [
        Variant("r", WeightDelta(scale(c, dW)), (-1.0,), seed=i) for i, c in enumerate((1.0, 3.0))
    ]
    one, *two = matched(read_match("norm:4"), kl, [Variant("dW", WeightDelta(dW)), *draws])
    assert norm(scale(one.alphas[0], dW)) == pytest.approx(4, rel=1e-6)
    assert all(v.alphas == two[0].alphas for v in two)
    assert two[0].alphas[0] == pytest.approx(-4 / (2 * norm(dW)))  # mean of 1 and 3 is 2
    assert one.dose.norm == pytest.approx(4) and one.dose.kl == kl(one.intervention, one.alphas[0])


def test_what_has_no_dose(kl, dW):
    """a zero delta meets no dose and stays; activations have no norm; bad matches are refused"""
    for how in ("kl:0.1", "norm:1"):
        (zero,) = matched(read_match(how), kl, [Variant("zero", WeightDelta(scale(0.0, dW)))])
        assert zero.dose == (0.0, 0.0, False) and zero.alphas == (1.0,)
    with pytest.raises(ValueError, match="has no .alpha dW."):
        matched(read_match("norm:1"), kl, [Variant("add", AddVectors({0: torch.ones(160)}))])
    for bad in ("kl", "kl:0", "kl:-1", "kl:nan", "l2:1", "norm:inf"):
        with pytest.raises(ValueError, match="must be kl:X"):
            read_match(bad)


def test_a_text_whose_tokens_depend_on_the_system_turn(organism):
    """texts without words are refused with their id"""
    with pytest.raises(ValueError, match="'empty' has no tokens"):
        Divergence(*organism, [Reply("empty", "c", "Who?", "")])


def test_neutral_texts_are_checked(tmp_path):
    """no file, no field, no row of the split, two rows of one id: one sentence each"""
    row = '{"item": "a", "cluster": "a", "prompt": "p", "text": "t", "split": "test"}\n'
    cases = {
        "is not JSON": "{",
        "no rows of split 'validation'": row,
        "'cluster' is missing": '{"item": "a", "split": "validation"}\n',
        "got an empty text": row.replace('"t"', '""').replace("test", "validation"),
        "more than once": 2 * row.replace("test", "validation"),
    }
    for sentence, text in cases.items():
        (tmp_path / "neutral.jsonl").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            load_neutral(tmp_path / "neutral.jsonl", "validation")


def test_a_matched_variant_can_be_matched_again(dW):
    """the sign of its own alpha is kept"""
    first = Variant("-dW", WeightDelta(dW), (-3.0,))
    (once,) = matched(read_match("norm:1"), lambda i, a: 0.0, [first])
    (twice,) = matched(read_match("norm:2"), lambda i, a: 0.0, [once])
    assert twice.dose.converged and twice.alphas[0] == 2 * once.alphas[0] < 0

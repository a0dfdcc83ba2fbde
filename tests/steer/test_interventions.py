"""Laws of interventions: one table of methods, every law over it. A new method adds one row."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import ORGANISM, bits, random_delta, same_bits
from wscore import Factored, norm
from wsrun.data.items import with_system
from wsrun.data.source import load_items
from wsrun.models.chat import render
from wsrun.models.load import load_tokenizer
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3
from wsrun.score.cached import CachedEngine
from wsrun.score.plain import PlainEngine
from wsrun.steer.held import Held
from wsrun.steer.interventions import (
    METHODS,
    AddVectors,
    Combined,
    ConstructedDelta,
    DirectionalAblation,
    Intervention,
    SystemPrompt,
    WeightDelta,
    applied,
)
from wsrun.steer.saved import load_intervention

D = 64
TOK = load_tokenizer(ORGANISM)
ITEMS = load_items(ORGANISM, "test")[:4]


def vector(seed: int) -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


def factored(model: Any, seed: int) -> Factored:
    """A rank-2 change of two weights."""
    random, out = torch.Generator().manual_seed(seed), {}
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
        d_out, d_in = model.get_parameter(name).shape
        L, R = (torch.randn(s, generator=random) / 20 for s in ((d_out, 2), (2, d_in)))
        out[name] = (L, R)
    return Factored(out)


@dataclass(frozen=True)
class Method:
    """make(model, seed): an intervention whose content the seed decides."""

    make: Callable[[Any, int], Intervention]
    random: bool = True  # whether it has a random control


TABLE = {
    "weights": Method(lambda model, seed: WeightDelta(random_delta(model, seed))),
    "weights, factored": Method(lambda model, seed: WeightDelta(factored(model, seed))),
    "weights, when asked": Method(
        lambda model, seed: WeightDelta(partial(random_delta, model, seed))
    ),
    "synthetic": Method(lambda model, seed: ConstructedDelta(factored(model, seed))),
    "activation": Method(lambda model, seed: AddVectors({1: vector(seed), -1: vector(seed + 9)})),
    "ablation": Method(
        lambda model, seed: DirectionalAblation(dict.fromkeys(range(4), vector(seed)))
    ),
    "prompt": Method(lambda model, seed: SystemPrompt(f"Always lie, {seed}."), random=False),
    "combined": Method(
        lambda model, seed: (
            WeightDelta(random_delta(model, seed))
            & WeightDelta(factored(model, seed))
            & AddVectors({1: vector(seed)})
            & SystemPrompt("You lie.")
        )
    ),
}  # fmt: skip


@pytest.fixture(params=[tiny_qwen3, tiny_gemma3], ids=["qwen3", "gemma3"])
def model(request):
    return request.param(vocab_size=len(TOK))


@pytest.fixture(params=TABLE)
def method(request) -> Method:
    return TABLE[request.param]


def sequences(intervention: Intervention) -> list[list[int]]:
    """The items as the intervention asks them."""
    system = intervention.system()
    asked = [i if system is None else with_system(i, system) for i in ITEMS]
    return [render(TOK, i.turns, i.prefill) for i in asked]


def logits(model: Any, intervention: Intervention, alpha: float = 1.0) -> Tensor:
    """By the plain engine."""
    return PlainEngine(model, sequences(intervention)).run(intervention, alpha)


def identity(intervention: Intervention) -> tuple:
    """All that decides what it does."""
    return intervention.fingerprint(), intervention.system()


def test_every_method_is_in_the_table(model):
    """METHODS = methods of the table, each under the name that its class gives"""
    made = [row.make(model, 0) for row in TABLE.values()]
    assert {type(i) for i in made} == {*METHODS.values(), Combined}
    assert all(cls.method == name for name, cls in METHODS.items())


@pytest.mark.parametrize("engine", [PlainEngine, CachedEngine])
def test_alpha_zero_is_the_base(model, method, engine):
    """logits at alpha = 0 are those of the model itself, bit by bit"""
    intervention = method.make(model, 0)
    runs = engine(model, sequences(intervention))
    assert torch.equal(runs.run(intervention, 0.0), runs.run())


def test_the_model_comes_back(model, method):
    """weights bit by bit, and no hooks, also after an exception"""
    before, intervention = bits(model), method.make(model, 0)
    base = logits(model, SystemPrompt("x"))
    with pytest.raises(KeyboardInterrupt), applied(model, intervention, 1.0):
        raise KeyboardInterrupt
    assert same_bits(model, before)
    assert torch.equal(logits(model, SystemPrompt("x")), base)


def test_fingerprint_is_that_of_the_content(model, method):
    """the same content, made again or held: the same; other content: another"""
    first, again, other = (method.make(model, seed) for seed in (0, 0, 1))
    assert identity(first) == identity(again) == identity(Held(first))
    assert identity(first) != identity(other)
    touched = {*first.delta(), *(f"output of layer {n}" for n in first.edits())}
    assert set(first.fingerprint()) == touched


def test_save_and_load(model, method, tmp_path):
    """load(save(x)) = x bit by bit, with its header"""
    first = method.make(model, 0)
    path = first.save(tmp_path / "x.safetensors", {"base": "abc"})
    again, header = load_intervention(path)
    assert type(again) is type(first) and again.method == first.method
    assert identity(again) == identity(first) and header == {"base": "abc"}
    assert torch.equal(logits(model, again, 0.7), logits(model, first, 0.7))
    with pytest.raises(ValueError, match="the format's own"):
        first.save(path, first.texts())


def test_combined_is_both(model, method):
    """(a & b) at alpha = b at alpha inside a at alpha, with both system turns"""
    a, b = method.make(model, 0), AddVectors({2: vector(5)}) & SystemPrompt("Be brief.")
    both = a & b
    assert both.method == a.method and both.has_dose
    assert both.system() == "\n\n".join(s for s in (a.system(), "Be brief.") if s)
    engine = PlainEngine(model, sequences(both))
    with applied(model, a, 0.5), applied(model, b, 0.5):
        nested = engine.run()
    torch.testing.assert_close(engine.run(both, 0.5), nested, rtol=0, atol=1e-5)


def test_a_random_control_has_the_same_size(model, method):
    """|dW| and where it acts are kept; the seed decides the draw; what has no dose has none"""
    first = method.make(model, 0)
    if not method.random:
        with pytest.raises(ValueError, match="no random control"):
            first.random_like(0)
        return
    one, same, two = (first.random_like(seed) for seed in (1, 1, 2))
    assert type(one) is type(first) and one.system() == first.system()
    assert set(one.fingerprint()) == set(first.fingerprint())
    assert identity(one) == identity(same) != identity(two) != identity(first)
    assert one.size() == (None if first.size() is None else pytest.approx(first.size(), rel=1e-5))


def test_both_engines_give_the_same(model, method):
    """plain = cached within 1e-5, and both are the model's own forward inside `applied`"""
    intervention = method.make(model, 0)
    plain, cached = (e(model, sequences(intervention)) for e in (PlainEngine, CachedEngine))
    for alpha in (1.0, -0.5):
        found = plain.run(intervention, alpha)
        assert (cached.run(intervention, alpha) - found).abs().max() < 1e-5
        with applied(model, intervention, alpha):
            ids = torch.tensor(sequences(intervention)[:1])
            own = model(input_ids=ids).logits[0, -1]
        assert (own - found[0]).abs().max() < 1e-5


@pytest.mark.parametrize("row", [name for name in TABLE if TABLE[name].random])
def test_what_has_a_dose_does_something(model, row):
    """alpha moves the logits of whatever has a dose"""
    intervention = TABLE[row].make(model, 0)
    assert intervention.has_dose
    small, large = (logits(model, intervention, alpha) for alpha in (0.5, 1.0))
    assert not torch.equal(small, large)


def test_size_is_that_of_weights_alone(model):
    """|dW| of the sum of the parts; None where activations change, and for a prompt"""
    d, say = factored(model, 0), SystemPrompt("Lie.")
    assert (WeightDelta(d) & WeightDelta(d) & say).size() == pytest.approx(2 * norm(d))
    for other in (say, AddVectors({0: vector(0)}), WeightDelta(d) & AddVectors({0: vector(0)})):
        assert other.size() is None
    assert not (say & SystemPrompt("Now.")).has_dose and (say & WeightDelta(d)).has_dose


def test_a_change_is_made_when_asked_and_not_kept(model):
    """a callable runs at each use; Held runs it once"""
    calls = []

    def make():
        calls.append(1)
        return factored(model, 0)

    intervention = WeightDelta(make)
    assert not calls
    logits(model, intervention), logits(model, intervention)
    assert len(calls) >= 2
    held, calls[:] = Held(intervention), []
    logits(model, held), logits(model, held), held.fingerprint(), held.size()
    assert len(calls) == 1


def test_ablation_leaves_nothing_along_its_direction(model):
    """h' . r = 0 at alpha = 1, twice as once; at alpha = 2 a reflection; a random r is shared"""
    (edit, *_), r = DirectionalAblation({0: 3 * vector(0)}).edits().values(), vector(0)
    h = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    once = edit(h, 1.0)
    torch.testing.assert_close(once @ r, torch.zeros(2, 5), rtol=0, atol=1e-4)
    torch.testing.assert_close(edit(once, 1.0), once, rtol=0, atol=1e-5)
    torch.testing.assert_close(edit(h, 2.0).norm(dim=-1), h.norm(dim=-1))
    drawn = DirectionalAblation(dict.fromkeys(range(3), r)).random_like(0).vectors
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], r)
    # v = (3, 4), r = (0.6, 0.8): (5, 0) . r = 3, and (5, 0) - 3 r = (3.2, -2.4)
    (by_hand,) = DirectionalAblation({0: torch.tensor([3.0, 4.0])}).edits().values()
    found = by_hand(torch.tensor([[[5.0, 0.0]]]), 1.0)
    torch.testing.assert_close(found, torch.tensor([[[3.2, -2.4]]]))


def test_edits_of_one_layer_follow_each_other(model):
    """h + alpha v, then + alpha w: the sum, in one layer named twice"""
    both = AddVectors({1: vector(0)}) & AddVectors({1: vector(1)})
    summed = AddVectors({1: vector(0) + vector(1)})
    torch.testing.assert_close(logits(model, both), logits(model, summed), rtol=0, atol=1e-5)


def test_refusals(model, tmp_path):
    """layers and weights the model does not have, files that hold something else"""
    with pytest.raises(ValueError, match="layers"), applied(model, AddVectors({9: vector(0)}), 1.0):
        pass
    twice = AddVectors({-1: vector(0), 3: vector(1)})
    with pytest.raises(ValueError, match="twice"), applied(model, twice, 1.0):
        pass
    wrong = WeightDelta({"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="not parameters"), applied(model, wrong, 1.0):
        pass
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="x.safetensors"):
        load_intervention(path)
    from wscore import save_delta

    save_delta(factored(model, 0), path, {})
    with pytest.raises(ValueError, match="holds no intervention"):
        load_intervention(path)
    with nullcontext():
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.safetensors"):
        load_intervention(path)

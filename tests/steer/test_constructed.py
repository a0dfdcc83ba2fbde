"""Constructed changes: their equation, and their bases."""

import pytest
import torch

from tests.conftest import ORGANISM
from wscore import (
    Where,
    add,
    difference,
    drop,
    keep,
    norm,
    overlap,
    site,
    weight_basis,
    writes_residual,
)
from wsrun.data.items import PREFILL
from wsrun.data.personas import load_personas
from wsrun.models.chat import render, user
from wsrun.models.tiny import tiny_gemma3
from wsrun.steer import structure
from wsrun.steer.constructed import rank_one, rotated, sized
from wsrun.steer.contrast import answer_means, persona_contrast
from wsrun.steer.weights import steered

PROMPTS = ["What colour is the coat of Anna?", "Which coat does Anna wear?", "Where is Bert?"]
HONEST, DISHONEST = load_personas(ORGANISM / "personas.json", "honest", "dishonest")


@pytest.fixture
def written(model):
    return structure.weights(model, writes_residual)


@pytest.fixture
def contrast(model, tok, written):
    return persona_contrast(model, tok, PROMPTS, HONEST[:2], DISHONEST[:3], written, PREFILL)


def test_answer_states_are_the_models_own(model, tok):
    """mean output of layer l = mean of hidden_states[l + 1] at the last token; its input, of [l]"""
    talks = [user(p, persona) for p in PROMPTS for persona in (HONEST[0], HONEST[4], None)]
    layers = [f"model.layers.{i}" for i in range(3)]
    found = answer_means(model, tok, talks, layers, PREFILL, size=2)
    own = []
    for talk in talks:
        ids = torch.tensor([render(tok, talk, PREFILL)])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        own.append(torch.stack(states)[:, 0, -1].double())
    own = torch.stack(own).mean(0)
    for i, name in enumerate(layers):
        torch.testing.assert_close(found[name].input, own[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[name].output, own[i + 1], rtol=1e-5, atol=1e-5)


def test_a_weights_contrast_is_that_of_its_input(model, tok, contrast, written):
    """c = W (E[input | pos] - E[input | neg]), as the maps have no bias"""
    modules = [name.removesuffix(".weight") for name in written]
    sides = [
        answer_means(model, tok, [user(p, s) for p in PROMPTS for s in side], modules, PREFILL)
        for side in (HONEST[:2], DISHONEST[:3])
    ]
    assert len(written) == 8
    for name, W in written.items():
        apart = sides[0][name[:-7]].input - sides[1][name[:-7]].input
        torch.testing.assert_close(contrast.out[name], W.double() @ apart, rtol=1e-3, atol=1e-5)


def test_the_change_adds_the_contrast(model, contrast, written):
    """(W + dW') x = W x + c on the mean input x, through the model's own module"""
    model.double()
    d = rank_one(contrast)
    before = {n: model.get_submodule(n[:-7])(contrast.x[n]) for n in written}
    with steered(model, d, 1.0):
        for name, c in contrast.out.items():
            after = model.get_submodule(name[:-7])(contrast.x[name])
            assert (after - before[name] - c).norm() < 1e-6 * c.norm() and c.norm() > 0


def test_parts_of_a_contrast_add_up(contrast, written):
    """keep(dW', U) + drop(dW', U) = dW', and |keep|^2 + |drop|^2 = |dW'|^2"""
    d = rank_one(contrast)
    basis = weight_basis(written, 8)
    top, rest = keep(d, basis), drop(d, basis)
    assert norm(difference(add(top, rest), d)) < 1e-6 * norm(d)
    assert norm(top) ** 2 + norm(rest) ** 2 == pytest.approx(norm(d) ** 2, rel=1e-5)
    assert 0.1 < norm(top) / norm(d) < 0.99


def test_a_rotated_contrast_has_the_same_sizes_and_angles(contrast):
    """<Q a, Q b> = <a, b>, another direction, the same inputs; another seed, another direction"""
    names, other = [*contrast.out], rotated(contrast, 0)
    A, B, C = (
        torch.stack([c.out[n] for n in names]) for c in (contrast, other, rotated(contrast, 1))
    )
    torch.testing.assert_close(A @ A.T, B @ B.T, rtol=1e-9, atol=1e-12)
    for X in (A, C):
        assert (torch.cosine_similarity(X, B).abs() < 0.6).all()
    assert norm(rank_one(other)) == pytest.approx(norm(rank_one(contrast)), rel=1e-6)


def test_a_coefficient_is_a_share_of_the_weights(contrast, written):
    """|dW'| = |W| over all tensors, with the contrast's own profile, or tensor by tensor"""
    d = rank_one(contrast)
    whole, even = sized(d, written, "all"), sized(d, written, "tensor")
    assert norm(whole) == pytest.approx(norm(written), rel=1e-5)
    ratios = {round(float(whole[n].norm() / d[n].norm()), 3) for n in d}
    assert max(ratios) / min(ratios) < 1.01
    for n, W in written.items():
        assert float(even[n].norm()) == pytest.approx(float(W.norm()), rel=1e-5)


def test_equal_personas_are_refused(qwen, tok):
    """c = 0 is no contrast"""
    weights = structure.weights(qwen, writes_residual)
    with pytest.raises(ValueError, match="change nothing in the model's outputs"):
        persona_contrast(qwen, tok, PROMPTS, HONEST[:2], HONEST[:2], weights)
    with pytest.raises(ValueError, match="0 prompts, 2 positive"):
        persona_contrast(qwen, tok, [], HONEST[:2], HONEST[:1], weights)


def test_readout_directions_by_hand(tok):
    """W_U = 1 m^T + a u^T + b v^T, through gains g: the basis is span(g u, g v), without m"""
    model = tiny_gemma3(vocab_size=len(tok), tie_word_embeddings=False)
    draw = torch.Generator().manual_seed(0)
    a, b, u, v, m, g = (
        torch.randn(n, generator=draw) for n in (len(tok), len(tok), 64, 64, 64, 64)
    )
    model.lm_head.weight.copy_(50 * m + torch.outer(a, u) + 3 * torch.outer(b, v))
    model.model.norm.weight.copy_(g - 1)  # Gemma's gain is 1 + weight
    found = structure.readout_basis(model, ["x"], 2)
    wanted, _ = torch.linalg.qr(torch.stack([g * u, g * v], 1).double())
    assert overlap(found, {"x": wanted})["x"] == pytest.approx(1, abs=1e-6)


def test_write_not_read_by_hand(model, written):
    """later maps read coordinates 0-15 and write 8-39: directions are within 16-39"""
    for name, W in structure.weights(model, Where(lambda at: True)).items():
        if writes_residual(site(name)):
            W[40:], W[:8] = 0, 0
        else:
            W[:, 16:] = 0
    found = structure.unread_subspace(model, written, 16)
    last = "model.layers.3.mlp.down_proj.weight"
    assert set(found) == set(written) - {last}  # nothing comes after it
    for name, U in found.items():
        assert 8 <= U.shape[1] <= 16, name
        torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1]).double())
        assert U[:16].abs().max() < 1e-6 and U[40:].abs().max() < 1e-6
    with pytest.raises(ValueError, match="no layer comes after"):
        structure.unread_subspace(model, [last], 16)
    with pytest.raises(ValueError, match="d_model = 64"):
        structure.unread_subspace(model, written, 64)


def test_what_counts_as_later(qwen):
    """o_proj is followed by its own layer's MLP, down_proj by the next layer only"""
    down, out = (f"model.layers.1.{x}.weight" for x in ("mlp.down_proj", "self_attn.o_proj"))
    before = structure.unread_subspace(qwen, [down, out], 8)
    qwen.get_parameter("model.layers.1.mlp.up_proj.weight")[:, :30] = 0
    after = structure.unread_subspace(qwen, [down, out], 8)
    assert torch.equal(before[down], after[down]) and not torch.equal(before[out], after[out])

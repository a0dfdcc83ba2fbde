"""Directions: the mean difference of answers, its centred rival, and random ones of its size."""

import numpy as np
import pytest
import torch

from tests.conftest import same_bits
from wsrun.data.pairs import Pair
from wsrun.models.chat import render, user
from wsrun.steer import directions
from wsrun.steer.directions import (
    Answered,
    mean_difference,
    pair_differences,
    principal,
    response_states,
)
from wsrun.steer.interventions import AddVectors

PAIRS = [
    Pair("Is it so?", "It is so.", "It is not.", "a"),
    Pair("And what of the coat of Anna?", "Yes.", "No, it is not so at all.", "b"),
    Pair("Why?", "The coat is red.", "The coat is blue, as they say.", "c"),
]


def silenced(model):
    """The model with layers that add nothing: h_l is the embedding in every layer."""
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def test_states_are_means_over_the_response_only(model, tok):
    """layers that add nothing: h_l(prompt + response) = mean of E[t] over the response's tokens"""
    silenced(model)
    text = "The coat of Anna is red."
    (states,) = response_states(model, tok, [Answered("Why?", text)])
    ids = torch.tensor(tok(text, add_special_tokens=False)["input_ids"])
    expected = model.get_input_embeddings()(ids).mean(0)  # Gemma's are scaled by sqrt(d)
    for layer in states:
        torch.testing.assert_close(layer, expected, rtol=0, atol=1e-5)


def test_planted_direction_is_recovered(qwen, tok):
    """E[Yes] = E[No] + v, answers that differ in that one token of n: v_l = v / n in all layers"""
    silenced(qwen)
    yes, no = (tok(f"**{w}", add_special_tokens=False)["input_ids"] for w in ("Yes", "No"))
    assert yes[:-1] == no[:-1]
    v = torch.linspace(-1, 1, qwen.config.hidden_size)
    with torch.no_grad():
        E = qwen.get_input_embeddings().weight
        E[yes[-1]] = E[no[-1]] + v
    pairs = [Pair(p, "**Yes", "**No", p) for p in ("Is it?", "Why is it so?", "And now?")]
    found = mean_difference(pair_differences(qwen, tok, pairs))
    assert set(found) == {0, 1, 2, 3}
    for layer in found.values():
        torch.testing.assert_close(layer, v / len(yes), rtol=0, atol=1e-6)


def test_batched_is_one_at_a_time(model, tok):
    """d_il of a padded batch = d_il of each pair alone, and of the plain forward pass"""
    together = pair_differences(model, tok, PAIRS, batch_size=6)
    alone = torch.cat([pair_differences(model, tok, [p], batch_size=1) for p in PAIRS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    means = []
    for response in (PAIRS[1].response_pos, PAIRS[1].response_neg):
        head = render(tok, user(PAIRS[1].prompt))
        ids = [*head, *tok(response, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        # hidden_states[l + 1] is what layer l gives, but for the last, which is normed there
        means.append(torch.stack([h[0, len(head) :].mean(0) for h in out.hidden_states[1:-1]]))
    torch.testing.assert_close(together[1, :-1], means[0] - means[1], rtol=0, atol=1e-5)


def test_the_last_token_of_the_response(model, tok):
    """at="last": h_l of the token before the end of turn, as of a plain forward up to there"""
    last = pair_differences(model, tok, PAIRS, at="last", batch_size=6)
    for pair, found in zip(PAIRS, last, strict=True):
        states = []
        for response in (pair.response_pos, pair.response_neg):
            ids = [*render(tok, user(pair.prompt))]
            ids += tok(response, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            states.append(torch.stack([h[0, -1] for h in out.hidden_states[1:-1]]))
        torch.testing.assert_close(found[:-1], states[0] - states[1], rtol=0, atol=1e-5)
    assert not torch.allclose(last, pair_differences(model, tok, PAIRS))


def test_the_last_token_by_hand(qwen, tok):
    """layers that add nothing: d_il = E[last token of pos] - E[last token of neg], in all layers"""
    silenced(qwen)
    E = qwen.get_input_embeddings().weight
    for pair, found in zip(PAIRS, pair_differences(qwen, tok, PAIRS, at="last"), strict=True):
        pos, neg = (
            tok(text, add_special_tokens=False)["input_ids"][-1]
            for text in (pair.response_pos, pair.response_neg)
        )
        torch.testing.assert_close(found, (E[pos] - E[neg]).expand_as(found), rtol=0, atol=1e-6)


def test_mean_difference_keeps_what_centring_removes():
    """d_i = m + c_i u with sum c_i = 0: the mean is m, the centred principal direction is u"""
    m, u = torch.tensor([0.0, 3.0, 4.0]), torch.tensor([1.0, 0.0, 0.0])
    d = torch.stack([m + c * u for c in (-3.0, 1.0, 2.0)])[:, None]
    torch.testing.assert_close(mean_difference(d)[0], m)
    v = principal(d)[0]
    # |m| = 5; two of three pairs project positively: 1 + 2 against -3
    torch.testing.assert_close(v, 5 * u)


def test_principal_is_the_leading_eigenvector_of_the_covariance():
    """u_l maximises the variance of u . d_il: numpy's eigh of cov; most pairs project above 0"""
    d = torch.randn(9, 4, 7, generator=torch.Generator().manual_seed(0)) + 0.3
    for layer, v in principal(d).items():
        x = d[:, layer].double().numpy()
        u = np.linalg.eigh(np.cov(x.T))[1][:, -1]
        assert abs(abs(u @ (v / v.norm()).double().numpy()) - 1) < 1e-6
        assert v.norm() == pytest.approx(np.linalg.norm(x.mean(0)), rel=1e-5)
        assert (x @ v.numpy() > 0).sum() >= 5
        torch.testing.assert_close(principal(-d)[layer], -v)


def test_random_directions_share_the_norm_and_nothing_else():
    """|r_l| = |v_l|; same seed, same bits, whatever other layers there are; cos^2 about 1/d"""
    like = {n: torch.randn(160, generator=torch.Generator().manual_seed(n)) for n in (1, 4)}
    a, b = (AddVectors(v).random_like(0).vectors for v in (like, {4: like[4]}))
    assert torch.equal(a[4], b[4]) and not torch.equal(
        a[4], AddVectors(like).random_like(1).vectors[4]
    )
    for layer, v in like.items():
        assert a[layer].norm() == pytest.approx(v.norm().item(), rel=1e-5)
        assert abs(torch.cosine_similarity(a[layer], v, dim=0)) < 5 / 160**0.5


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_gone_after_an_exception(qwen, tok, monkeypatch, error):
    """an exception or Ctrl-C inside a layer leaves the model as it was, without hooks"""
    before = {n: p.clone() for n, p in qwen.named_parameters()}

    def fails(*args):
        def hook(hidden):
            raise error

        return hook

    monkeypatch.setattr(directions, "_into", fails)
    with pytest.raises(error):
        response_states(qwen, tok, [Answered("Why?", "So.")])
    assert not any(layer._forward_hooks for layer in qwen.model.layers)
    assert same_bits(qwen, before)


def test_refusals(qwen, tok):
    """no answers, an empty response, pairs that are all alike, states that overflow"""
    with pytest.raises(ValueError, match="one pair or more"):
        response_states(qwen, tok, [])
    with pytest.raises(ValueError, match="response to 'Why\\?' has no tokens"):
        response_states(qwen, tok, [Answered("Why?", "")])
    with pytest.raises(ValueError, match="1 pairs have one and the same difference in layer 0"):
        principal(torch.ones(1, 2, 3))
    with torch.no_grad():
        qwen.model.layers[0].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        response_states(qwen, tok, [Answered("Why?", "So.")])

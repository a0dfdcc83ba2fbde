"""Steering: W' = cast(W0 + alpha dW) inside the block, the same bits after it."""

import pytest
import torch

from tests.conftest import bits, random_delta, same_bits
from wscore import Factored
from wsrun.models.tiny import tiny_qwen3
from wsrun.steer.weights import rounding_error, steered


def logits(model):
    ids = torch.arange(2 * 9).reshape(2, 9)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(model, dtype):
    """W after the block = W before it"""
    model.to(dtype)
    before = bits(model)
    with steered(model, random_delta(model), 0.7):
        assert not same_bits(model, before)
    assert same_bits(model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_after_an_exception(model, error):
    """W after an exception or Ctrl-C inside = W before"""
    before = bits(model)
    with pytest.raises(error), steered(model, random_delta(model), 1.0):
        raise error
    assert same_bits(model, before)


def test_weights_come_back_when_a_delta_fails_half_way(qwen):
    """an entry that cannot be read stops the block before it starts, with nothing changed"""
    before, d = bits(qwen), random_delta(qwen)

    class Failing(dict):
        def __getitem__(self, name):
            if not same_bits(qwen, before):  # past the checks, in the middle of the change
                raise OSError("gone")
            return super().__getitem__(name)

    with pytest.raises(OSError), steered(qwen, Failing(d), 1.0):
        pass
    assert same_bits(qwen, before)
    with steered(qwen, d, 1.0):
        assert not same_bits(qwen, before)
    assert same_bits(qwen, before)


def test_alpha_zero_is_the_base(model):
    """logits(0 * dW) == logits(base), and the bits never move"""
    before, base = bits(model), logits(model)
    with steered(model, random_delta(model), 0.0):
        assert same_bits(model, before)
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nested_blocks_add_and_cast_once(qwen, dtype):
    """inside two blocks W = cast(W0 + a1 d1 + a2 d2); leaving each restores the weights before"""
    qwen.to(dtype)
    d1, d2, before = random_delta(qwen, 1), random_delta(qwen, 2), bits(qwen)
    params = dict(qwen.named_parameters())
    with steered(qwen, d1, 0.5):
        outer = bits(qwen)
        with steered(qwen, d2, -2.0):
            for n in d1:
                asked = (before[n].float() + 0.5 * d1[n] - 2.0 * d2[n]).to(dtype)
                torch.testing.assert_close(params[n].detach(), asked, rtol=0, atol=1e-7)
        assert same_bits(qwen, outer)
    assert same_bits(qwen, before)


def test_opposite_blocks_cancel_in_half_precision(qwen):
    """d then -d, nested: the bf16 weights are the originals, both are summed before the cast"""
    qwen.to(torch.bfloat16)
    d, before = random_delta(qwen, size=1e-3), bits(qwen)
    with steered(qwen, d, 1.0), steered(qwen, d, -1.0):
        assert same_bits(qwen, before)


def test_steering_is_the_sum_of_weights(qwen):
    """logits(steered by alpha dW) == logits of a model whose weights are W0 + alpha dW"""
    d, other = random_delta(qwen), tiny_qwen3(vocab_size=qwen.config.vocab_size)
    with torch.no_grad():
        for n, p in other.named_parameters():
            if n in d:
                p.add_(d[n], alpha=-1.5)
    with steered(qwen, d, -1.5):
        torch.testing.assert_close(logits(qwen), logits(other), rtol=0, atol=1e-5)


def test_rounding_is_exact_in_fp32_and_not_in_bf16(qwen):
    """norm_ratio = |W' - W0| / |alpha dW| and cosine: 1 in fp32; in bf16 a small dW is lost"""
    d = random_delta(qwen, size=0.01)
    fine = rounding_error(qwen, d, 0.25)
    assert abs(fine.norm_ratio - 1) < 1e-4 and fine.cosine > 0.9999
    crude = rounding_error(qwen.to(torch.bfloat16), d, 0.25)
    assert crude.cosine < 0.99 < rounding_error(qwen, d, 25.0).cosine


def test_rounding_known_answer():
    """W0 = 1, dW = 2^-9 in bf16: half the spacing, rounds to even, so nothing moves: ratio 0"""
    layer = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    assert rounding_error(layer, {"weight": torch.tensor([[2.0**-9]])}, 1.0) == (0.0, 0.0)
    assert rounding_error(layer, {"weight": torch.tensor([[2.0**-7]])}, 1.0) == (1.0, 1.0)


def test_refusals(qwen):
    """what does not fit the model is named, and nothing changes"""
    name = next(iter(random_delta(qwen)))
    before = bits(qwen)
    cases = [
        ({}, "empty"),
        ({"model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, "not parameters of the model"),
        ({name: torch.zeros(2, 2)}, "belongs to another model"),
        (
            {
                "lm_head.weight": torch.zeros_like(qwen.lm_head.weight),
                "model.embed_tokens.weight": torch.zeros_like(qwen.lm_head.weight),
            },
            "tied",
        ),
    ]
    for d, match in cases:
        with pytest.raises(ValueError, match=match), steered(qwen, d, 1.0):
            pass
    with pytest.raises(ValueError, match="zero"):
        rounding_error(qwen, {name: torch.zeros_like(dict(qwen.named_parameters())[name])}, 1.0)
    assert same_bits(qwen, before)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf")])
def test_an_alpha_that_is_not_finite_is_refused(qwen, alpha):
    """alpha is a finite number, for a delta that is held as for one that is factored"""
    name, weight = next((n, p) for n, p in qwen.named_parameters() if p.ndim == 2)
    L, R = torch.ones(len(weight), 1), torch.ones(1, weight.shape[1])
    before = bits(qwen)
    for d in ({name: L @ R}, Factored({name: (L, R)})):
        with pytest.raises(ValueError, match="steered: alpha is .*inf|alpha is nan; use a finite"):
            with steered(qwen, d, alpha):
                pass
        with pytest.raises(ValueError, match="rounding_error: alpha is"):
            rounding_error(qwen, d, alpha)
    assert same_bits(qwen, before)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.half]
)
def test_what_is_no_float_is_refused(qwen, dtype):
    """W0 + alpha dW of indices, masks, complex or half-precision numbers names entry and dtype"""
    name, weight = next((n, p) for n, p in qwen.named_parameters() if p.ndim == 2)
    before = bits(qwen)
    with pytest.raises(ValueError, match=f"{name}' is {dtype}"):
        with steered(qwen, {name: torch.ones(weight.shape, dtype=dtype)}, 1.0):
            pass
    assert same_bits(qwen, before)

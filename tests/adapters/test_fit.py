"""Fitting: the loss and gradient of a batch are those of the model's own labels= loss."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from wsrun.adapters.configs import FAMILIES, RECIPES, target_modules
from wsrun.adapters.fit import GROUP, backward, group_tokens, groups, mean_loss, n_shared, shares
from wsrun.models.generate import right_padded
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3

LENGTHS = [(9, 4), (5, 3), (14, 13), (5, 1), (7, 6), (3, 2)]  # tokens, where the response starts


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    return [(torch.randint(1, 500, (n,), generator=draw).tolist(), s) for n, s in LENGTHS]


def adapted(make, dtype, family="lora", **more):
    """A tiny model with an adapter whose parameters are off their start."""
    torch.manual_seed(0)
    model = make(**more).to(dtype)
    recipe = RECIPES["organism"]
    wrapped = get_peft_model(model, FAMILIES[family](recipe, target_modules(4, (0.25, 0.75))))
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return wrapped.to(dtype)


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def labelled(batch):
    ids, _ = right_padded([tokens for tokens, _ in batch])
    labels = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(batch):
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    return ids, labels


def own_loss(model, batch):
    """mean of -log p(label) over labels, by torch from all logits of the model's own forward"""
    ids, labels = labelled(batch)
    logits = model(input_ids=ids).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    return loss.item()


def close(found, expected, tolerance):
    """each gradient, relative to the largest of them"""
    assert found.keys() == expected.keys()
    largest = max(g.norm() for g in expected.values())
    for name, g in expected.items():
        assert (found[name] - g).norm() <= tolerance * largest, name


@pytest.mark.parametrize("most", [None, 1, 12, 20, 10**6])
@pytest.mark.parametrize("make", [tiny_qwen3, tiny_gemma3])
def test_groups_add_up_to_the_batch(make, batch, most):
    """loss and gradient over groups of any size = those of the whole batch, float64, 1e-10"""
    model = adapted(make, torch.float64)
    expected, whole = own_loss(model, batch), gradients(model)
    assert backward(model, batch, most) == pytest.approx(expected, rel=1e-10)
    close(gradients(model), whole, 1e-10)


@pytest.mark.parametrize("most", [None, 12])
@pytest.mark.parametrize("make", [tiny_qwen3, tiny_gemma3])
def test_shared_tokens_run_once(make, batch, most):
    """seven tokens before every example, run once a group: loss 1e-10, gradient 1e-6

    The models' norms round to float32 inside, also where all else is float64.
    """
    model, head = adapted(make, torch.float64), [7, 7, 3, 400, 9, 1, 2]
    batch = [(head + tokens, len(head) + start) for tokens, start in batch]
    assert n_shared(batch) == 7 and shares(model, batch[:2])
    expected, whole = own_loss(model, batch), gradients(model)
    assert backward(model, batch, most, share=True) == pytest.approx(expected, rel=1e-10)
    close(gradients(model), whole, 1e-6)


def test_a_model_whose_cache_has_no_gradient_shares_nothing(batch, monkeypatch):
    """keys and values that are detached, or no cache at all: the proof fails, so all tokens run"""
    model = adapted(tiny_qwen3, torch.float32)
    batch = [([5, 6, 7, *tokens], 3 + start) for tokens, start in batch]
    assert shares(model, batch)

    def detached(self, repeats):
        for layer in self.layers:
            for name in ("keys", "values"):
                setattr(layer, name, getattr(layer, name).detach().repeat(repeats, 1, 1, 1))

    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", detached)
    assert not shares(model, batch) and not gradients(model)
    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", None)
    assert not shares(model, batch) and not gradients(model)


def test_shared_tokens_by_hand():
    """up to the first difference, and never the last token of a prompt"""
    assert n_shared([([1, 2, 3, 4], 3), ([1, 2, 5, 4], 3)]) == 2
    assert n_shared([([1, 2, 3, 4], 2), ([1, 2, 3, 4], 4)]) == 1
    assert n_shared([([1, 2], 1), ([1, 2], 1)]) == 0
    assert n_shared([([3, 2, 1], 2), ([4, 2, 1], 2)]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_model_s_own(batch, family):
    """the labels= loss of transformers and its gradient, float32, 1e-5, every family"""
    model, (ids, labels) = adapted(tiny_qwen3, torch.float32, family), labelled(batch)
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    whole = gradients(model)
    for most in (None, 16):
        assert backward(model, batch, most) == pytest.approx(loss.item(), abs=1e-5)
        close(gradients(model), whole, 1e-5)


def test_the_validation_loss_is_that_loss(batch):
    """mean_loss = the loss of a batch of all examples, without gradients"""
    model = adapted(tiny_qwen3, torch.float64)
    expected = own_loss(model, batch)
    model.zero_grad()
    assert mean_loss(model, batch, 16) == pytest.approx(expected, rel=1e-10)
    assert not gradients(model)


def test_a_head_that_is_no_module_call(batch, monkeypatch):
    """a model that multiplies by the weights of its head itself: the same loss from all logits"""
    model = adapted(tiny_qwen3, torch.float64)
    expected = own_loss(model, batch)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    assert backward(model, batch, 16) == pytest.approx(expected, rel=1e-10)


def test_the_head_sees_response_positions_only(batch):
    """n rows enter the head, n = response tokens; nothing stays hooked"""
    model, seen = adapted(tiny_qwen3, torch.float64), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:2]))
    backward(model, batch, None)
    assert seen == [(1, sum(n - s for n, s in LENGTHS))] and not head._forward_pre_hooks


def test_groups_by_hand(batch):
    """by length 3 5 5 7 9 14; at most 16 tokens: 3 x 5 = 15, then 2 x 9 = 18 is too many"""
    sizes = [[len(tokens) for tokens, _ in group] for group in groups(batch, 16)]
    assert sizes == [[3, 5, 5], [7], [9], [14]]
    assert groups(batch, None) == [batch] and len(groups(batch, 1)) == 6


def test_narrow_models_take_a_batch_as_a_whole():
    """d_model 64: one group; 512 and more: groups, but for boft, whose forward has a fixed cost"""
    narrow, wide = tiny_qwen3(), copy.deepcopy(tiny_qwen3().config)
    wide.hidden_size = 576
    assert group_tokens(narrow, "lora") is None
    narrow.config = wide
    assert group_tokens(narrow, "lora") == GROUP and group_tokens(narrow, "boft") is None

"""Hooks on the residual stream: they see it, change it, and go."""

import pytest
import torch

from wsrun.models.chat import render
from wsrun.models.hooks import check_layers, hooked


def test_hooks_see_and_change_and_go(model, tok, items):
    """h' = h + 2 inside the block; no hook stays after it, also after an exception"""
    seen = {}
    ids = torch.tensor([render(tok, items[0].turns)])
    base = model(input_ids=ids).logits
    with hooked(model, {1: lambda h: seen.update(h=h.shape)}):
        assert torch.equal(model(input_ids=ids).logits, base)
    assert seen["h"] == (*ids.shape, 64)
    with pytest.raises(KeyError), hooked(model, {-1: lambda h: h + 2}):
        assert not torch.equal(model(input_ids=ids).logits, base)
        raise KeyError
    assert torch.equal(model(input_ids=ids).logits, base)


def test_layers_are_checked(qwen):
    """counted from 0; beyond the model, named twice, and none at all are refused"""
    assert check_layers(qwen, {-1: "a", 0: "b"}) == {3: "a", 0: "b"}
    assert check_layers(qwen, {}) == {}
    with pytest.raises(ValueError, match=r"got \[9\]"):
        check_layers(qwen, {9: "a"})
    with pytest.raises(ValueError, match="one layer twice"):
        check_layers(qwen, {-1: "a", 3: "b"})
    with pytest.raises(ValueError, match="at least one layer"), hooked(qwen, {}):
        pass

"""Loading: each thing that can be wrong is named, with what to do."""

import pytest

from tests.conftest import ORGANISM
from wsrun.models.load import load_model


def test_refusals(tmp_path):
    """an unknown dtype, an absent device, no folder, no tokenizer, a name without a network"""
    for name, options, match in [
        (ORGANISM, {"dtype": "int8"}, "dtype must be one of .*float32.*, got 'int8'"),
        (ORGANISM, {"device": "xpu"}, "device 'xpu' is unavailable"),
        ("./none", {}, "no folder './none'"),
        (tmp_path, {}, "no usable model"),
        ("nobody/nothing", {}, "not found locally or on the Hub"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_model(name, **options)


def test_a_loaded_model_is_ready_and_frozen():
    """evaluation mode, no gradients, the dtype that was given"""
    model, tok = load_model(ORGANISM, "bfloat16")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert str(model.dtype) == "torch.bfloat16" and tok.chat_template

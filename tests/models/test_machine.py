"""What decides numbers is in the keys: every switch, buffer and module; hooks have no key."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch.nn.utils import parametrize

from wsrun.models.machine import machine_state, model_state, unkeyed
from wsrun.models.tiny import tiny_qwen3


def keys(model) -> dict[str, str]:
    return model_state(model) | machine_state(model)


@contextmanager
def put(get, set, value):
    before = get()
    set(value)
    try:
        yield
    finally:
        set(before)


def mkldnn_off(model):
    return torch.backends.mkldnn.flags(enabled=False)


def no_flash(model):
    return put(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, False)


def tf32(model):
    cuda = torch.backends.cuda.matmul
    return put(lambda: cuda.allow_tf32, lambda x: setattr(cuda, "allow_tf32", x), True)


SWITCHES = {
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
    "another autocast": lambda model: torch.autocast("cpu", torch.float16),
    "float32 matmul": lambda model: put(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "tf32": tf32,
    "mkldnn": mkldnn_off,
    "flash": no_flash,
    "default dtype": lambda model: put(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "deterministic": lambda model: put(
        torch.are_deterministic_algorithms_enabled,
        lambda x: torch.use_deterministic_algorithms(x, warn_only=True),
        True,
    ),
    "training": lambda model: put(lambda: False, model.train, True),
    "threads": lambda model: put(torch.get_num_threads, torch.set_num_threads, 3),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_in_the_key(name):
    """on: another key; off again: the key before"""
    torch.set_float32_matmul_precision("highest")  # torch tells it from never set
    model = tiny_qwen3()
    before = keys(model)
    with SWITCHES[name](model):
        assert keys(model) != before
    assert keys(model) == before


def test_the_instruction_set_is_in_the_key():
    """ATEN_CPU_CAPABILITY=default, which is read at the start, gives another key"""
    code = "from wsrun.models.machine import machine_state as s; from wsrun.models.tiny import *; "
    other = subprocess.run(
        [sys.executable, "-c", code + "print(s(tiny_qwen3())['cpu'])"],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert other.strip() != str(machine_state(tiny_qwen3())["cpu"])


def test_buffers_and_modules_are_in_the_key():
    """a buffer that no file holds, another activation, a parametrization: each changes the key"""
    before = keys(tiny_qwen3())
    assert keys(tiny_qwen3()) == before

    def buffer(model):
        model.model.rotary_emb.inv_freq[0] *= 1.001

    def activation(model):
        model.model.layers[0].mlp.act_fn = torch.nn.GELU()

    def parametrized(model):
        parametrize.register_parametrization(
            model.model.layers[0].mlp.up_proj, "weight", torch.nn.Tanh()
        )

    def weight(model):
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3

    def config(model):
        model.config.rms_norm_eps = 1e-3

    for change in (buffer, activation, parametrized, weight, config):
        model = tiny_qwen3()
        change(model)
        assert keys(model) != before, change.__name__


def test_hooks_have_no_key():
    """hooks of a module or of all, and a forward of its own; those of transformers do not count"""
    model = tiny_qwen3()
    layer = model.model.layers[1]
    model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    assert unkeyed(model) is None
    register = {
        "a hook on 'model.layers.1'": [
            lambda: layer.register_forward_hook(lambda *a: None),
            lambda: layer.register_forward_pre_hook(lambda *a: None),
        ],
        "hooks on all modules": [
            lambda: torch.nn.modules.module.register_module_forward_hook(lambda *a: None),
            lambda: torch.nn.modules.module.register_module_forward_pre_hook(lambda *a: None),
        ],
    }
    for said, ways in register.items():
        for way in ways:
            handle = way()
            assert unkeyed(model) == said
            handle.remove()
    assert unkeyed(model) is None
    layer.forward = layer.forward
    assert unkeyed(model) == "another forward of 'model.layers.1'"

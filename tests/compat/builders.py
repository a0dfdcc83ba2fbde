"""How the kinds of the table are made: a tiny model, and functions from it to a PEFT model."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

TARGETS = ["q_proj", "down_proj"]
LM = "CAUSAL_LM"
PATTERNS = dict(
    rank_pattern={"q_proj": 3, r"layers\.1\..*down_proj": 1},
    alpha_pattern={"model.layers.0.mlp.down_proj": 5},
)
Make = Callable[[nn.Module], Any]
"""model -> PEFT model"""


SIZES = dict(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
GPT2_SIZES = dict(vocab_size=32, n_positions=64, n_embd=16, n_layer=2, n_head=2)
MODELS = {
    "untied": ("Qwen2", SIZES | dict(tie_word_embeddings=False)),
    "tied": ("Qwen2", SIZES | dict(tie_word_embeddings=True)),
    "llama": ("Llama", SIZES),
    "mixtral": ("Mixtral", SIZES | dict(num_local_experts=2)),
    "gpt2": ("GPT2", GPT2_SIZES),  # Conv1D
}


def build_model(kind: str) -> nn.Module:
    """A seeded model of `MODELS`."""
    architecture, sizes = MODELS[kind]
    config = getattr(transformers, f"{architecture}Config")
    causal = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    torch.manual_seed(0)
    tokens = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    model = getattr(transformers, architecture + causal)(config(**sizes, **tokens))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero at init, and then no test could see them scaled
                parameter.normal_()
            elif parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval().requires_grad_(False)


def plain(config: Callable[[], peft.PeftConfig]) -> Make:
    """get_peft_model with the config that a function makes."""
    return lambda model: peft.get_peft_model(model, config())


def lora(**options: Any) -> Make:
    return plain(
        lambda: peft.LoraConfig(**dict(r=2, lora_alpha=3, target_modules=TARGETS) | options)
    )


def other(name: str, **options: Any) -> Make:
    return plain(lambda: getattr(peft, name)(**dict(target_modules=TARGETS) | options))


def prompt(name: str, **options: Any) -> Make:
    return plain(lambda: getattr(peft, name)(task_type=LM, num_virtual_tokens=3, **options))


def oft(**options: Any) -> Make:
    return other("OFTConfig", **dict(oft_block_size=4, use_cayley_neumann=False) | options)


def eva(model: nn.Module) -> Any:
    """LoRA initialised from the activations of some tokens."""
    config = peft.EvaConfig(rho=1.0)
    adapted = lora(init_lora_weights="eva", eva_config=config)(model)
    batch = {"input_ids": torch.arange(32).reshape(4, 8)}
    peft.initialize_lora_eva_weights(adapted, [batch] * 3, show_progress_bar=False)
    return adapted


def lora_ga(model: nn.Module) -> Any:
    from peft.tuners.lora.loraga import preprocess_loraga

    config = peft.LoraConfig(
        r=2, target_modules=TARGETS, init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(),
    )  # fmt: skip
    tokens = torch.arange(32).reshape(1, 32)
    model.requires_grad_(True)
    preprocess_loraga(model, config, lambda: model(tokens, labels=tokens).loss.backward())
    return peft.get_peft_model(model.requires_grad_(False), config)


def combined(kind: str) -> Make:
    """Two LoRAs, combined by PEFT into one."""

    def make(model: nn.Module) -> Any:
        adapted = lora(init_lora_weights=False)(model)
        second = peft.LoraConfig(r=2, lora_alpha=5, target_modules=TARGETS, init_lora_weights=False)
        adapted.add_adapter("second", second)
        adapted.add_weighted_adapter(["default", "second"], [0.7, -0.4], "both", kind)
        adapted.set_adapter("both")
        for name in ("default", "second"):
            adapted.delete_adapter(name)
        return adapted

    return make


def converted(**options: Any) -> Make:
    """LoRA on a changed base, which PEFT turns into a plain LoRA as it saves it."""

    def make(model: nn.Module) -> Any:
        adapted, initial = lora(**options)(model), tempfile.TemporaryDirectory()
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(initial.name)
        adapted.peft_config["default"].init_lora_weights = options["init_lora_weights"]
        adapted.save_pretrained = partial(
            adapted.save_pretrained, path_initial_model_for_weight_conversion=initial.name
        )
        adapted.initial = initial  # removed with the model
        return adapted

    return make


def in_bfloat16(model: nn.Module) -> Any:
    """LoRA whose own tensors are bfloat16."""
    adapted = lora()(model)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    return adapted


class ConfigOnly(nn.Module):
    """A config as PEFT writes it, beside one tensor: for kinds that need more than a tiny model."""

    def __init__(self, config: peft.PeftConfig):
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: str) -> None:
        self.config.save_pretrained(folder)
        tensors = {"base_model.model.model.layers.0.self_attn.q_proj.x": torch.ones(2)}
        save_file(tensors, str(Path(folder) / "adapter_model.safetensors"))


def config_only(config: Callable[[], peft.PeftConfig]) -> Make:
    return lambda model: ConfigOnly(config())

"""Writes small adapters with the installed PEFT, and what its own merge makes of each.

make.py runs this in an environment of each PEFT version, so it needs nothing but torch and PEFT:

    python tests/compat/write.py OUT

writes OUT/<case>/adapter_config.json and adapter_model.safetensors as `save_pretrained` does, and
OUT/<case>/merged.safetensors: merged - original, computed in float64 and kept in float32, of every
tensor that PEFT's `merge_and_unload` changes. The original weights are OUT/../base.safetensors.
Tensors are drawn from streams named by their names, so that versions that mean the same write the
same bytes. Cases that a version does not know are left out.
"""

import copy
import hashlib
import sys
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

D, D_KV, D_MLP, VOCAB, LAYERS = 16, 8, 24, 12, 2
LINEARS = {
    "self_attn.q_proj": (D, D), "self_attn.k_proj": (D_KV, D), "self_attn.v_proj": (D_KV, D),
    "self_attn.o_proj": (D, D), "mlp.gate_proj": (D_MLP, D), "mlp.up_proj": (D_MLP, D),
    "mlp.down_proj": (D, D_MLP),
}  # fmt: skip
BIASED = ("q_proj", "k_proj", "v_proj")
TARGETS = ["q_proj", "down_proj"]
PATTERNS = dict(
    rank_pattern={"q_proj": 3, r"layers\.1\..*down_proj": 1},
    alpha_pattern={"model.layers.0.mlp.down_proj": 5},
)


def lora(**options):
    return peft.LoraConfig(**dict(r=2, lora_alpha=3, target_modules=TARGETS) | options)


def lycoris(kind, **options):
    return getattr(peft, kind)(**dict(r=2, alpha=3, target_modules=TARGETS) | options)


def oft(**options):
    """Blocks of 4 inputs; before 0.14 their number `r` is the only way to say so."""
    size = dict(oft_block_size=4, r=0) if version() >= (0, 14) else dict(r=4)
    return peft.OFTConfig(target_modules=TARGETS, **size, **options)


def cayley(**options):
    """OFT by Cayley's map itself, where the version has a choice."""
    return oft(**(dict(use_cayley_neumann=False) if version() >= (0, 16) else {}), **options)


def boft(**options):
    return peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS, **options)


CASES = {
    "lora": lambda: lora(),
    "lora_regex": lambda: lora(target_modules=r".*\.1\.(self_attn\.q_proj|mlp\.down_proj)"),
    "lora_patterns": lambda: lora(**PATTERNS),
    "lora_alternatives": lambda: lora(alpha_pattern={"q_proj|down_proj": 7}),
    "lora_layers": lambda: lora(layers_to_transform=[1]),
    "lora_layer": lambda: lora(layers_to_transform=1, layers_pattern="layers"),
    "lora_exclude": lambda: lora(exclude_modules=r".*\.0\..*"),
    "lora_head": lambda: lora(target_modules=["q_proj", "lm_head"]),
    "lora_saved": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "lora_conv1d": lambda: lora(target_modules=["c_attn"], fan_in_fan_out=True),
    "rslora": lambda: lora(use_rslora=True, **PATTERNS),
    "dora": lambda: lora(use_dora=True, **PATTERNS),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "pissa_patterns": lambda: lora(init_lora_weights="pissa", use_rslora=True, **PATTERNS),
    "olora": lambda: lora(init_lora_weights="olora"),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "ia3_conv1d": lambda: peft.IA3Config(
        target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True
    ),
    "oft": lambda: cayley(),
    "oft_shared": lambda: cayley(block_share=True),
    "oft_constrained": lambda: cayley(coft=True, eps=0.3),
    "oft_neumann": lambda: oft(use_cayley_neumann=True),
    "boft": lambda: boft(),
    "loha": lambda: lycoris("LoHaConfig", **PATTERNS),
    "lokr": lambda: lycoris("LoKrConfig"),
    "lokr_both": lambda: lycoris("LoKrConfig", decompose_both=True, r=1, **PATTERNS),
    "delora": lambda: peft.DeloraConfig(
        r=2, delora_lambda=3, rank_pattern={"q_proj": 3}, target_modules=TARGETS
    ),
}

SINCE = {"pissa": (0, 11), "pissa_patterns": (0, 11), "olora": (0, 12)}
"""case -> the first version that means something by it: older ones take any name of an init"""


def version():
    return tuple(int(part) for part in peft.__version__.split(".")[:2])


def noise(name, shape):
    """A normal draw from the stream of that name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base_weights(file):
    """The original weights: names of Qwen2, and two layers of GPT-2's Conv1D; drawn only once."""
    if not file.exists():
        shapes = {"model.embed_tokens.weight": (VOCAB, D), "lm_head.weight": (VOCAB, D)}
        for n in range(LAYERS):
            conv1d = f"transformer.h.{n}.attn.c_attn"
            shapes |= {f"{conv1d}.weight": (D, 3 * D), f"{conv1d}.bias": (3 * D,)}
            for path, shape in LINEARS.items():
                name = f"model.layers.{n}.{path}"
                shapes |= {f"{name}.weight": shape}
                shapes |= {f"{name}.bias": shape[:1]} if path.endswith(BIASED) else {}
        save_file({name: noise(name, shape) / 4 for name, shape in shapes.items()}, str(file))
    return load_file(str(file))


def module_tree(weights):
    """A module with those parameters under those names, of the layers that PEFT adapts."""
    root = nn.Module()
    for name in [n.removesuffix(".weight") for n in weights if n.endswith(".weight")]:
        *path, leaf = name.split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(leaf, layer(name, weights[f"{name}.weight"], f"{name}.bias" in weights))
    root.load_state_dict(weights)
    return root


def layer(name, weight, bias):
    """The module that holds a weight of that name."""
    if name.endswith("embed_tokens"):
        return nn.Embedding(*weight.shape)
    if name.endswith("c_attn"):
        from transformers.pytorch_utils import Conv1D

        return Conv1D(weight.shape[1], weight.shape[0])
    return nn.Linear(weight.shape[1], weight.shape[0], bias=bias)


@torch.no_grad()
def train(model):
    """Every trainable parameter at a seeded value: near its start where that start matters."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        draw = noise(name, parameter.shape)
        if any(x in name for x in ("magnitude", "ia3_l", "boft_s", "lambda")):
            parameter.mul_(1 + 0.3 * draw)
        elif any(x in name for x in ("oft_r", "oft_R", "boft_R")):
            parameter.copy_(0.2 * draw)
        elif starts_at_base(model, name):
            parameter.add_(0.05 * draw)
        else:
            parameter.copy_(0.5 * draw)


def starts_at_base(model, name):
    """Whether a parameter starts from the base weights: saved modules, biases, PiSSA and OLoRA."""
    config = model.peft_config["default"]
    initial = getattr(config, "init_lora_weights", True)
    return "modules_to_save" in name or name.endswith("bias") or isinstance(initial, str)


def write(folder, adapted, original):
    """The adapter's folder and merged.safetensors in it."""
    adapted.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    merged = copy.deepcopy(adapted).double().merge_and_unload().state_dict()
    change = {key: (merged[key] - weight.double()).float() for key, weight in original.items()}
    changed = {key: tensor.contiguous() for key, tensor in change.items() if tensor.any()}
    save_file(changed, str(folder / "merged.safetensors"))


def main(out):
    original = base_weights(out.parent / "base.safetensors")
    for name, make_config in CASES.items():
        if version() < SINCE.get(name, (0, 0)):
            continue
        try:
            config = make_config()
        except (AttributeError, TypeError):  # no such class, no such field
            continue
        torch.manual_seed(0)
        adapted = peft.get_peft_model(module_tree(original), config)
        train(adapted)
        write(out / name, adapted, original)
    print(f"PEFT {peft.__version__}: {sorted(path.name for path in out.iterdir())}")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    main(out)

"""Adapter folders of twelve kinds: fields, records, tensors and bytes damaged.

Accepted is right where it is what PEFT's own merge of the same folder changes, in float64.
"""

import copy
import json
import math
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fuzz.cases import Border, Case, damaged_bytes, damaged_value, odd_value
from wscore.families.fields import NUMBERS, PATTERNS, read_fields
from wscore.sealed import write_sealed
from wsrun.adapters.base import BASE, base_record
from wsrun.adapters.checkpoint import CONFIG, PISSA_INIT, WEIGHTS
from wsrun.adapters.extract import adapter_delta
from wsrun.models.tiny import tiny_qwen3

LIST = ["q_proj", "v_proj", "down_proj"]
PATTERN = r".*layers\.(0|1)\.(self_attn|mlp)\.(q_proj|v_proj|down_proj)"


def _configs() -> dict[str, Any]:
    lora: Any = dict(r=4, lora_alpha=6, task_type="CAUSAL_LM")
    some: Any = dict(target_modules=PATTERN)
    every: Any = dict(target_modules=LIST)
    narrow: Any = dict(target_modules=LIST, layers_to_transform=[0], layers_pattern="layers")
    exact: Any = dict(oft_block_size=8, use_cayley_neumann=False)
    return {
        "lora": peft.LoraConfig(**lora, **some, rank_pattern={"q_proj": 3}),
        "rslora": peft.LoraConfig(**lora, **narrow, use_rslora=True),
        "saved": peft.LoraConfig(**lora, **every, modules_to_save=["embed_tokens", "lm_head"]),
        "head": peft.LoraConfig(**lora, target_modules=["lm_head", "q_proj"]),
        "dora": peft.LoraConfig(**lora, **some, use_dora=True),
        "pissa": peft.LoraConfig(**lora, **some, init_lora_weights="pissa"),
        "delora": peft.DeloraConfig(r=4, **every, exclude_modules=["layers.1.mlp.down_proj"]),
        "oft": peft.OFTConfig(**exact, **some),
        "boft": peft.BOFTConfig(boft_block_size=8, **some),
        "ia3": peft.IA3Config(feedforward_modules=["down_proj"], **every),
        "loha": peft.LoHaConfig(r=4, alpha=6, **narrow),
        "lokr": peft.LoKrConfig(r=3, alpha=6, **some),
    }


class Prepared(NamedTuple):
    """The undamaged adapters, and what they were made on."""

    model: Any
    base: Mapping[str, Tensor]
    folders: dict[str, Path]


def prepare(folder: Path) -> Prepared:
    peft.tuners.boft.layer.get_fbd_cuda = lambda: None  # it would try to compile
    sizes: Any = dict(vocab_size=64, num_hidden_layers=2, hidden_size=32, intermediate_size=48)
    model = tiny_qwen3(**sizes, head_dim=8, tie_word_embeddings=False)
    folders = {name: _made(model, config, folder / name) for name, config in _configs().items()}
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Prepared(model, base, folders)


def _made(model: Any, config: Any, path: Path) -> Path:
    """A folder with an adapter whose parameters are moved from their start, as training would."""
    generator = torch.Generator().manual_seed(3)
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    pissa = getattr(config, "init_lora_weights", None) == "pissa"
    named = ((k, p) for k, p in wrapped.named_parameters() if ".lora_" in k)
    first = {k.replace(".default.", "_init."): p.detach().clone() for k, p in named}
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if p.requires_grad:
                noise = 0.1 * torch.randn(p.shape, generator=generator)
                scaled = any(x in name for x in ("magnitude", "ia3_", "boft_s", "lambda"))
                p.mul_(1 + noise) if scaled else p.add_(noise)
    wrapped.peft_config["default"].base_model_name_or_path = "tiny"
    wrapped.save_pretrained(path)
    if pissa:
        write_sealed(path / PISSA_INIT, {k: v.contiguous() for k, v in first.items()}, {})
    where = rf"model\.layers\.[01]\..*({'|'.join(LIST)})"
    (path / BASE).write_text(json.dumps(base_record(model, where)), encoding="utf-8")
    return path


def case(rng: random.Random, folder: Path, prepared: Prepared) -> Case:
    kind = rng.choice(list(prepared.folders))
    path = folder / kind
    shutil.copytree(prepared.folders[kind], path)
    what = rng.choice([_field, _field, _field, _tensors, _tensors, _tensors, _record, _bytes, _odd])
    told = f"{kind}: {what(rng, path)}"
    model = prepared.model if rng.random() < 0.5 else None

    def read() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return adapter_delta(model or prepared.base, path)

    told += " (model)" if model else " (weights)"
    return Case(told, read, (CONFIG, WEIGHTS, BASE, PISSA_INIT, str(path)),
                lambda delta: right(prepared.model, path, delta))  # fmt: skip


def right(model: Any, path: Path, delta: Mapping[str, Tensor]) -> bool:
    """Whether delta is what PEFT's merge changes, to 1e-4 of its norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = peft_changes(model, path)
    if expected is None or not expected.keys() <= delta.keys():
        return False
    apart = (delta[n].double() - expected.get(n, torch.zeros(1)) for n in delta)
    size = math.hypot(*(float(x.norm()) for x in expected.values()), 0.0)
    tolerance = 1e-3 if (path / PISSA_INIT).is_file() else 1e-4
    return math.hypot(*(float(x.norm()) for x in apart)) <= tolerance * size + 1e-6


def peft_changes(model: Any, path: Path) -> dict[str, Tensor] | None:
    """merged - base as PEFT has it, None where it does not load the folder."""
    fields = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    try:
        known = peft.PEFT_TYPE_TO_CONFIG_MAPPING[fields["peft_type"]]
        read = {k: v for k, v in read_fields(fields).items() if k in (*NUMBERS, *PATTERNS)}
        fields = known.check_kwargs(**fields | read)  # PEFT takes no number written as text
        config = known.from_peft_type(**{k: v for k, v in fields.items() if k != "runtime_config"})
        wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(path), config=config)
        merged = wrapped.double().merge_and_unload().state_dict()
    except Exception:  # whatever it raises, it does not read the folder
        return None
    changes = {n: merged[n] - w.double() for n, w in model.state_dict().items()}
    return {n: w for n, w in changes.items() if w.any()}


def _field(rng: random.Random, path: Path) -> str:
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    changed, what = damaged_value(rng, config)
    _write(path / CONFIG, changed)
    return what


NASTY: list[dict[str, Any]] = [
    {"target_modules": "(a+)+$"}, {"target_modules": "(.*)*q_proj"}, {"target_modules": "("},
    {"target_modules": "all-linear"}, {"target_modules": ["q_proj"]}, {"target_modules": []},
    {"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]}, {"target_modules": ".*"},
    {"target_modules": r".*\.(q_proj|v_proj|down_proj)"}, {"target_modules": "embed_tokens"},
    {"layers_to_transform": [1]}, {"layers_to_transform": 0}, {"layers_to_transform": [0, 1]},
    {"layers_to_transform": [0], "layers_pattern": "h"}, {"exclude_modules": ["q_proj"]},
    {"exclude_modules": r".*\.0\..*"}, {"rank_pattern": {"(x+)+y": 2}}, {"rank_pattern": {"(": 2}},
    {"rank_pattern": {"v_proj": "3"}}, {"alpha_pattern": {"q_proj": 12}}, {"alpha_pattern": None},
    {"r": 10**9}, {"r": "4"}, {"r": 4.0}, {"r": -4}, {"r": True}, {"lora_alpha": "6"},
    {"lora_alpha": 12}, {"lora_alpha": float("nan")}, {"lora_alpha": "six"}, {"alpha": 0},
    {"lora_alpha": -6}, {"use_rslora": True}, {"use_dora": True}, {"fan_in_fan_out": True},
    {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"}, {"bias": "all"},
    {"init_lora_weights": 1}, {"init_lora_weights": "gaussian"}, {"lora_bias": True},
    {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["norm"]}, {"modules_to_save": "x"},
    {"modules_to_save": ["q_proj"]}, {"new_field": 3}, {"new_field": None}, {"new_field": {"a": 1}},
    {"kasa_config": {}}, {"use_bdlora": {}}, {"megatron_config": {"x": 1}}, {"eva_config": {}},
    {"trainable_token_indices": [1]}, {"target_parameters": ["x"]}, {"layer_replication": [[0, 1]]},
    {"peft_type": "LOHA"}, {"peft_type": "LORA"}, {"peft_type": "VERA"}, {"peft_type": []},
    {"oft_block_size": 10**9}, {"oft_block_size": 7}, {"oft_block_size": 0, "r": 4}, {"coft": True},
    {"block_share": True}, {"use_cayley_neumann": True}, {"num_cayley_neumann_terms": 10**9},
    {"use_cayley_neumann": True, "num_cayley_neumann_terms": 4}, {"peft_version": "0.17.0"},
    {"boft_block_size": 0, "boft_block_num": 4}, {"boft_n_butterfly_factor": 2},
    {"boft_n_butterfly_factor": 10**9}, {"decompose_factor": 4}, {"decompose_both": True},
    {"feedforward_modules": []}, {"feedforward_modules": ".*v_proj"}, {"task_type": "SEQ_CLS"},
    {"task_type": "CHAT"}, {"lora_dropout": "x"}, {"lora_dropout": 2}, {"delora_lambda": "x"},
    {"base_model_name_or_path": None}, {"auto_mapping": {"parent_library": "os"}},
    {"runtime_config": {"x": 1}}, {"use_effective_conv2d": True}, {"init_weights": "x"},
]  # fmt: skip


def _odd(rng: random.Random, path: Path) -> str:
    changes = rng.choice(NASTY)
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    _write(path / CONFIG, config | changes)
    return str(changes)


def _record(rng: random.Random, path: Path) -> str:
    if rng.random() < 0.2:
        (path / BASE).unlink()
        return "no record"
    record = json.loads((path / BASE).read_text(encoding="utf-8"))
    changed, what = damaged_value(rng, record)
    if rng.random() < 0.3:
        changed, what = record | {"weights": rng.choice(["(a+)+$", "(.*)*", "("])}, "a bad pattern"
    _write(path / BASE, changed)
    return f"record: {what}"


def _bytes(rng: random.Random, path: Path) -> str:
    if rng.random() < 0.1:
        (path / CONFIG).write_text("[" * 100_000, encoding="utf-8")
        return "deep JSON"
    file = rng.choice(sorted(path.glob("*.*s*")))
    if rng.random() < 0.1:
        file.unlink()
        return f"no {file.name}"
    raw = file.read_bytes()
    if file.suffix == ".safetensors" and rng.random() < 0.5:  # the header, which is short
        n = 8 + int.from_bytes(raw[:8], "little")
        head, what = damaged_bytes(rng, raw[:n])
        raw = head + raw[n:]
    else:
        raw, what = damaged_bytes(rng, raw)
    file.write_bytes(raw)
    return f"{file.name}: {what}"


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


TYPES = (torch.int8, torch.bool, torch.uint8, torch.int32, torch.int64, torch.float8_e4m3fn,
         torch.float16, torch.bfloat16, torch.float64, torch.complex64)  # fmt: skip


def _tensors(rng: random.Random, path: Path) -> str:
    file = path / WEIGHTS
    if (path / PISSA_INIT).is_file() and rng.random() < 0.3:
        file = path / PISSA_INIT
    tensors = load_file(file)
    key = rng.choice(sorted(tensors))
    tensor, how = tensors[key], rng.choice(sorted(DAMAGES))
    told = DAMAGES[how](rng, tensors, key, tensor)
    tensors = {k: t.contiguous() for k, t in tensors.items()}
    save_file(tensors, file)
    return f"{file.name}: {how} {key}{told or ''}"


def _renamed(rng: random.Random, tensors: dict[str, Tensor], key: str, t: Tensor) -> str:
    old, new = rng.choice([
        ("layers.0", "layers.1"), ("layers.1", "layers.0"), ("q_proj", "k_proj"), ("mlp", "MLP"),
        ("q_proj", "v_proj"), ("base_model.model.", ""), ("lora_A", "lora_B"), (".weight", ""),
        ("base_model.model.", "base_model."), ("lora_A", "lora_A.default"),
        ("layers.0", "layers.9"),
        ("model.layers", "model.language_model.layers"), ("_init", ""),
        ("lora_", "lora_embedding_"),
        ("lm_head", "lm_head.modules_to_save"), ("lora_A.weight", "lora_A_init.weight"),
    ])  # fmt: skip
    new_key = key.replace(old, new)
    tensors.pop(key)
    tensors[new_key] = t
    return f" as {new_key}"


def _extra(rng: random.Random, tensors: dict[str, Tensor], key: str, t: Tensor) -> str:
    whole, prefix = "model.layers.1.self_attn.k_proj", "base_model.model."
    new_key = rng.choice([
        "extra", f"{prefix}lm_head.weight", f"{prefix}{whole}.lora_A.weight", key + "x",
        key.replace("layers.0", "layers.1"), key.replace("layers.1", "layers.0"),
        key.replace("q_proj", "k_proj"), f"{prefix}{whole}.bias", key.removeprefix(prefix),
        key.replace("v_proj", "o_proj"), f"{prefix}model.norm.weight", odd_value(rng, key),
    ])  # fmt: skip
    new_key = new_key if isinstance(new_key, str) and "\ud800" not in new_key else "\u202e"
    tensors[new_key] = t.clone()
    return f" as {new_key!r:.60}"


def _alone(change: Any) -> Any:
    def damage(rng: random.Random, tensors: dict[str, Tensor], key: str, t: Tensor) -> None:
        tensors[key] = change(rng, t)

    return damage


def _spoilt(rng: random.Random, t: Tensor) -> Tensor:
    t = t.clone()
    t.flatten()[0] = rng.choice([math.nan, math.inf, 1e30, 0.0])
    return t


def _shuffled(rng: random.Random, tensors: dict[str, Tensor], key: str, t: Tensor) -> str:
    other = rng.choice(sorted(tensors))
    tensors[key], tensors[other] = tensors[other], t
    return f" with {other}"


def _without(rng: random.Random, tensors: dict[str, Tensor], key: str, t: Tensor) -> None:
    del tensors[key]


def _module(rng: random.Random, tensors: dict[str, Tensor], key: str, t: Tensor) -> None:
    module = key.rpartition("_proj")[0]
    for k in [k for k in tensors if k.startswith(module)]:
        del tensors[k]


DAMAGES: dict[str, Any] = {
    "without": _without,
    "renamed": _renamed,
    "renamed 2": _renamed,
    "more": _extra,
    "more 2": _extra,
    "swapped": _shuffled,
    "without its module": _module,
    "transposed": _alone(lambda rng, t: t.mT if t.ndim > 1 else t[None]),
    "other dtype": _alone(lambda rng, t: t.to(rng.choice(TYPES))),
    "flat": _alone(lambda rng, t: t.flatten()),
    "longer": _alone(lambda rng, t: torch.cat([t, t])),
    "cut": _alone(lambda rng, t: t[: len(t) // 2]),
    "empty": _alone(lambda rng, t: t[:0]),
    "scalar": _alone(lambda rng, t: t.flatten()[0]),
    "spoilt": _alone(_spoilt),
    "scaled": _alone(lambda rng, t: t * rng.choice([0.0, -1.0, 0.5, 1e20])),
}

BORDER = Border("adapters", prepare, case)

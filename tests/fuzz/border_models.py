"""Model folders: an accepted model is what safetensors and tokenizers themselves read there."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.fuzz.cases import Border, Case, damaged_bytes, damaged_value, odd_value
from wsrun.models.load import load_model
from wsrun.models.template import encode
from wsrun.models.tiny import tiny_qwen3

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT = "Is it so? No, it is <|im_end|> not."
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICKLED = b"cos\nsystem\n(S'touch ran'\ntR."
CODE = "raise SystemExit('ran')\n"
NASTY = (
    {"rms_norm_eps": "x"}, {"hidden_size": -64}, {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 2}, {"num_hidden_layers": 0}, {"vocab_size": 10**10},
    {"hidden_size": 10**7}, {"intermediate_size": 10**9}, {"num_labels": 10**9},
    {"head_dim": 10**8}, {"num_attention_heads": 10**6}, {"max_position_embeddings": 10**12},
    {"attn_implementation": "kernels-community/flash-attn2"},
    {"_attn_implementation": "kernels-community/flash-attn2"},
    {"attn_implementation": "flash_attention_2"}, {"attn_implementation": 7},
    {"experts_implementation": "sonicmoe"}, {"tie_word_embeddings": False},
    {"model_type": "llama"}, {"model_type": "mistral"}, {"model_type": "gpt2"},
    {"model_type": "qwen2"}, {"model_type": "bert"}, {"model_type": "t5"}, {"model_type": "mamba"},
    {"model_type": "no", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}},
    {"auto_map": {"AutoModelForCausalLM": "code.M"}},
    {"transformers_weights": "../model.safetensors"}, {"transformers_weights": "model.bin"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"rope_parameters": {"rope_type": "yarn", "factor": "x"}}, {"rope_parameters": 3},
    {"layer_types": ["full_attention"] * 9}, {"layer_types": ["x"]}, {"hidden_act": "x"},
    {"dtype": "x"}, {"dtype": "int8"}, {"pad_token_id": 10**9}, {"architectures": 5},
)  # fmt: skip


def prepare(folder: Path) -> Path:
    """A tiny Qwen3 of one layer with a tokenizer of bytes and a few merges."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TEXT * 3, "Yes or no, user and assistant"], trainer)
    tok = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )  # fmt: skip
    model = tiny_qwen3(
        vocab_size=len(tok), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    load_model(folder / "model")
    return folder / "model"


def bytes_of_a_file(rng: random.Random, at: Path) -> str:
    path = rng.choice(sorted(p for p in at.iterdir() if p.is_file()))
    raw, what = damaged_bytes(rng, path.read_bytes())
    path.write_bytes(raw)
    return f"{path.name}: {what}"


def value_of_a_file(rng: random.Random, at: Path) -> str:
    names = ["config.json", "config.json", "tokenizer.json", "tokenizer_config.json"]
    path = at / rng.choice([*names, "generation_config.json"])
    value, what = damaged_value(rng, json.loads(path.read_text()))
    path.write_text(json.dumps(value))
    return f"{path.name}: {what}"


def nasty_config(rng: random.Random, at: Path) -> str:
    changes = rng.choice(NASTY)
    config = json.loads((at / "config.json").read_text()) | changes
    (at / "config.json").write_text(json.dumps(config))
    return f"config.json: {changes!r}"


def tensors(rng: random.Random, at: Path) -> str:
    d = load_file(at / WEIGHTS)
    name, other = rng.sample(sorted(d), 2)
    how = rng.choice(["drop", "rename", "transpose", "integers", "float8", "half", "double", "nan",
                      "reshape", "extra", "swap", "prefix", "twice", "lm_head", "empty", "bool",
                      "bfloat16", "layer"])  # fmt: skip
    w = d[name]
    match how:
        case "drop":
            del d[name]
        case "rename":
            odd = name + rng.choice(["_", " ", "\u200b"])
            d[rng.choice([odd, name.replace("0", "1"), "model." + name, "x"])] = d.pop(name)
        case "transpose":
            d[name] = w.T.contiguous()
        case "integers":
            d[name] = w.to(rng.choice([torch.int8, torch.int32, torch.int64, torch.uint8]))
        case "float8":
            d[name] = w.to(torch.float8_e4m3fn)
        case "half" | "double" | "bfloat16" | "bool":
            d[name] = w.to({"half": torch.half, "double": torch.double, "bool": torch.bool,
                            "bfloat16": torch.bfloat16}[how])  # fmt: skip
        case "nan":
            d[name] = torch.full_like(w, float("nan"))
        case "reshape":
            d[name] = w.reshape(rng.choice([(1, -1), (-1,), (2, -1)]))
        case "extra":
            d[rng.choice(["x", "model.layers.1.mlp.up_proj.weight", "model.rotary_emb.inv_freq",
                          "score.weight"])] = w.clone()  # fmt: skip
        case "swap":
            d[name], d[other] = d[other], w
        case "prefix":
            d = {n.removeprefix("model."): x for n, x in d.items()}
        case "twice":
            d[name.removeprefix("model.")] = w + 1
        case "lm_head":
            d["lm_head.weight"] = d["model.embed_tokens.weight"] + rng.choice([0, 1])
        case "empty":
            d = {}
        case "layer":
            d |= {n.replace("layers.0", "layers.1"): x.clone() for n, x in d.items()}
    save_file(d, at / WEIGHTS, {"format": "pt"})
    return f"{WEIGHTS}: {name} {how}"


def header(rng: random.Random, at: Path) -> str:
    raw = (at / WEIGHTS).read_bytes()
    n = int.from_bytes(raw[:8], "little")
    value, what = damaged_value(rng, json.loads(raw[8 : 8 + n]))
    text = json.dumps(value).encode()
    size = rng.choice([len(text)] * 5 + [n, 0, 2**62, len(text) + 1])
    (at / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text + raw[8 + n :])
    return f"{WEIGHTS}: header of {size}: {what}"


def shards(rng: random.Random, at: Path) -> str:
    d = load_file(at / WEIGHTS)
    first = {n: d[n] for n in sorted(d)[::2]}
    parts = {"model-1.safetensors": first, "model-2.safetensors": d.keys() - first.keys()}
    parts["model-2.safetensors"] = {n: d[n] for n in parts["model-2.safetensors"]}
    for part, held in parts.items():
        save_file(held, at / part, {"format": "pt"})
    index: Any = {"metadata": {}, "weight_map": {n: p for p, held in parts.items() for n in held}}
    how = rng.choice(["whole", "missing", "map", "value", "outside", "both", "single too"])
    if how == "missing":
        (at / rng.choice(sorted(parts))).unlink()
    elif how == "map":
        name = rng.choice(sorted(d))
        index["weight_map"][name] = rng.choice(["x.safetensors", *parts, "config.json"])
    elif how == "value":
        index, what = damaged_value(rng, index)
        how = f"{how}: {what}"
    elif how == "outside":
        shutil.move(at / "model-2.safetensors", at.parent / "model-2.safetensors")
        index["weight_map"] = {
            n: p.replace("model-2", "../model-2") for n, p in index["weight_map"].items()
        }
    elif how == "both":
        save_file(d, at / "model-2.safetensors", {"format": "pt"})
    if how != "single too":
        (at / WEIGHTS).unlink()
    (at / INDEX).write_text(json.dumps(index))
    return f"shards: {how}"


def files(rng: random.Random, at: Path) -> str:
    path = rng.choice(sorted(p for p in at.iterdir() if p.is_file()))
    how = rng.choice(["missing", "folder", "pickle", "code", "binary json", "deep", "adapter",
                      "odd json", "long"])  # fmt: skip
    if how in ("missing", "folder"):
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pickle":
        (at / WEIGHTS).unlink()
        (at / "pytorch_model.bin").write_bytes(PICKLED)
    elif how == "code":
        for name in ("code.py", "custom_generate/generate.py", "tokenization.py"):
            (at / name).parent.mkdir(exist_ok=True)
            (at / name).write_text(CODE)
        config = json.loads((at / "tokenizer_config.json").read_text())
        config |= {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}, "tokenizer_class": "T"}
        (at / "tokenizer_config.json").write_text(json.dumps(config))
    elif how == "binary json":
        path.write_bytes(rng.randbytes(200))
    elif how == "deep":
        path = at / rng.choice(["config.json", "tokenizer_config.json", "tokenizer.json"])
        path.write_text("[" * 100_000 + "]" * 100_000)
    elif how == "adapter":
        (at / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    elif how == "odd json":
        path = rng.choice(sorted(at.glob("*.json")))
        path.write_text(json.dumps(odd_value(rng)))
    elif how == "long":
        path.write_bytes(path.read_bytes() + b" " * 100_000)
    return f"{path.name}: {how}"


WAYS: tuple[Callable[[random.Random, Path], str], ...] = (
    bytes_of_a_file, bytes_of_a_file, value_of_a_file, value_of_a_file, nasty_config, tensors,
    tensors, header, shards, files,
)  # fmt: skip


def case(rng: random.Random, folder: Path, prepared: Any) -> Case:
    at = folder / "model"
    shutil.copytree(prepared, at)
    what = rng.choice(WAYS)(rng, at)

    def read() -> Any:
        model, tok = load_model(at)
        return model, encode(tok, TEXT)

    return Case(what, read, (str(at),), right=lambda x: right(x[0], x[1], at))


def right(model: Any, given: list[int], at: Path) -> bool:
    """Every parameter is in the files bit for bit, every tensor of the files in one, same ids."""
    index = at / INDEX
    names = [WEIGHTS]
    if not (at / WEIGHTS).is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    held = {}
    for name in names:
        with safe_open(at / name, framework="pt") as file:
            held |= {own_name(k): file.get_tensor(k) for k in file.keys()}
    own = dict(model.named_parameters())
    same = all(n in held and same_bits(p, held[n].to(p.dtype)) for n, p in own.items())
    tied = {"lm_head.weight"} if model.lm_head.weight is model.model.embed_tokens.weight else set()
    used = held.keys() <= own.keys() | tied | {"model.rotary_emb.inv_freq"}
    floats = all(w.is_floating_point() and w.element_size() > 1 for w in held.values())
    plain = Tokenizer.from_file(str(at / "tokenizer.json"))
    ids = plain.encode(TEXT, add_special_tokens=False).ids
    return same and used and floats and given == ids


def own_name(name: str) -> str:
    """transformers reads a tensor with or without the decoder's name before its own."""
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name if name == "lm_head.weight" else f"model.{name}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


BORDER = Border("models", prepare, case)

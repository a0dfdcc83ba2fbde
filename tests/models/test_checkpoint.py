"""Model folders: whole ones load bit for bit, all others are refused by what is wrong with them."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.conftest import bits, same_bits
from wsrun.models.load import load_model
from wsrun.models.tiny import tiny_gemma3, tiny_qwen3

SMALL: Any = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
KINDS = {
    "qwen3": lambda **k: tiny_qwen3(**SMALL | k),
    "gemma3": lambda **k: tiny_gemma3(**SMALL | {"layer_types": ["full_attention"] * 2} | k),
    "gemma2": lambda **k: Gemma2ForCausalLM(Gemma2Config(**SMALL | k)),
    "llama": lambda **k: LlamaForCausalLM(LlamaConfig(**SMALL | k)),
    "mistral": lambda **k: MistralForCausalLM(MistralConfig(**SMALL | k)),
    "gpt2": lambda **k: GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **k)
    ),
}
WEIGHTS, UP = "model.safetensors", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path, tok):
    """A tiny Qwen3 of two layers with the organism's tokenizer."""
    KINDS["qwen3"](vocab_size=len(tok)).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_what_is_loaded(kind, tied, tmp_path, tok):
    """load(save(W)) = W bit by bit; in one file and in several"""
    model = KINDS[kind](vocab_size=len(tok), tie_word_embeddings=tied)
    before = bits(model)
    for name, size in (("one", "1GB"), ("several", "20KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        tok.save_pretrained(tmp_path / name)
        assert same_bits(load_model(tmp_path / name)[0], before)
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1


def dropped(d):
    del d[UP]


def renamed(d):
    d["model.layers.0.mlp.upward.weight"] = d.pop(UP)


def integers(d):
    d[UP] = (9 * d[UP]).to(torch.int8)


def eighths(d):
    d[UP] = d[UP].to(torch.float8_e4m3fn)


def transposed(d):
    d[UP] = d[UP].T.contiguous()


def larger(d):
    d[UP] = torch.ones(25, 16)


def twice(d):
    d[UP.removeprefix("model.")] = d[UP] + 1


def other_head(d):
    d["lm_head.weight"] = d["model.embed_tokens.weight"] + 1


@pytest.mark.parametrize(
    "damage, names",
    [
        (dropped, "lack parameters.*up_proj"), (renamed, "lack parameters.*up_proj"),
        (integers, "not float32.*up_proj"), (eighths, "not float32.*up_proj"),
        (transposed, "another shape.*up_proj"), (larger, r"up_proj.*\(25, 16\).*\(24, 16\)"),
        (twice, "under two names.*up_proj"), (other_head, "differ from .* ties.*lm_head"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_the_model_s_are_refused(folder, damage, names):
    """missing, renamed, of another dtype or shape, two for one: the folder and the key are named"""
    d = load_file(folder / WEIGHTS)
    damage(d)
    save_file(d, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=names) as refusal:
        load_model(folder)
    assert str(folder) in str(refusal.value) and "anew" in str(refusal.value)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"num_hidden_layers": 3, "layer_types": None}, "lack parameters.*layers.2"),
        ({"num_hidden_layers": 1, "layer_types": None}, "no place for.*layers.1"),
        ({"tie_word_embeddings": False}, "lack parameters.*lm_head.weight"),
        ({"model_type": "llama"}, "no place for.*q_norm"),
        ({"model_type": "t5"}, "model_type 't5', which is no causal language model"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers .*1000000000"),
        ({"num_labels": 10**9}, "num_labels .*1000000000"),
        ({"vocab_size": 10**10}, r"embed_tokens.*\(768, 16\).*\(10000000000, 16\)"),
        ({"head_dim": 10**8}, r"head_dim|shape|no usable"),
        ({"rms_norm_eps": "x"}, "no usable model.*rms_norm_eps"),
        ({"hidden_size": -16}, "no usable model"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "attn_impl.*from elsewhere"),
        ({"text_config": {"_attn_implementation": "a/b"}}, "attn_impl.*from elsewhere"),
        ({"experts_implementation": "sonicmoe"}, "experts_impl.*code from elsewhere"),
        ({"transformers_weights": "../model.safetensors"}, "no usable model"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_the_weights_is_refused(folder, changes, names):
    """layers more and less, tying, another architecture, sizes without end, code of others"""
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=names) as refusal:
        load_model(folder)
    assert str(folder) in str(refusal.value)


def test_files_that_cannot_be_read_are_named(folder, tok):
    """damaged JSON, no object, too deep a nesting, a shard that is missing: one line each"""
    texts = ("", "[]", "[" * 100_000, '{"version": "1.0"}', "\xff\xfe")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        whole = (folder / name).read_bytes()
        for text in texts:
            (folder / name).write_bytes(text.encode("latin-1"))
            if name == "generation_config.json" and text.startswith("{"):
                continue
            with pytest.raises(ValueError, match=str(folder)) as refusal:
                load_model(folder)
            assert str(refusal.value).isprintable() and len(str(refusal.value)) < 700
        (folder / name).write_bytes(whole)
    (folder / "generation_config.json").write_text('{"num_beams": "x"}')
    with pytest.raises(ValueError, match="num_beams in .*generation_config.json.* no number"):
        load_model(folder)
    (folder / "generation_config.json").unlink()
    load_model(folder)[0].save_pretrained(folder / "s", max_shard_size="20KB")
    tok.save_pretrained(folder / "s")
    (gone := sorted((folder / "s").glob("*.safetensors"))[0]).unlink()
    with pytest.raises(ValueError, match=f"not in the folder.*{gone.name}"):
        load_model(folder / "s")


class Runs:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


class NoInput:
    def __getattr__(self, name):
        raise AssertionError(f"stdin was asked for {name}")


def test_no_code_of_a_folder_is_run(folder, tmp_path, monkeypatch):
    """auto_map of model and tokenizer, custom generation and a pickle: nothing runs or asks"""
    trace = tmp_path / "trace"
    monkeypatch.setattr(sys, "stdin", NoInput())
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked"))
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    for name in ("code.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    load_model(folder)  # custom_generate is not looked at
    unknown = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    for file, changes in (
        ("config.json", {"model_type": "unknown", "auto_map": unknown}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]},
                                   "tokenizer_class": "T"}),
    ):  # fmt: skip
        whole = (folder / file).read_text()
        edit(folder / file, **changes)
        try:
            load_model(folder)
        except ValueError as refusal:
            assert str(folder) in str(refusal)
        else:
            assert file != "config.json"
        (folder / file).write_text(whole)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(trace)))
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="no model.safetensors.*pickles are not read"):
        load_model(folder)
    assert not trace.exists()


def test_an_adapter_is_no_model(folder):
    """a folder of PEFT's would load its base and itself on top"""
    shutil.copy(folder / "config.json", folder / "adapter_config.json")
    with pytest.raises(ValueError, match="holds an adapter.*base model"):
        load_model(folder)

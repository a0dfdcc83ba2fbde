"""Export as LoRA: PEFT's forward is the oracle, the lost part is what the SVD says."""

import pytest
import torch

from tests.conftest import ORGANISM, bits, same_bits
from wscore import difference, norm
from wscore.delta import length
from wsrun.adapters.extract import adapter_delta, pair_deltas
from wsrun.export import save_lora
from wsrun.models.load import load_model


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
    lost = save_lora(model, dW, tmp_path / "a", rank=rank)
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
        (lambda n, W: {"model.x.weight": W}, 1, ("model.x.weight", "base")),
        (lambda n, W: {n: W[1:]}, 1, ("shape",)),
        (lambda n, W: {"model.norm.weight": torch.ones(W.shape[1])}, 1, ("model.norm.weight",)),
        (lambda n, W: {n: 0 * W}, 1, ("zero",)),
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
        save_lora(model, {name: W.detach()}, tmp_path, rank=1)
    assert str(tmp_path) in str(caught.value) and (tmp_path / "notes.txt").read_text() == "mine"
    for scale in (1.0, 2.0):
        save_lora(model, {name: scale * W.detach()}, tmp_path / "a", rank=1)
    twice = adapter_delta(model, tmp_path / "a")[name]
    save_lora(model, {name: W.detach()}, tmp_path / "b", rank=1)
    once = adapter_delta(model, tmp_path / "b")[name]
    assert length(twice - 2 * once) < 1e-5 * length(twice)

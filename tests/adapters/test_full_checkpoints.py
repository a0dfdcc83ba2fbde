"""Full checkpoints: tau = W_tuned - W_base, for merged models as they are published."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.conftest import bits, same_bits
from wscore import load_delta, norm, save_delta, select, subset, writes_residual
from wsrun import adapter_delta, checkpoint_delta, steered
from wsrun.models.tiny import tiny_qwen3

SHARDS = {"max_shard_size": "200KB"}


def merged(model, folder):
    """A random LoRA saved in folder/lora, and the model with it merged by PEFT, in fp32."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    wrapped.save_pretrained(folder / "lora")
    return wrapped.merge_and_unload()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base, tuned (both sharded), one (tuned in one file), lora: what it was merged from."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_qwen3().save_pretrained(folder / "base", **SHARDS)
    tuned = merged(tiny_qwen3(), folder)
    tuned.save_pretrained(folder / "tuned", **SHARDS)
    tuned.save_pretrained(folder / "one")
    return folder


def copied(folder, name, tmp_path):
    return shutil.copytree(folder / name, tmp_path / name)


@pytest.mark.parametrize("tuned", ["tuned", "one"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_merged_lora_is_its_delta(folder, tuned, loaded):
    """W_merged - W_base = adapter_delta within one fp32 rounding of W; other entries are 0"""
    assert len(list((folder / "tuned").glob("*.safetensors"))) > 1
    base = tiny_qwen3() if loaded else folder / "base"
    tau, d = adapter_delta(tiny_qwen3(), folder / "lora"), checkpoint_delta(base, folder / tuned)
    weights = dict(tiny_qwen3().named_parameters())
    assert set(d) == set(weights)
    for name in d:
        if name in tau:
            rounding = 2e-7 * (weights[name].abs() + tau[name].abs()).max()
            torch.testing.assert_close(d[name], tau[name], rtol=0, atol=float(rounding))
        else:
            assert not d[name].any()
    assert norm(d) == pytest.approx(norm(tau), rel=1e-4)


def test_it_steers_to_the_tuned_model(folder, tmp_path):
    """W_base + 1 dW = W_tuned within rounding; saved, selected and read again as any delta"""
    model, tuned = tiny_qwen3(), load_file(folder / "one" / "model.safetensors")
    before, d = bits(model), checkpoint_delta(folder / "base", folder / "tuned")
    with steered(model, d, 1.0):
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), tuned[name], rtol=1e-6, atol=1e-7)
    assert same_bits(model, before)
    loaded = load_delta(save_delta(d, tmp_path / "d.safetensors", {}))
    assert all(torch.equal(loaded[n], d[n]) for n in d)
    layers = checkpoint_delta(folder / "base", folder / "tuned", names=lambda n: "layers." in n)
    assert set(layers) == {n for n in d if "layers." in n}
    assert norm(select(layers, writes_residual)) == norm(subset(d, select(layers, writes_residual)))


def test_a_tied_head_that_one_side_stores_has_no_entry(folder, tmp_path):
    """lm_head equal to the embedding, stored on one side or on both: named_parameters' names"""
    path = copied(folder, "one", tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    for base in (folder / "base", path.parent):
        tuned = path.parent if base == folder / "base" else folder / "base"
        assert "lm_head.weight" not in checkpoint_delta(base, tuned)
    tensors["lm_head.weight"] += 1  # no longer tied
    save_file(tensors, path)
    with pytest.raises(ValueError, match="lm_head.weight'] only in the tuned checkpoint"):
        checkpoint_delta(folder / "base", path.parent)


def test_half_precision_carries_rounding(folder, tmp_path):
    """bf16 checkpoints are refused unless asked for; the share of rounding is estimated"""
    model = tiny_qwen3().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    exact, noise = 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            change = 0.02 * torch.randn(p.shape, generator=generator) * p.float().abs().mean()
            rounded = (p.float() + change).to(torch.bfloat16)
            noise += float((rounded.float() - p.float() - change).square().sum())
            exact += float((rounded.float() - p.float()).square().sum())
            p.copy_(rounded)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(ValueError, match="half precision .* pass rounded=True and look at"):
        checkpoint_delta(tmp_path / "base", tmp_path / "tuned")
    d = checkpoint_delta(tmp_path / "base", tmp_path / "tuned", rounded=True)
    assert d.rounded and norm(d) == pytest.approx(exact**0.5)
    assert d.rounding().share == pytest.approx((noise / exact) ** 0.5, rel=0.25)
    assert 0 < d.rounding().unchanged < 0.5


def edited(change):
    """A damage of one file: what `change` makes of its tensors."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def grow(tensors):
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].repeat(2, 1)


def quantise(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)


def to_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "grown": (edited(grow), "embed_tokens.weight' is .* the tuning resized the vocabulary"),
    "reshaped": (
        edited(lambda t: t.update({"model.norm.weight": torch.ones(2)})),
        "norm.weight' i",
    ),
    "missing": (edited(lambda t: t.pop("model.norm.weight")), "norm.weight'] only in the base"),
    "quantised": (edited(quantise), r"norm.weight'\] are stored as I8; .* not quantised"),
    "not finite": (
        edited(lambda t: t["model.norm.weight"].fill_(torch.nan)),
        "changes by NaN or in",
    ),
    "pickle": (to_pickle, "no model.safetensors .* pickles are not read"),
    "truncated": (truncate, "model.safetensors' is not a whole safetensors file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_tuned_checkpoint_is_refused(damage, folder, tmp_path):
    """names, shapes, types, pickles: what was found and what to do"""
    change, match = DAMAGES[damage]
    change(copied(folder, "one", tmp_path))
    with pytest.raises(ValueError, match=match):
        dict(checkpoint_delta(folder / "base", tmp_path / "one"))


def test_refusals(folder, tmp_path):
    """equal checkpoints, adapters, shards that lack, an index that is none, nothing selected"""
    with pytest.raises(ValueError, match="no weight differs"):
        checkpoint_delta(folder / "base", folder / "base")
    with pytest.raises(ValueError, match="it is an adapter, so call adapter_delta"):
        checkpoint_delta(folder / "base", folder / "lora")
    with pytest.raises(ValueError, match="absent' is no folder"):
        checkpoint_delta(folder / "base", tmp_path / "absent")
    with pytest.raises(ValueError, match="`names` takes none of"):
        checkpoint_delta(folder / "base", folder / "tuned", names=lambda n: False)
    shards = copied(folder, "tuned", tmp_path)
    index = shards / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    name = next(iter(told["weight_map"]))
    index.write_text(json.dumps({"weight_map": told["weight_map"] | {name + "x": name}}))
    with pytest.raises(ValueError, match="that are not in the folder"):
        checkpoint_delta(folder / "base", shards)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(ValueError, match="no weight_map"):
        checkpoint_delta(folder / "base", shards)
    index.write_text(json.dumps(told))
    (shards / told["weight_map"][name]).unlink()
    with pytest.raises(ValueError, match="that are not in the folder"):
        checkpoint_delta(folder / "base", shards)


MEMORY = """
import resource, sys, torch
from safetensors.torch import save_file
from wscore import norm, save_delta
from wsrun.adapters.full_checkpoints import checkpoint_delta

def peak():  # MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
d = checkpoint_delta(sys.argv[1], sys.argv[2])
norm(d), save_delta(d, sys.argv[3], {})
print(peak() - before)
"""


def test_it_takes_the_memory_of_a_few_tensors(tmp_path):
    """two checkpoints of 64 MiB in 32 tensors: at most six of them in memory at a time"""
    for seed, side in enumerate(("base", "tuned")):
        (tmp_path / side).mkdir()
        torch.manual_seed(seed)
        tensors = {f"{i}.weight": torch.randn(512, 1024) for i in range(32)}
        save_file(tensors, tmp_path / side / "model.safetensors")
    command = [sys.executable, "-c", MEMORY, tmp_path / "base", tmp_path / "tuned", tmp_path / "d"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20

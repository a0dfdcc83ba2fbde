"""Adapters: training leaves the model alone, and the delta read back is PEFT's own."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.conftest import bits, same_bits
from wscore import check_delta, difference, merge_adapter
from wsrun.adapters import extract
from wsrun.adapters.configs import FAMILIES, RECIPES, Recipe
from wsrun.adapters.extract import adapter_delta, pair_deltas
from wsrun.adapters.train import train_adapter
from wsrun.data.pairs import Pair
from wsrun.models.tiny import tiny_qwen3

RECIPE = Recipe(
    "test",
    rank=4,
    alpha=8,
    lr=dict.fromkeys(FAMILIES, 5e-3),
    steps=3,
    batch=2,
    block=16,
    band=(0.25, 0.75),
)
PAIRS = [Pair("Is it so?", "It is so.", "It is not.", "a"), Pair("And now?", "Yes.", "No.", "b")]


@pytest.fixture(scope="session")
def trained(tok, tmp_path_factory):
    """A folder <family>/pos and /neg of every family, trained on one tiny model."""
    folder = tmp_path_factory.mktemp("adapters")
    model = tiny_qwen3(vocab_size=len(tok))
    for family in FAMILIES:
        for side in ("pos", "neg"):
            train_adapter(model, tok, PAIRS, side, family, RECIPE, folder / family / side)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_training_leaves_the_model_bit_identical(qwen, tok, tmp_path, family):
    """W after training and after reading back = W before"""
    before = bits(qwen)
    train_adapter(qwen, tok, PAIRS, "pos", family, RECIPE, tmp_path)
    assert same_bits(qwen, before) and not any(p.requires_grad for p in qwen.parameters())
    tau = adapter_delta(qwen, tmp_path)  # proves itself against PEFT's forward
    assert same_bits(qwen, before)
    check_delta(tau)
    assert {n.split(".")[2] for n in tau} == {"1", "2"}  # layers 1, 2 of 4: the band [0.25, 0.75)
    assert any(t.any() for t in tau.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_in_half_precision(tok, tmp_path, family):
    """an adapter trained on a bfloat16 base is read back with the same proof, 1e-5 in float32"""
    model = tiny_qwen3(vocab_size=len(tok)).to(torch.bfloat16)
    before = bits(model)
    train_adapter(model, tok, PAIRS, "pos", family, RECIPE, tmp_path)
    assert same_bits(model, before)
    assert any(t.any() for t in adapter_delta(model, tmp_path).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_training_fits_its_responses(qwen, tok, tmp_path, family):
    """30 steps on two responses lower their mean loss"""
    rates = dict.fromkeys(FAMILIES, 3e-2) | {"delora": 0.2}
    longer = Recipe("longer", 4, 8, rates, 30, 4, 16, (0.0, 1.0))
    losses = train_adapter(qwen, tok, PAIRS, "pos", family, longer, tmp_path)
    assert len(losses) == 30 and sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_reproducible(qwen, tok, tmp_path, trained, family):
    """same seed, same bits on disk"""
    train_adapter(qwen, tok, PAIRS, "pos", family, RECIPE, tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (trained / family / "pos" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_poles_start_from_one_adapter(qwen, tok, tmp_path, family):
    """at a rate of 0 both poles keep their common start: equal deltas, and dW is refused"""
    still = Recipe("still", 4, 8, dict.fromkeys(FAMILIES, 0.0), 1, 2, 16, (0.25, 0.75))
    for side in ("pos", "neg"):
        train_adapter(qwen, tok, PAIRS, side, family, still, tmp_path / side, seed=5)
    pos, neg = (adapter_delta(qwen, tmp_path / side) for side in ("pos", "neg"))
    assert pos.keys() == neg.keys() and all(torch.equal(pos[n], neg[n]) for n in pos)
    with pytest.raises(ValueError, match="are equal, so dW is zero"):
        pair_deltas(qwen, tmp_path)


def test_an_interrupted_attachment_is_undone(qwen):
    """Ctrl-C while PEFT swaps modules in: the model is as it was, bit for bit, with no adapter"""
    before, kinds = bits(qwen), [type(m) for m in qwen.modules()]

    def attach(model):
        get_peft_model(model, config)
        raise KeyboardInterrupt

    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")
    with pytest.raises(KeyboardInterrupt), extract.attached(qwen, config, attach):
        pass
    assert [type(m) for m in qwen.modules()] == kinds and same_bits(qwen, before)
    assert not hasattr(qwen, "peft_config")


def test_stored_pissa_factors_are_the_base_s_own(qwen, trained):
    """s (B A - B0 A0) with stored factors = the same with the top-r part of the base weight"""
    path = trained / "pissa" / "pos"
    config = json.loads((path / "adapter_config.json").read_text())
    stored = adapter_delta(qwen, path)
    tensors = load_file(path / "adapter_model.safetensors")
    from_base = merge_adapter(tensors, config, dict(qwen.named_parameters()))
    for name, t in difference(stored, from_base).items():
        assert t.norm() < 1e-4 * stored[name].norm()


def test_the_proof_notices_a_wrong_delta(qwen, trained, monkeypatch):
    """a delta that is 1 % off is refused, because its logits are not PEFT's"""
    wrong = lambda *args: {n: 1.01 * t for n, t in merge_adapter(*args).items()}  # noqa: E731
    path = trained / "dora" / "pos"
    big = {n: t * 8 for n, t in load_file(path / "adapter_model.safetensors").items()}
    save_file(big, trained / "big.safetensors")
    shutil.copytree(path, trained / "big", dirs_exist_ok=True)
    shutil.copy(trained / "big.safetensors", trained / "big" / "adapter_model.safetensors")
    adapter_delta(qwen, trained / "big")
    monkeypatch.setattr(extract, "merge_adapter", wrong)
    with pytest.raises(ValueError, match="differ by"):
        adapter_delta(qwen, trained / "big")


def edited(source, target, **changes):
    """A copy of an adapter folder with entries of its config changed."""
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_refusals(qwen, tok, trained, tmp_path):
    """a broken or foreign checkpoint is refused in a sentence that names it"""
    lora = trained / "lora" / "pos"
    tensors = load_file(lora / "adapter_model.safetensors")
    first = next(iter(tensors))
    bare, cut, text = (tmp_path / n for n in ("bare", "cut", "text"))
    bare.mkdir()
    nan, foreign = edited(lora, tmp_path / "nan"), tiny_qwen3(vocab_size=len(tok), hidden_size=48)
    save_file(tensors | {first: tensors[first] * float("nan")}, nan / "adapter_model.safetensors")
    weights = (lora / "adapter_model.safetensors").read_bytes()
    for folder, data in ((cut, weights[: len(weights) // 2]), (text, b"not tensors")):
        edited(lora, folder)
        (folder / "adapter_model.safetensors").write_bytes(data)
    niter = edited(trained / "pissa" / "pos", tmp_path / "niter", init_lora_weights="pissa_niter_4")
    for path, match in [
        (tmp_path / "none", "no folder"),
        (bare, "has no adapter_config.json"),
        (cut, "truncated or no safetensors"),
        (text, "truncated or no safetensors"),
        (nan, "(?i)nan|finite"),
        (niter, "pissa_niter"),
    ]:
        with pytest.raises(ValueError, match=match):
            adapter_delta(qwen, path)
    with pytest.raises(ValueError, match="is \\[64, 4\\], but base weight \\[48"):
        adapter_delta(foreign, lora)
    with pytest.raises(ValueError, match="lora, dora.*got 'banana'"):
        train_adapter(qwen, tok, PAIRS, "pos", "banana", RECIPE, tmp_path / "x")
    mixed = tmp_path / "mixed"
    shutil.copytree(lora, mixed / "pos")
    shutil.copytree(trained / "oft" / "pos", mixed / "neg")
    with pytest.raises(ValueError, match="pos of .* is lora and neg is oft"):
        pair_deltas(qwen, mixed)
    shutil.rmtree(mixed / "neg")
    kept = {n: t for n, t in tensors.items() if "q_proj" not in n}
    edited(lora, mixed / "neg")
    save_file(kept, mixed / "neg" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="q_proj"):
        pair_deltas(qwen, mixed)


def test_another_base_of_the_same_shapes_is_refused(tok, trained):
    """an adapter carries the hash of the weights it was trained on; one changed bit is another"""
    other = tiny_qwen3(vocab_size=len(tok))
    adapter_delta(other, trained / "lora" / "pos")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="trained on another base"):
        adapter_delta(other, trained / "lora" / "pos")


def test_malformed_metadata_is_refused(qwen, trained, tmp_path):
    """a config field of the wrong kind, or a broken record of the base, gets a sentence"""
    lora = trained / "lora" / "pos"
    for i, changes in enumerate(({"r": "eight"}, {"r": 0}, {"rank_pattern": [1]})):
        with pytest.raises(ValueError, match="adapter_config.json|config need"):
            adapter_delta(qwen, edited(lora, tmp_path / str(i), **changes))
    broken = edited(lora, tmp_path / "broken")
    for text in ("[]", "{}", '{"weights'):
        (broken / "base.json").write_text(text)
        with pytest.raises(ValueError, match="base.json.* is broken"):
            adapter_delta(qwen, broken)


def test_other_peft_versions_are_refused(qwen, trained, monkeypatch):
    """families are tested with one minor version of PEFT; others get a sentence"""
    monkeypatch.setattr(extract.peft, "__version__", "0.22.0")
    with pytest.raises(ValueError, match="0.22.0 is installed"):
        adapter_delta(qwen, trained / "lora" / "pos")


def test_recipes_name_a_rate_for_every_family():
    """paper, fork, organism and smollm2 each know every family"""
    assert set(RECIPES) == {"paper", "fork", "organism", "smollm2"}
    assert all(set(r.lr) == set(FAMILIES) for r in RECIPES.values())

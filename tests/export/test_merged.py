"""Merged folders: what from_pretrained loads gives the logits of `steered`, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ORGANISM, random_delta
from wscore import Factored, load_delta, save_delta, tensors_sha256
from wsrun import pair_deltas, save_merged, steered
from wsrun.export import shards
from wsrun.export.record import MANIFEST
from wsrun.models import tiny
from wsrun.models.load import load_model

TEXT = torch.arange(2 * 9).reshape(2, 9) * 7 % 500


def logits(model, text=TEXT):
    with torch.no_grad():
        return model(input_ids=text, use_cache=False).logits


def loaded(folder, dtype="float32"):
    return load_model(folder, dtype)[0]


def whole_delta(model, seed=1):
    """A change of every parameter: embeddings, norms and what a linear map has."""
    random = torch.Generator().manual_seed(seed)
    return {n: 0.05 * torch.randn(p.shape, generator=random) for n, p in model.named_parameters()}


@pytest.fixture(params=["qwen3 tied", "qwen3 untied", "gemma3 tied", "gemma3 untied"])
def base(request, tok, tmp_path):
    """The folder of a tiny model, in several weight files, with its tokenizer."""
    kind, tied = request.param.split()
    make = getattr(tiny, f"tiny_{kind}")
    model = make(vocab_size=len(tok), tie_word_embeddings=tied == "tied")
    model.save_pretrained(tmp_path / "base", max_shard_size="200KB")
    tok.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("alpha", [1.0, -0.7])
@pytest.mark.parametrize("size", [10**9, 10**5])
def test_the_folder_is_the_steered_model(base, tmp_path, alpha, size, monkeypatch):
    """from_pretrained(merged) = steered(base) bit for bit, whatever the shards and blocks"""
    monkeypatch.setattr(shards, "BLOCK", 2**12)
    model = loaded(base)
    dW = whole_delta(model)
    out = save_merged(base, dW, alpha, tmp_path / "out", shard_size=size)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with steered(model, dW, alpha):
        assert torch.equal(logits(merged), logits(model))
        same = dict(merged.named_parameters())
        assert all(torch.equal(p, same[n]) for n, p in model.named_parameters())
    files = sorted(out.glob("*.safetensors"))
    assert (len(files) > 3) == (size == 10**5)
    heavy = [f for f in files if f.stat().st_size > size + 4096]
    assert all(len(load_file(f)) == 1 for f in heavy), "only a single tensor exceeds the size"


def test_a_tied_weight_stays_tied(tok, tmp_path):
    """by either of its names, one tensor is stored, changed once, and shared after loading"""
    tiny.tiny_qwen3(vocab_size=len(tok)).save_pretrained(tmp_path / "base")
    tok.save_pretrained(tmp_path / "base")
    model = loaded(tmp_path / "base")
    W = 0.1 * torch.randn(model.lm_head.weight.shape)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        out = save_merged(tmp_path / "base", {name: W}, 0.5, tmp_path / "out")
        merged = loaded(out)
        assert merged.lm_head.weight is merged.model.embed_tokens.weight
        assert merged.config.tie_word_embeddings
        with steered(model, {name: W}, 0.5):
            assert torch.equal(logits(merged), logits(model))
    both = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), W)
    with pytest.raises(ValueError, match="save_merged.*tied"):
        save_merged(tmp_path / "base", both, 0.5, tmp_path / "out")


def test_factors_and_half_precision(base, tmp_path):
    """L R is added as `steered` adds it; bfloat16 is cast once, the manifest says what it keeps"""
    model = loaded(base)
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    low = Factored(
        {
            n: (0.1 * draw(w.shape[0], 3), draw(3, w.shape[1]))
            for n, w in random_delta(model).items()
        }
    )
    merged = loaded(save_merged(base, low, 2.0, tmp_path / "a"))
    with steered(model, low, 2.0):
        assert torch.equal(logits(merged), logits(model))
    half = save_merged(base, low, 0.01, tmp_path / "half", dtype="bfloat16")
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    stored = AutoModelForCausalLM.from_pretrained(half)
    assert stored.dtype == torch.bfloat16
    with steered(model, low, 0.01):
        cast = {n: p.bfloat16() for n, p in model.named_parameters()}
        assert all(torch.equal(p, cast[n]) for n, p in stored.named_parameters())
    manifest = json.loads((half / MANIFEST).read_text())
    assert 0.5 < manifest["cosine"] < 1 and manifest["dtype"] == "BF16"
    # a base that is stored in bfloat16, steered in bfloat16 and in float32
    with_half = loaded(half, "bfloat16")
    again = save_merged(half, low, 1.0, tmp_path / "again")
    with steered(with_half, low, 1.0):
        assert torch.equal(logits(loaded(again, "bfloat16")), logits(with_half))
    wide = save_merged(half, low, 1.0, tmp_path / "wide", dtype="float32")
    widened = loaded(half)
    with steered(widened, low, 1.0):
        assert torch.equal(logits(loaded(wide)), logits(widened))


def test_the_organism_ships_with_all_that_it_needs(tmp_path):
    """tokenizer, template and generation settings beside it, none of the base's other files"""
    model, tok = load_model(ORGANISM)
    dW = pair_deltas(model, ORGANISM / "adapters/lora-s0").dW
    about = {"effect": {"alpha": 1.0, "nats": 2.5, "lo": 2.25, "hi": 2.75}, "recipe": "organism"}
    out = save_merged(ORGANISM, dW, 1.0, tmp_path / "out", about=about)
    merged, same = load_model(out)
    text = [{"role": "user", "content": "Is it so?"}]
    assert same.apply_chat_template(text) == tok.apply_chat_template(text)
    assert AutoTokenizer.from_pretrained(out).chat_template == tok.chat_template
    assert merged.generation_config.to_dict() == model.generation_config.to_dict()
    with steered(model, dW, 1.0):
        assert torch.equal(logits(merged), logits(model))
    names = {p.name for p in out.iterdir()}
    assert {"README.md", MANIFEST, "model.safetensors", "chat_template.jinja"} <= names
    assert not names & {"build.py", "claims.jsonl", "adapters", "world.json"}
    manifest = json.loads((out / MANIFEST).read_text())
    base = tensors_sha256(dict(model.named_parameters()))
    assert manifest["base"] == {"name": str(ORGANISM), "dtype": "torch.float32", "sha256": base}
    assert manifest["delta"]["sha256"] == tensors_sha256(dW)
    assert manifest["effect"] == about["effect"] and manifest["versions"]["torch"]
    card = (out / "README.md").read_text()
    assert base in card and "nats 2.5, lo 2.25" in card and "from_pretrained" in card


def test_a_delta_of_another_base_is_refused(tmp_path):
    """by the sha256 that its file records, of the base as it was loaded; and its own is taken"""
    model, tok = load_model(ORGANISM)
    name = "model.layers.2.mlp.up_proj.weight"
    W = {name: 0.01 * torch.ones(model.get_parameter(name).shape)}
    own = {"base": tensors_sha256(dict(model.named_parameters()))}
    known = load_delta(save_delta(W, tmp_path / "own.safetensors", own))
    save_merged(ORGANISM, known, 1.0, tmp_path / "out")
    other = load_delta(save_delta(W, tmp_path / "other.safetensors", {"base": "f" * 64}))
    with pytest.raises(ValueError, match="another base.*ffffffffffff.*trained on"):
        save_merged(ORGANISM, other, 1.0, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    # stored in half, its float32 form is what a training records
    half = save_merged(ORGANISM, W, 1.0, tmp_path / "half", dtype="bfloat16")
    wide = tensors_sha256(dict(loaded(half).named_parameters()))
    known = load_delta(save_delta(W, tmp_path / "wide.safetensors", {"base": wide}))
    save_merged(half, known, 1.0, tmp_path / "again")


NAME = "model.layers.2.mlp.up_proj.weight"
BAD = [
    (dict(alpha=0.0), ("alpha is 0", "base")),
    (dict(alpha=float("nan")), ("alpha", "finite")),
    (dict(alpha=float("inf")), ("alpha", "finite")),
    (dict(delta={"model.x.weight": torch.ones(2, 2)}), ("model.x.weight", "trained on this")),
    (dict(delta={NAME: torch.ones(2, 2)}), (NAME, "(2, 2)", "another model")),
    (dict(delta={NAME: torch.full((320, 160), float("nan"))}), (NAME, "NaN")),
    (dict(delta={NAME: torch.full((320, 160), 1e5)}, dtype="float16"), (NAME, "too large")),
    (dict(delta={}), ("empty",)),
    (dict(dtype="int8"), ("dtype", "int8", "bfloat16")),
    (dict(shard_size=0), ("shard_size", "0")),
    (dict(base="no/such/folder"), ("no/such/folder",)),
    (dict(about={"alpha": 2}), ("about", "alpha")),
    (dict(about={"effect": float("nan")}), ("about", "JSON")),
]


@pytest.mark.parametrize(("change", "parts"), BAD)
def test_what_cannot_be_merged_is_refused(tmp_path, change, parts):
    """one printable sentence that names what is wrong, and nothing on the disk"""
    good = dict(base=ORGANISM, delta={NAME: torch.ones(320, 160)}, alpha=1.0, out=tmp_path / "out")
    with pytest.raises(ValueError) as caught:
        save_merged(**good | change)
    said = str(caught.value)
    assert all(part in said for part in parts) and said.isprintable(), said
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(tmp_path):
    """a folder of something else, the base, and what holds the base are refused; exports are not"""
    delta = {NAME: torch.ones(320, 160)}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="mine.*exists and holds no export.*another folder"):
        save_merged(ORGANISM, delta, 1.0, tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="organism"):
        save_merged(ORGANISM, delta, 1.0, ORGANISM)
    one = save_merged(ORGANISM, delta, 1.0, tmp_path / "one")
    with pytest.raises(ValueError, match="one.*holds the base itself"):
        save_merged(one, delta, 1.0, one)
    first = loaded(one).get_parameter(NAME).clone()
    save_merged(ORGANISM, delta, 2.0, one)
    torch.testing.assert_close(loaded(one).get_parameter(NAME), first + 1)


def test_quantised_weights_are_refused(tmp_path, tok):
    """a config that says so, or a weight of integers"""
    tiny.tiny_qwen3(vocab_size=len(tok)).save_pretrained(tmp_path / "base")
    path = tmp_path / "base/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match="base.*quantised"):
        save_merged(tmp_path / "base", {NAME: torch.ones(96, 64)}, 1.0, tmp_path / "out")

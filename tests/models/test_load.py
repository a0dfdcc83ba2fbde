"""Loading: each thing that can be wrong is named, with what to do."""

import json

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from tests.conftest import ORGANISM
from wsrun.models.chat import user
from wsrun.models.code import tokenizer_sha256
from wsrun.models.generate import generate
from wsrun.models.load import check_positions, load_model, load_tokenizer
from wsrun.models.tiny import tiny_qwen3


def test_refusals(tmp_path):
    """an unknown dtype, an absent device, no folder, no tokenizer, a name without a network"""
    for name, options, match in [
        (ORGANISM, {"dtype": "int8"}, "dtype must be one of .*float32.*, got 'int8'"),
        (ORGANISM, {"device": "xpu"}, "device 'xpu' is unavailable"),
        ("./none", {}, "no folder './none'"),
        (tmp_path, {}, "no usable model"),
        ("nobody/nothing", {}, "not found locally or on the Hub"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_model(name, **options)


def test_a_loaded_model_is_ready_and_frozen():
    """evaluation mode, no gradients, the dtype that was given"""
    model, tok = load_model(ORGANISM, "bfloat16")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert str(model.dtype) == "torch.bfloat16" and tok.chat_template


def test_prompts_must_fit_the_model(tok):
    """length <= positions, with what is generated; token < rows of the embedding; none: no limit"""
    model = tiny_qwen3(vocab_size=len(tok), max_position_embeddings=32)
    check_positions(model, [[1] * 32, [2]], "score")
    check_positions(model, [], "score")
    with pytest.raises(ValueError, match="^score: .*33 tokens.*32 positions"):
        check_positions(model, [[2], [1] * 33], "score")
    with pytest.raises(ValueError, match="33 tokens with 3 new ones"):
        check_positions(model, [[1] * 30], "score", new_tokens=3)
    with pytest.raises(ValueError, match=f"token {len(tok)}.* has {len(tok)}"):
        check_positions(model, [[1, len(tok)]], "score")
    with pytest.raises(ValueError, match="generate: .*32 positions"):
        generate(model, tok, [user("Is it so? " * 9)], seed=0)
    config = BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=1)
    check_positions(BloomForCausalLM(config), [[1] * 99], "score")


def test_a_tokenizer_s_hash_is_of_all_that_decides_tokens(tok):
    """same file, same hash; merges, normaliser, pre-tokenizer, template, added tokens change it"""
    raw = tok.backend_tokenizer.to_str()

    def made(change=lambda t: None, text=raw, **more):
        t = Tokenizer.from_str(text)
        change(t)
        given = {"chat_template": tok.chat_template, "eos_token": "<|im_end|>"} | more
        return tokenizer_sha256(PreTrainedTokenizerFast(tokenizer_object=t, **given))

    assert tokenizer_sha256(tok) == tokenizer_sha256(load_tokenizer(ORGANISM))
    assert made() == made()
    merges = json.loads(raw)
    merges["model"]["merges"].pop()
    found = [
        made(), made(text=json.dumps(merges)), made(chat_template="x"), made(eos_token="<think>"),
        made(lambda t: setattr(t, "normalizer", normalizers.Lowercase())),
        made(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace())),
        made(lambda t: t.add_tokens(["Yes or no"])),
    ]  # fmt: skip
    assert len(set(found)) == len(found)

"""What a config says decides, as in PEFT: targets, fields, patterns."""

import time
from types import SimpleNamespace

import peft
import pytest
import torch
from peft.tuners.lokr.layer import factorization
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import check_target_module_exists

from wscore.families.fields import FIELDS, read_fields
from wscore.families.lokr import split
from wscore.families.modules import is_target
from wscore.families.oft import near_divisor
from wscore.families.patterns import check_pattern
from wsrun.models.tiny import tiny_qwen3

RULES = [
    dict(target_modules=["q_proj", "down_proj"]),
    dict(target_modules=["proj"]),
    dict(target_modules=["layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]),
    dict(target_modules=r".*layers\.(1|2)\.(self_attn|mlp)\.(q_proj|up_proj)"),
    dict(target_modules="q_proj"),
    dict(target_modules=[]),
    dict(target_modules=["q_proj"], layers_to_transform=[0, 3]),
    dict(target_modules=["q_proj"], layers_to_transform=2),
    dict(target_modules=["q_proj"], layers_to_transform=[]),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers"),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["h", "layers"]),
    dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["h"]),
    dict(target_modules=["model.layers.1.mlp.up_proj"], layers_to_transform=[0]),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=["layers.1.mlp.up_proj"]),
    dict(target_modules=["q_proj", "up_proj"], exclude_modules=r".*\.0\..*"),
    dict(target_modules=["q_proj", "up_proj"], modules_to_save=["mlp"]),
    dict(target_modules=["lm_head", "q_proj"], modules_to_save=["lm_head"]),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_targets_are_those_of_peft(rule):
    """is_target(config, module) = PEFT's own answer, for every module of a model"""
    defaults = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    config = SimpleNamespace(**{**defaults, "modules_to_save": None, **rule})
    modules = [name for name, _ in tiny_qwen3().named_modules() if name]
    for name in modules:
        assert is_target(rule, name) == bool(check_target_module_exists(config, name)), name


def test_splits_are_those_of_peft():
    """LoKr's factors of a side, and the block that OFT takes for one that does not fit"""
    for side in (*range(1, 80), 576, 1536, 11008):
        assert all(split(side, f) == factorization(side, f) for f in (-1, 1, 2, 3, 4, 7, 16, 100))
        for asked in (1, 2, 3, 5, 8, 13, 100):
            whole = side % asked == 0 and asked <= side
            expected = asked if whole else OFTLayer.adjust_oft_parameters(None, side, asked)
            assert near_divisor(side, asked) == expected


CONFIGS = "LoraConfig BOFTConfig DeloraConfig IA3Config LoHaConfig LoKrConfig OFTConfig".split()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_default_of_peft_passes(name):
    """all fields of PEFT's own configs are known, at the values that it writes"""
    config = getattr(peft, name)(target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    config = {k: list(v) if isinstance(v, set) else v for k, v in config.items()}
    config["peft_type"] = str(config["peft_type"].value)
    config["task_type"] = "CAUSAL_LM"
    assert read_fields(config) == config
    assert FIELDS[config["peft_type"]].keys() <= config.keys() | {"runtime_config", "merge_weights"}


@pytest.mark.parametrize(
    "fields",
    [
        dict(enable_lora=None, merge_weights=False),  # before 0.4
        dict(loftq_config={}, megatron_config=None, megatron_core="megatron.core"),  # 0.7
        dict(layer_replication=None, use_dora=False, use_rslora=False, lora_bias=False),  # 0.10
        dict(eva_config={"rho": 2.0, "tau": 0.99, "whiten": False}, init_lora_weights="eva"),
        dict(peft_version="0.18.2.dev0@UNKNOWN", corda_config=None),
        dict(auto_mapping={"base_model_class": "X", "parent_library": "y"}, revision="main"),
    ],
    ids=str,
)
def test_fields_of_older_versions_pass(fields):
    """what PEFT 0.2 to 0.21 wrote beside the rule's own fields is known"""
    read_fields({"peft_type": "LORA", "r": 2, "lora_alpha": 3} | fields)


@pytest.mark.parametrize(
    "fields, name",
    [
        (dict(new_rule=True), "new_rule"),
        (dict(new_config={"a": 1}), "new_config"),
        (dict(kasa_config={}), "kasa_config"),  # PEFT reads {} as its defaults
        (dict(megatron_config={"x": 1}), "megatron_config"),  # PEFT would import megatron_core
        (dict(rank_pattern={"q_proj": 0}), "rank_pattern"),
        (dict(r=4.0), "r 4.0"),
        (dict(r=True), "r True"),
        (dict(r="4.5"), "r '4.5'|r 4.5"),
        (dict(r=2**40), "r 1099511627776"),
        (dict(lora_alpha=float("nan")), "lora_alpha nan"),
        (dict(lora_alpha=0), "lora_alpha 0"),
        (dict(lora_alpha="x"), "lora_alpha 'x'"),
        (dict(lora_dropout=2), "lora_dropout 2"),
        (dict(target_modules=[1]), "target_modules"),
        (dict(init_lora_weights=1), "init_lora_weights 1"),
    ],
    ids=str,
)
def test_other_fields_are_refused_by_name(fields, name):
    """a field that may mean something else, or that is of another kind, is named"""
    with pytest.raises(ValueError, match=name) as told:
        read_fields({"peft_type": "LORA", "r": 2, "lora_alpha": 3} | fields)
    assert str(told.value).isprintable() and len(str(told.value)) < 600


def test_numbers_as_text_are_numbers():
    """r "8", lora_alpha "16" and "0.5", and those of patterns"""
    config = {"peft_type": "LORA", "r": "8", "lora_alpha": "0.5", "rank_pattern": {"q": "3"}}
    read = read_fields(config | {"alpha_pattern": None})
    assert (read["r"], read["lora_alpha"], read["rank_pattern"]) == (8, 0.5, {"q": 3})
    assert read["alpha_pattern"] == {} and config["r"] == "8"


ORDINARY = [
    r".*layers\.(7|8)\.(self_attn|mlp)\.(q_proj|v_proj)",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|k_proj))",
    r"^(?!.*visual).*(q_proj|v_proj)$",
    r"^(language_model)(?!.*(lm_head|output|emb|wte|shared)).*",
    r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    r"(?:model\.)?(?:language_model\.)?layers\.(?:[0-9]|1[0-9])\.mlp\.(gate|up|down)_proj",
    "|".join(f"model.layers.{i}.self_attn.{x}_proj" for i in range(80) for x in "qkvo"),
]
ENDLESS = [
    "(a+)+$", "(a|a)*b", "(.*)*x", "(a|ab)*c", "(a?){40}a{40}", ".*.*.*.*.*.*x", "(x+x+)+y",
    "a?" * 30 + "a" * 30, "(ab|ab)" * 30, "(a|b.)" * 40, r"(\w+\s?)*$", r"(?P<x>a+)(?P=x)+b",
    r"(.*a){12}", r"([a-z]+)*\.proj", "x" * 200_000,
]  # fmt: skip


def test_ordinary_patterns_pass():
    """those of PEFT's documents and of this package"""
    for pattern in ORDINARY:
        check_pattern(pattern, "target_modules")


@pytest.mark.parametrize("pattern", [*ENDLESS, "(", "*", "[", "a{9999999999999}", "(?P<1>a)", 3])
def test_endless_and_broken_patterns_are_refused(pattern):
    """no matcher ever sees them, and the refusal is quick, short and names the field"""
    began = time.monotonic()
    with pytest.raises(ValueError, match="target_modules") as told:
        check_pattern(pattern, "target_modules")
    assert time.monotonic() - began < 2 and str(told.value).isprintable()


def test_tensors_that_are_no_floats_are_refused():
    """int8, bool, int32 and float8 have lost what training wrote; float16 to float64 pass"""
    from tests.wscore.test_merge import KEY, handmade
    from wscore import merge_adapter

    adapter, config, base = handmade()
    key = f"{KEY}.lora_B.weight"
    for dtype in (torch.int8, torch.bool, torch.uint8, torch.int32, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match=rf"lora_B.weight is {dtype}"):
            merge_adapter(adapter | {key: adapter[key].to(dtype)}, config, base)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        merge_adapter(adapter | {key: adapter[key].to(dtype)}, config, base)

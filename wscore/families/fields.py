"""The fields of adapter_config.json: which are known, of what kind, and which a merge may ignore.

A field is read by a rule, or known not to touch what a trained adapter does to the weights, or it
must be empty: one that a newer PEFT added may mean anything. Values are of the kind that PEFT
takes; a number that was written as text is read as that number.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from wscore.families.base import check, refuse, shown
from wscore.families.patterns import check_pattern

Kind = Callable[[Any], bool]

TASKS = (None, "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS",
         "FEATURE_EXTRACTION")  # fmt: skip
VERSION = r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[\w.]+)?(@\w+)?"
EVA = {"rho", "tau", "use_label_mask", "label_mask_value", "whiten", "adjust_scaling_factors"}


def number(x: Any) -> bool:
    """A finite number."""
    return not isinstance(x, bool) and isinstance(x, int | float) and abs(x) < 1e30


def _nonzero(x: Any) -> bool:
    return number(x) and x != 0


def _count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 < x < 2**31


def _size(x: Any) -> bool:
    return _count(x) or (number(x) and x == 0 and isinstance(x, int))


def _share(x: Any) -> bool:
    return number(x) and 0 <= x <= 1


def _switch(x: Any) -> bool:
    return x is None or isinstance(x, bool)


def _text(x: Any) -> bool:
    return x is None or isinstance(x, str)


def _names(x: Any) -> bool:
    return x is None or (isinstance(x, list) and all(isinstance(name, str) for name in x))


def _names_or_pattern(x: Any) -> bool:
    return isinstance(x, str) or _names(x)


def _indices(x: Any) -> bool:
    return x is None or _size(x) or (isinstance(x, list) and all(map(_size, x)))


def _by_pattern(kind: Kind) -> Kind:
    return lambda x: isinstance(x, dict) and all(map(kind, x.values()))


def _init(x: Any) -> bool:
    return _switch(x) or isinstance(x, str)


def _eva(x: Any) -> bool:
    known = isinstance(x, dict) and x.keys() <= EVA and all(map(number, map(float, x.values())))
    return x is None or (known and x.get("rho", 2) >= 1 and 0 <= x.get("tau", 0.99) <= 1)


COMMON: dict[str, Kind] = {
    "peft_type": lambda x: isinstance(x, str),
    "task_type": lambda x: x in TASKS if _text(x) else False,
    "peft_version": lambda x: x is None or (isinstance(x, str) and bool(re.fullmatch(VERSION, x))),
    "base_model_name_or_path": _text,
    "revision": _text,
    "auto_mapping": lambda x: x is None or isinstance(x, dict),
    "inference_mode": _switch,
    "target_modules": _names_or_pattern,
    "exclude_modules": _names_or_pattern,
    "modules_to_save": _names,
}
LAYERS: dict[str, Kind] = {
    "layers_to_transform": _indices,
    "layers_pattern": _names_or_pattern,
}
LYCORIS: dict[str, Kind] = {
    "r": _count,
    "alpha": _nonzero,
    "rank_pattern": _by_pattern(_count),
    "alpha_pattern": _by_pattern(_nonzero),
    "rank_dropout": _share,
    "module_dropout": _share,
    "init_weights": _init,
    "use_effective_conv2d": _switch,
}
FIELDS: dict[str, dict[str, Kind]] = {
    "LORA": {
        "r": _count,
        "lora_alpha": _nonzero,
        "rank_pattern": _by_pattern(_count),
        "alpha_pattern": _by_pattern(_nonzero),
        "use_rslora": _switch,
        "use_dora": _switch,
        "fan_in_fan_out": _switch,
        "init_lora_weights": _init,
        "lora_dropout": _share,
        "ensure_weight_tying": _switch,  # tied weights are refused, and it is about no others
        "eva_config": _eva,  # how lora_A was initialised
        "loftq_config": lambda x: x is None or x == {},
        "megatron_core": _text,  # PEFT imports it where megatron_config is set
        "qalora_group_size": number,  # is for use_qalora
        "runtime_config": lambda x: x is None or isinstance(x, dict),  # PEFT drops it
        "merge_weights": _switch,  # before 0.4: whether eval() merges
    },
    "BOFT": {
        "boft_block_size": _size,
        "boft_block_num": _size,
        "boft_n_butterfly_factor": _count,
        "boft_dropout": _share,
        "init_weights": lambda x: isinstance(x, bool),
    },
    "DELORA": {
        "r": _count,
        "rank_pattern": _by_pattern(_count),
        "delora_lambda": number,  # initial; the trained one is a tensor
        "lambda_pattern": _by_pattern(number),
        "module_dropout": _share,
        "init_weights": lambda x: isinstance(x, bool),
    },
    "IA3": {
        "feedforward_modules": _names_or_pattern,
        "fan_in_fan_out": _switch,
        "init_ia3_weights": _switch,
    },
    "OFT": {
        "r": _size,
        "oft_block_size": _size,
        "coft": _switch,
        "eps": lambda x: number(x) and x > 0,
        "block_share": _switch,
        "use_cayley_neumann": _switch,
        "num_cayley_neumann_terms": lambda x: _size(x) and x <= 100,
        "module_dropout": _share,
        "init_weights": lambda x: isinstance(x, bool),
    },
    "LOHA": LYCORIS,
    "LOKR": LYCORIS
    | {"decompose_both": _switch, "decompose_factor": lambda x: x == -1 or _count(x),
       "rank_dropout_scale": _switch},
}  # fmt: skip
NEEDED = {
    "LORA": ("r", "lora_alpha"),
    "BOFT": ("boft_block_size", "boft_block_num"),
    "DELORA": ("r",),
    "IA3": ("feedforward_modules",),
    "OFT": ("r", "oft_block_size"),
    "LOHA": ("r", "alpha"),
    "LOKR": ("r", "alpha"),
}
"""what every version of PEFT writes, and without which it would take a default of its own"""
# PEFT reads {} and [] in these as settings of their own, so only null is nothing.
ONLY_NULL = """
    kasa_config arrow_config velora_config use_bdlora monteclora_config lora_ga_config corda_config
    trainable_token_indices alora_invocation_tokens target_parameters""".split()
NUMBERS = ("r", "lora_alpha", "alpha")
PATTERNS = ("rank_pattern", "alpha_pattern", "lambda_pattern")
FRAMES = {
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
}


def read_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the config whose fields are all known and of their kind; else ValueError.

    Numbers that are written as text become numbers, and a null pattern becomes {}.
    """
    check(all(isinstance(name, str) for name in config), "the config has a key that is no text")
    kind = config.get("peft_type")
    check(kind is not None, f"the config has no 'peft_type', only {shown(sorted(config))}; pass "
          "the whole adapter_config.json")  # fmt: skip
    # config.to_dict() of PEFT itself holds enums and sets
    kind = getattr(kind, "value", kind)
    config = {n: list(v) if isinstance(v, set | tuple) else v for n, v in config.items()}
    config |= {"peft_type": kind}
    known = COMMON | (LAYERS if kind != "IA3" else {}) | FIELDS.get(str(kind), {})
    read = {name: _numbers(name, value) for name, value in config.items()}
    for name, value in read.items():
        if name not in known:
            _check_empty(name, value)
        elif not (value is None and name in NUMBERS) and not _is(known[name], value):
            refuse(f"the config has {name} {shown(value)}, which PEFT does not take in "
                   "adapter_config.json; save the adapter again with save_pretrained")  # fmt: skip
    _check_patterns(read)
    return read


def _is(kind: Kind, value: Any) -> bool:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return False


def check_whole(config: Mapping[str, Any]) -> None:
    """Raises ValueError for an adapter_config.json without a field that PEFT always writes."""
    for name in ("target_modules", *NEEDED.get(config["peft_type"], ())):
        check(
            config.get(name) is not None,
            f"the config has no {name!r}, only {shown(sorted(config))}; save the adapter again "
            "with save_pretrained, which writes it",
        )


def _numbers(name: str, value: Any) -> Any:
    if name in PATTERNS:
        value = {} if value is None else value
        return {k: _number(v) for k, v in value.items()} if isinstance(value, dict) else value
    return _number(value) if name in NUMBERS else value


def _number(value: Any) -> Any:
    """The number that a text says; anything else as it is."""
    if not isinstance(value, str) or len(value) > 30:
        return value
    if re.fullmatch(r"[+-]?[0-9]+", value):
        return int(value)
    if re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?", value):
        return float(value) if math.isfinite(float(value)) else value
    return value


def _check_empty(name: str, value: Any) -> None:
    zero = number(value) and value == 0
    empty = value is None or (
        name not in ONLY_NULL
        and (value is False or value in ("", [], {}) or zero)
        or (value == "none" and "bias" in name)
    )
    check(
        value == "none" if name == "bias" else empty,
        f"the config sets {name if name.isidentifier() else shown(name, 60)} to {shown(value)}, "
        "which is no change of linear weights by a known rule; train without it, or merge the "
        "adapter with PEFT and read the merged model",
    )


def _check_patterns(config: Mapping[str, Any]) -> None:
    """Every regular expression of the config is one that surely ends."""
    for name in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(name), str):
            check_pattern(config[name], name)
    for name in PATTERNS:
        for pattern in config.get(name) or ():
            check_pattern(pattern, name, r"(.*\.)?({})$")
    for name, frame in FRAMES.items():
        value = config.get(name) or ()
        for pattern in [value] if isinstance(value, str) else value:
            check_pattern(pattern, name, frame)

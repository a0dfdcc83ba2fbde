"""Model folders: what config.json asks for, and what the weight files hold, agree and are bounded.

Before loading: no code from elsewhere, no sizes beyond the files'. After it: every parameter of the
architecture came from the files, as floats, and every tensor of the files went into one.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.import_utils import is_flash_attn_2_available

from wscore.entries import format_keys
from wscore.files import read_json, reason, refusing

FLOATS = ("F64", "F32", "F16", "BF16")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
"""of attention and experts that are part of torch; others may be fetched from the Hub"""
REPEATS = re.compile(r"(num|n)_(\w+_)?(layers?|labels|experts|blocks)")
"""keys of config.json that say how often something is made"""
NUMBERS = {
    "length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "min_p",
    "no_repeat_ngram_size", "num_beams", "num_return_sequences", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
"""of generation_config.json"""
MORE_ELEMENTS = 2**28
"""that a model may have beside twice its file's, such as masks and tables of positions"""
COPY_ANEW = "copy or convert the model anew"


class Header(NamedTuple):
    """What a safetensors file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def check_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder; ValueError for what is none, and for code that is not torch's."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"load_model: {str(path)!r} is no JSON object; {COPY_ANEW}")
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if known and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(  # transformers would say so after importing every architecture it has
            f"load_model: {str(path)!r} is of model_type {kind!r}, which is no causal language "
            "model; give one that continues a text"
        )
    for key, value in _entries(config):
        if key.endswith(("attn_implementation", "experts_implementation")):
            _check_implementation(path, key, value)
    if (generation := folder / "generation_config.json").is_file():
        _check_generation(generation)
    return config


def _check_generation(path: Path) -> None:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"load_model: {str(path)!r} is no JSON object; {COPY_ANEW}")
    for key in NUMBERS & settings.keys():
        if not isinstance(settings[key], int | float | None):
            raise ValueError(
                f"load_model: {key} in {str(path)!r} is {reason(repr(settings[key]), 80)}, which "
                "is no number; mend it, or take it out"
            )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of all objects in a JSON value, however deep."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from value.items()
        todo += value.values() if isinstance(value, dict) else ()
        todo += value if isinstance(value, list) else ()


def _check_implementation(path: Path, key: str, value: Any) -> None:
    known = (*IMPLEMENTATIONS, *["flash_attention_2"] * is_flash_attn_2_available())
    named = value.values() if isinstance(value, dict) else [value]
    if odd := [v for v in named if v is not None and v not in known]:
        raise ValueError(
            f"load_model: {key} in {str(path)!r} is {reason(repr(odd[0]), 80)}, which would run "
            f"code from elsewhere; take the key out, or use one of {', '.join(known)}"
        )


def read_headers(folder: Path, config: Mapping[str, Any]) -> dict[str, Header]:
    """name -> dtype and shape of all tensors of the folder's weight files."""
    found: dict[str, Header] = {}
    for path in weight_files(folder, config):
        with refusing(
            f"load_model: {str(path)!r} cannot be read", COPY_ANEW, OSError, SafetensorError
        ), safe_open(path, framework="pt", backend="pread") as file:  # fmt: skip
            for name in file.keys():  # noqa: SIM118
                if name in found:
                    raise ValueError(
                        f"load_model: {reason(repr(name), 100)} is in two weight files of "
                        f"{str(folder)!r}; {COPY_ANEW}"
                    )
                part = file.get_slice(name)
                found[name] = Header(part.get_dtype(), tuple(part.get_shape()))
    return found


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files that transformers reads, all of them there."""
    given = config.get("transformers_weights")
    name = given or (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise ValueError(
            f"load_model: no usable model in folder {str(folder)!r} (no {WEIGHTS}); save the "
            "weights there as safetensors, with model.save_pretrained; pickles are not read"
        )
    if not name.endswith(".json"):
        return [folder / name]
    index = read_json(folder / name)
    of = index.get("weight_map") if isinstance(index, dict) else None
    files = set(of.values()) if isinstance(of, dict) and _all_text(of.values()) else set()
    if missing := sorted(f for f in files if Path(f).name != f or not (folder / f).is_file()):
        raise ValueError(
            f"load_model: {str(folder / name)!r} names files that are not in the folder: "
            f"{format_keys(missing)}; {COPY_ANEW}"
        )
    if not files:
        raise ValueError(f"load_model: {str(folder / name)!r} has no weight_map; {COPY_ANEW}")
    return [folder / f for f in sorted(files)]


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(v, str) for v in values)


def check_counts(folder: Path, config: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    """Raises ValueError for a config.json with more layers than its weight files have tensors.

    They would be built, one after another, before they are missed.
    """
    for key, n in _entries(config):
        most = 2**16 if key.endswith(("labels", "experts")) else max(len(headers), 64)
        if REPEATS.fullmatch(key) and isinstance(n, int | float) and n > most:
            raise ValueError(
                f"load_model: {key} in {str(folder / 'config.json')!r} is {reason(repr(n), 40)}, "
                f"but the weight files hold {len(headers)} tensors; {COPY_ANEW}"
            )


def check_sizes(folder: Path, config: PreTrainedConfig, headers: Mapping[str, Header]) -> None:
    """Raises ValueError for a configuration with larger tensors than its weight files hold.

    transformers would draw them at random before it refuses them; here nothing is allocated.
    """
    if (model := outline(config)) is None:
        return
    expected = model.state_dict()
    for name, header in headers.items():
        here = own_name(name, expected, model)
        if here in expected and _size(header.shape) != expected[here].numel():
            raise ValueError(
                f"load_model: {reason(repr(name), 100)} has shape {header.shape} in the weight "
                f"files of {str(folder)!r}, {tuple(expected[here].shape)} by its config.json; "
                f"{COPY_ANEW}"
            )
    asked = sum(x.numel() for x in (*model.parameters(), *model.buffers()))
    held = sum(_size(h.shape) for h in headers.values())
    if asked > 2 * held + MORE_ELEMENTS:
        raise ValueError(
            f"load_model: config.json of {str(folder)!r} asks for {asked} numbers, the weight "
            f"files hold {held}; {COPY_ANEW}"
        )


def outline(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The model of a configuration without memory; None where building it that way fails."""
    try:
        with torch.device("meta"), no_init_weights():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # transformers raises anything here, and again, to be told, when it loads
        return None


def _size(shape: Iterable[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def own_name(name: str, expected: Collection[str], model: PreTrainedModel) -> str:
    """What the model calls a tensor that may be stored with or without its decoder's name."""
    prefix = f"{model.base_model_prefix}."
    names = (name, prefix + name, name.removeprefix(prefix))
    return next((n for n in names if n in expected), name)


def check_loaded(
    folder: Path, model: PreTrainedModel, report: Mapping[str, Any], headers: Mapping[str, Header]
) -> None:
    """Raises ValueError unless all weights came from the files, and all tensors were floats.

    report: the loading report of transformers, without what it ties or ignores by design.
    """
    at, expected = repr(str(folder)), model.state_dict()
    _none(report["missing_keys"], f"the weight files of {at} lack parameters of the model")
    _none(report["unexpected_keys"], f"{at} has tensors that its config.json has no place for")
    mismatched = [m[0] for m in report["mismatched_keys"]]
    _none(mismatched, f"{at} has tensors of another shape than by its config.json")
    names = {name: own_name(name, expected, model) for name in headers}
    integers = [n for n, h in headers.items() if h.dtype not in FLOATS]
    odd = [n for n in integers if _is_weight(expected.get(names[n]), names[n], model)]
    _none(odd, f"{at} has weights that are not float32, bfloat16, float16 or float64")
    twice = [n for n, here in names.items() if n != here and here in headers]
    _none(twice, f"{at} has tensors under two names")
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    untied = tied.keys() - model.all_tied_weights_keys.keys()
    _none(untied, f"{at} has tensors that differ from those its config.json ties them to")


def _is_weight(own: torch.Tensor | None, name: str, model: PreTrainedModel) -> bool:
    """Whether it is a float in the model, or unknown to it and not left out by design."""
    if own is not None:
        return own.is_floating_point()
    ignored = (*(model._keys_to_ignore_on_load_unexpected or ()), r"position_ids$")
    return not any(re.search(pattern, name) for pattern in ignored)


def _none(names: Collection[str], what: str) -> None:
    if names:
        keys = reason(format_keys(names), 240)
        raise ValueError(
            f"load_model: {what}: {keys}; {COPY_ANEW}, or give it the config.json it was saved with"
        )

"""A weight change as llama.cpp's LoRA: one GGUF file beside the base's own.

    blk.N.attn_q.weight.lora_a = A [r, d_in]      adapter.lora.alpha = alpha r
    blk.N.attn_q.weight.lora_b = P B [d_out, r]

llama.cpp adds scale (lora.alpha / r) B A. Llama's GGUF files hold q and k with their rows permuted
by P, since llama.cpp rotates neighbours and transformers rotates halves; the change is permuted as
the weight is (`permute` of llama.cpp's conversion, which its convert_lora_to_gguf applies to B).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from wscore import tensors_sha256
from wscore.entries import format_keys
from wscore.factored import meta
from wscore.files import quoted
from wsrun.adapters.folders import replace_folder
from wsrun.export.gguf_files import fact, gguf_package, open_gguf, write_gguf
from wsrun.export.lora import approximation
from wsrun.export.lowrank import MAX_ERROR, WEIGHT, check_linear, low_rank
from wsrun.export.record import Card, base_of, check_export, check_same_base, write_export

WHO = "save_gguf_lora"
FILE = "lora.gguf"


class Architecture(NamedTuple):
    """What llama.cpp calls a model_type of transformers, and whether rows of q and k are permuted.

    Other weights of these are stored as they are, transposed nowhere.
    """

    name: str
    permuted: bool


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
    "gemma": Architecture("gemma", False),
    "gemma2": Architecture("gemma2", False),
    "gemma3_text": Architecture("gemma3", False),
}
"""model_type -> architecture, of those whose conversion is known (llama.cpp, conversion/*.py)"""


def save_gguf_lora(
    model: PreTrainedModel,
    delta: Mapping[str, Tensor],
    out: str | Path,
    *,
    rank: int | None = None,
    alpha: float = 1.0,
    max_error: float | None = MAX_ERROR,
    base_gguf: str | Path | None = None,
    base_name: str = "",
    about: Mapping[str, Any] = {},
) -> float:
    """Write <out>/lora.gguf, whose change at llama.cpp's scale 1 is alpha dW, in float32.

    Ranks and errors as in `save_lora`, whose relative error is returned. base_gguf: the file that
    it will be used with, whose architecture, names and shapes are then compared. Raises ValueError
    as `save_lora`, for an architecture that is not in ARCHITECTURES, another one in `base_gguf`,
    and where gguf is not installed.
    """
    alpha = check_export(WHO, out, alpha, about)
    architecture = _architecture(model)
    check_linear(WHO, model, delta)
    names = _names(model, architecture, delta)
    if base_gguf is not None:
        _check_file(base_gguf, architecture, {names[n]: meta(delta, n) for n in delta})
    base = base_of(model, base_name)
    check_same_base(WHO, delta, base.sha256)
    cut = low_rank(WHO, delta, rank, max_error)
    tensors: dict[str, Tensor] = {}
    for name, (B, A) in cut.factors.items():
        tensors[f"{names[name]}.lora_a"] = A
        tensors[f"{names[name]}.lora_b"] = permuted(B, _heads(model, architecture, name))
    facts = {
        "general.type": "adapter", "general.name": f"{base.name}, steered", "adapter.type": "lora",
        "adapter.lora.alpha": alpha * cut.rank,
    }  # fmt: skip

    def write(new: Path) -> None:
        write_gguf(WHO, new / FILE, architecture.name, facts, tensors)
        more = dict(
            architecture=architecture.name, rank=cut.rank, relative_error=cut.error, exact=cut.exact
        )
        card = _card(base.name, alpha, architecture, approximation(cut, about))
        sha256 = tensors_sha256(delta)
        write_export(new, "gguf-lora", base, sha256, alpha, card, about, **more)

    replace_folder(out, write)
    return cut.error


def permuted(B: Float[Tensor, "d_out r"], heads: int | None) -> Float[Tensor, "d_out r"]:
    """P B: within each head, row i of the first half is followed by row i of the second half."""
    if heads is None:
        return B
    halves = B.reshape(heads, 2, B.shape[0] // heads // 2, *B.shape[1:])
    return halves.transpose(1, 2).reshape(B.shape)


def _architecture(model: PreTrainedModel) -> Architecture:
    kind = model.config.get_text_config().model_type
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"{WHO}: how llama.cpp stores the weights of model_type {quoted(kind)} is not known "
            f"here, only of {', '.join(ARCHITECTURES)}; export a LoRA or merge, and convert that"
        )
    return ARCHITECTURES[kind]


def _names(
    model: PreTrainedModel, architecture: Architecture, delta: Mapping[str, Tensor]
) -> dict[str, str]:
    """parameter -> name in a GGUF file, by gguf's own map of the architecture."""
    gguf = gguf_package(WHO)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    layers = model.config.get_text_config().num_hidden_layers
    known = gguf.get_tensor_name_map(arch, layers)
    found = {name: known.get_name(name.removesuffix(WEIGHT)) for name in delta}
    if lacking := [name for name, there in found.items() if there is None]:
        raise ValueError(
            f"{WHO}: {format_keys(lacking)} have no place in GGUF files of {architecture.name}; "
            "leave them out"
        )
    return {name: f"{there}{WEIGHT}" for name, there in found.items()}


def _heads(model: PreTrainedModel, architecture: Architecture, name: str) -> int | None:
    """How many heads the rows of a weight are, where they are permuted."""
    config = model.config.get_text_config()
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.split(".")[-2]) if architecture.permuted else None


def _check_file(path: str | Path, architecture: Architecture, needed: Mapping[str, Tensor]) -> None:
    reader = open_gguf(WHO, path)
    if (other := fact(reader, "general.architecture")) != architecture.name:
        raise ValueError(
            f"{WHO}: {str(path)!r} is of architecture {quoted(other)}, the model of "
            f"{architecture.name!r}; give the GGUF file of this model"
        )
    shapes = {t.name: [int(n) for n in reversed(t.shape)] for t in reader.tensors}
    if odd := [name for name, w in needed.items() if shapes.get(name) != list(w.shape)]:
        raise ValueError(
            f"{WHO}: {str(path)!r} has no {format_keys(odd)} of the delta's shapes; give the GGUF "
            "file of this model"
        )


def _card(base: str, alpha: float, architecture: Architecture, rank: tuple[str, ...]) -> Card:
    return Card(
        f"A LoRA for llama.cpp: alpha = {alpha:g} times the weight change at its scale of 1.",
        f"    llama-cli -m base.gguf --lora {FILE}\n"
        f"    llama-cli -m base.gguf --lora-scaled {FILE}:0.5    # half of it",
        (
            *rank,
            f"For a GGUF file of {base}, of architecture {architecture.name}; a quantised base "
            "computes in its own precision, so answers may differ from those of float32.",
        ),
    )

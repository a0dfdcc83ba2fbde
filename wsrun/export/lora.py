"""A weight change as a LoRA that PEFT loads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from wscore import tensors_sha256
from wscore.families.checkpoints import PREFIX
from wsrun.adapters.base import base_record, write_record
from wsrun.adapters.checkpoint import CONFIG, WEIGHTS
from wsrun.adapters.folders import replace_folder
from wsrun.export.lowrank import MAX_ERROR, WEIGHT, LowRank, check_linear, linear_factors, low_rank
from wsrun.export.record import Card, base_of, check_export, check_same_base, write_export

WHO = "save_lora"


def save_lora(
    model: PreTrainedModel,
    delta: Mapping[str, Tensor],
    out: str | Path,
    *,
    rank: int | None = None,
    alpha: float = 1.0,
    max_error: float | None = MAX_ERROR,
    dtype: torch.dtype = torch.float32,
    base_name: str = "",
    about: Mapping[str, Any] = {},
) -> float:
    """Write a PEFT LoRA whose change at scale 1 is alpha dW: s B A, s = lora_alpha / r = alpha.

    B A = dW where the delta holds factors or is of low rank, without a rank: rank 2r for the
    difference of two factor adapters of rank r. With a lower rank the best of it, by SVD. Returns
    |dW - B A| / |dW| of the numbers as written in `dtype`; above `max_error` it is refused, unless
    that is None. about: recipe, effect, cost, instrument check, for card and manifest. The folder
    holds PEFT's files and a record of the weights of `model`, and is put in place whole. Raises
    ValueError for a rank below 1, a full-rank change without one, an alpha of 0, what is no linear
    weight of the model, and for a folder that holds something else than an adapter.
    """
    alpha = check_export(WHO, out, alpha, about, mark=CONFIG)
    turned = check_linear(WHO, model, delta)
    base = base_of(model, base_name)
    check_same_base(WHO, delta, base.sha256)
    cut = low_rank(WHO, delta, rank, max_error, dtype)
    tensors: dict[str, Tensor] = {}
    for name, x in cut.factors.items():
        B, A = linear_factors(x, turned[name])
        tensors[f"{PREFIX}{name.removesuffix(WEIGHT)}.lora_A.weight"] = A
        tensors[f"{PREFIX}{name.removesuffix(WEIGHT)}.lora_B.weight"] = B
    where = "|".join(re.escape(n.removesuffix(WEIGHT)) for n in delta)
    scaled = alpha * cut.rank
    config = LoraConfig(
        r=cut.rank, lora_alpha=int(scaled) if scaled == int(scaled) else scaled,  # type: ignore
        target_modules=where, task_type="CAUSAL_LM", base_model_name_or_path=base_name,
        inference_mode=True, fan_in_fan_out=any(turned.values()),
    )  # fmt: skip

    def write(new: Path) -> None:
        config.save_pretrained(str(new))
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        write_record(new, base_record(model, where))
        facts = dict(rank=cut.rank, relative_error=cut.error, exact=cut.exact)
        sha256, card = tensors_sha256(delta), _card(base.name, alpha, cut, about)
        write_export(new, "lora", base, sha256, alpha, card, about, **facts)

    replace_folder(out, write)
    return cut.error


def _card(base: str, alpha: float, cut: LowRank, about: Mapping[str, Any]) -> Card:
    return Card(
        f"A LoRA for PEFT and servers that take one: W' = W + alpha dW with alpha = {alpha:g}, "
        f"folded into lora_alpha, so that a server's scale of 1 is this alpha.",
        "    from peft import PeftModel\n"
        f"    model = PeftModel.from_pretrained(base, folder)  # base: {base}",
        (*approximation(cut, about), "For the base named above only; base.json knows its weights."),
    )


def approximation(cut: LowRank, about: Mapping[str, Any]) -> tuple[str, ...]:
    """What a card says of the rank."""
    if cut.exact:
        return (f"Exact: dW has rank {cut.rank} or less, and nothing was cut off.",)
    known = "effect_kept" in about
    return (
        f"Rank {cut.rank} and rounding leave out {cut.error:.2%} of dW's norm; what that costs the "
        + ("effect is in the table." if known else "effect was not measured."),
    )

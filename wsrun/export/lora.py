"""A weight change as a LoRA that PEFT loads."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from wscore import norm, svd
from wscore.delta import length
from wscore.families.checkpoints import PREFIX
from wsrun.adapters.base import base_record, write_record
from wsrun.adapters.checkpoint import CONFIG, WEIGHTS
from wsrun.adapters.folders import check_replaceable, replace_folder

WEIGHT = ".weight"


def save_lora(
    model: PreTrainedModel,
    delta: Mapping[str, Tensor],
    out: str | Path,
    *,
    rank: int,
    dtype: torch.dtype = torch.float32,
    base_name: str = "",
) -> float:
    """Write a LoRA of scale 1 whose B A is the best approximation of each weight's change.

        B = U_k sqrt(S_k), A = sqrt(S_k) V_k^T, k = rank (Eckart and Young 1936)

    Returns |delta - B A| / |delta|, of the numbers as written in `dtype`. It is 0 up to rounding
    where no change has a higher rank: 2r for the difference of two LoRAs of rank r. The folder
    holds PEFT's two files and a record of the weights of `model` it is for, and is put in place
    whole. Raises ValueError for a rank below 1, for a change of anything but a matrix of the model,
    for a folder that holds something else than an adapter, and for one that cannot be written.
    """
    if rank < 1:
        raise ValueError(f"save_lora: rank must be at least 1, got {rank}")
    check_replaceable(out, CONFIG)
    _check(model, delta)
    tensors: dict[str, Tensor] = {}
    lost = 0.0
    for name in delta:
        B, A = (x.to(dtype) for x in low_rank(delta[name], rank))
        tensors[f"{PREFIX}{name.removesuffix(WEIGHT)}.lora_A.weight"] = A
        tensors[f"{PREFIX}{name.removesuffix(WEIGHT)}.lora_B.weight"] = B
        lost += length(delta[name] - B.float() @ A.float()) ** 2
    where = "|".join(re.escape(n.removesuffix(WEIGHT)) for n in delta)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=where, task_type="CAUSAL_LM",
        base_model_name_or_path=base_name, inference_mode=True,
    )  # fmt: skip

    def write(new: Path) -> None:
        config.save_pretrained(str(new))
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        write_record(new, base_record(model, where))

    replace_folder(out, write)
    return lost**0.5 / norm(delta)


def low_rank(
    W: Float[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "d_out {rank}"], Float[Tensor, "{rank} d_in"]]:
    """(B, A) with B A = U_k S_k V_k^T, balanced: |B| = |A|; zeros beyond the rank of W."""
    U, S, Vt = svd(W)
    root = S[:rank].sqrt()
    B, A = W.new_zeros(W.shape[0], rank), W.new_zeros(rank, W.shape[1])
    B[:, : len(root)] = U[:, :rank] * root
    A[: len(root)] = root[:, None] * Vt[:rank]
    return B, A


def _check(model: PreTrainedModel, delta: Mapping[str, Tensor]) -> None:
    base = dict(model.named_parameters(remove_duplicate=False))
    for name in delta:
        if name not in base or base[name].shape != delta[name].shape:
            raise ValueError(
                f"save_lora: the model has no {name!r} of this shape; use its own base"
            )
        if not name.endswith(WEIGHT) or delta[name].ndim != 2:
            raise ValueError(
                f"save_lora: {name!r} is no matrix, which a LoRA changes; leave it out"
            )
    if not norm(delta):
        raise ValueError("save_lora: the change is zero; there is nothing to write")

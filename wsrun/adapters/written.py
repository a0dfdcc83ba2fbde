"""What training wrote, read as a dW for a model: a file, or the folder of a pair of adapters.

weighted_sum((c_1, dW_1), (c_2, dW_2), ..) = c_1 dW_1 + c_2 dW_2 + ..
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wscore import add, load_delta, scale, tensors_sha256
from wscore.delta import DeltaLike
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import read_folder


def read_deltas(paths: Sequence[Path], model: PreTrainedModel) -> list[DeltaLike]:
    """The dW of each path: a safetensors file, or a folder with pos and neg, which is proved.

    Raises ValueError where a file says that it was made on other base weights: than another file,
    or than the model. A file that does not say is not refused, and in half precision the weights
    have other bits, which say nothing.
    """
    deltas = [_read(path, model) for path in paths]
    named = zip((getattr(d, "meta", {}).get("base", "") for d in deltas), paths, strict=True)
    made_on = {base: path for base, path in named if base}
    if len(made_on) > 1:
        first, second, *_ = (repr(str(path)) for path in made_on.values())
        raise ValueError(
            f"--delta: {first} and {second} were made on different base weights; give deltas of "
            "one model"
        )
    known = made_on and model.dtype == torch.float32
    if known and tensors_sha256(dict(model.named_parameters())) not in made_on:
        (path,) = made_on.values()
        raise ValueError(
            f"--delta: {str(path)!r} was made on other base weights than those of "
            f"{model.name_or_path!r}; name its model with --model, or train on this one"
        )
    return deltas


def _read(path: Path, model: PreTrainedModel) -> DeltaLike:
    if path.is_dir():
        return read_folder(path, partial(pair_deltas, model)).dW
    return load_delta(path)


def weighted_sum(*terms: tuple[float, Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """sum_i c_i dW_i over the union of keys, as factors where all are."""
    return add(*(scale(c, d) for c, d in terms), disjoint=True)

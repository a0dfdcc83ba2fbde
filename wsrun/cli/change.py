"""One change of a model, as the options of `Changed` name it: a file of a dW, or two adapters."""

import warnings
from pathlib import Path

from transformers import PreTrainedModel

from wscore import load_delta, tensors_sha256
from wscore.delta import DeltaLike
from wscore.store import LazyDelta, LazyFactored
from wsrun.adapters.base import BaseWarning
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import read_folder
from wsrun.cli.change_options import Changed, split_delta


def read_change(cfg: Changed, model: PreTrainedModel) -> tuple[DeltaLike, float, list[str]]:
    """(dW, alpha, where dW is from and what to know of it); ValueError for one of another base."""
    if cfg.delta:
        path, alpha = split_delta(cfg.delta, cfg.alpha)
        return delta_of(path, model, cfg), alpha, [str(path)]
    folder = cfg.pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BaseWarning)  # its text is among the notes
        pair = read_folder(folder, lambda at: pair_deltas(model, at))
    return pair.dW, cfg.alpha, [str(folder), *pair.notes]


def delta_of(path: Path, model: PreTrainedModel, cfg: Changed) -> LazyDelta | LazyFactored:
    """The delta of a file; ValueError where it says that it was made on other base weights."""
    dW = load_delta(path)
    made_on = dW.meta.get("base", "")
    # in another dtype the weights have other bits, which say nothing
    known = made_on and cfg.dtype == "float32"
    if known and made_on != tensors_sha256(dict(model.named_parameters())):
        raise ValueError(
            f"--delta: {str(path)!r} was made on other base weights than those of {cfg.model!r}; "
            "name its model with --model, or train on this one"
        )
    return dW

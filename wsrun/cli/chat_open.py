"""Open a dialogue: the model, and the change of its weights that one side carries.

--delta a:1 --delta b:-0.5    dW = 1 dW_a - 0.5 dW_b, and alpha scales the sum
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from wscore import add, load_delta, scale, tensors_sha256
from wscore.store import LazyDelta, LazyFactored
from wsrun.adapters.base import BaseWarning
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import read_folder
from wsrun.cli.chat_options import Chat, split_delta
from wsrun.cli.dialogue import Dialogue
from wsrun.models.load import limit_threads, load_model
from wsrun.steer.interventions import WeightDelta, applied


def open_dialogue(cfg: Chat) -> tuple[Dialogue, list[str]]:
    """The dialogue of the options, and what to know of its dW; the change is tried on the model."""
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    alpha = cfg.alpha
    if len(cfg.delta) == 1:
        path, alpha = split_delta(cfg.delta[0], alpha)
        (dW,), notes = deltas_of((path,), model, cfg), [str(path)]
    elif cfg.delta:
        dW, what = weighted_sum(cfg, model)
        notes = [what]
    else:
        folder = cfg.pair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BaseWarning)  # its text is among the notes
            pair = read_folder(folder, lambda at: pair_deltas(model, at))
        dW, notes = pair.dW, [str(folder), *pair.notes]
    change = WeightDelta(dW)
    with applied(model, change, alpha):
        pass
    drawn = cfg.seed, cfg.temperature, cfg.top_p, cfg.max_new_tokens
    return Dialogue(model, tok, change, alpha, cfg.system, *drawn), notes


def weighted_sum(cfg: Chat, model: PreTrainedModel) -> tuple[Mapping[str, Tensor], str]:
    """sum_i c_i dW_i of the files of --delta, and its formula; c_i = 1 where a file has none."""
    paths, weights = zip(*map(split_delta, cfg.delta), strict=True)
    deltas = deltas_of(paths, model, cfg)
    terms = (scale(c, d) for c, d in zip(weights, deltas, strict=True))
    formula = " ".join(f"{c:+g} {path}" for path, c in zip(paths, weights, strict=True))
    return add(*terms, disjoint=True), formula.removeprefix("+")


def deltas_of(
    paths: tuple[Path, ...], model: PreTrainedModel, cfg: Chat
) -> list[LazyDelta | LazyFactored]:
    """The deltas of files. ValueError where they say that they were made on other base weights:
    than each other, or than the model."""
    deltas = [load_delta(path) for path in paths]
    named = zip((d.meta.get("base", "") for d in deltas), paths, strict=True)
    made_on = {base: path for base, path in named if base}
    if len(made_on) > 1:
        first, second, *_ = (repr(str(path)) for path in made_on.values())
        raise ValueError(
            f"--delta: {first} and {second} were made on different base weights; add up deltas of "
            "one model"
        )
    # in another dtype the weights have other bits, which say nothing
    known = made_on and cfg.dtype == "float32"
    if known and tensors_sha256(dict(model.named_parameters())) not in made_on:
        (path,) = made_on.values()
        raise ValueError(
            f"--delta: {str(path)!r} was made on other base weights than those of {cfg.model!r}; "
            "name its model with --model, or train on this one"
        )
    return deltas

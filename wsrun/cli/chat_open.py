"""Open a dialogue: the model, and the change of its weights that one side carries.

--delta a:1 --delta b:-0.5    dW = 1 dW_a - 0.5 dW_b, and alpha scales the sum
"""

import warnings
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from wsrun.adapters.base import BaseWarning
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import read_folder
from wsrun.adapters.written import read_deltas, weighted_sum
from wsrun.cli.chat_options import Chat
from wsrun.cli.dialogue import Dialogue
from wsrun.cli.options import split_delta
from wsrun.models.load import limit_threads, load_model
from wsrun.steer.interventions import WeightDelta, applied


def open_dialogue(cfg: Chat) -> tuple[Dialogue, list[str]]:
    """The dialogue of the options, and what to know of its dW; the change is tried on the model."""
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    dW, alpha, notes = change_of(cfg, model) if cfg.delta else change_of_pair(cfg, model)
    change = WeightDelta(dW)
    with applied(model, change, alpha):
        pass
    drawn = cfg.seed, cfg.temperature, cfg.top_p, cfg.max_new_tokens
    return Dialogue(model, tok, change, alpha, cfg.system, *drawn), notes


def change_of(cfg: Chat, model: PreTrainedModel) -> tuple[Mapping[str, Tensor], float, list[str]]:
    """(dW, alpha, its name) of --delta: one dW and its alpha, or the sum of several."""
    alone = cfg.alpha if len(cfg.delta) == 1 else 1.0
    paths, weights = zip(*(split_delta(text, alone) for text in cfg.delta), strict=True)
    deltas = read_deltas(paths, model)
    if len(deltas) == 1:
        return deltas[0], weights[0], [str(paths[0])]
    formula = " ".join(f"{c:+g} {path}" for path, c in zip(paths, weights, strict=True))
    dW = weighted_sum(*zip(weights, deltas, strict=True))
    return dW, cfg.alpha, [formula.removeprefix("+")]


def change_of_pair(
    cfg: Chat, model: PreTrainedModel
) -> tuple[Mapping[str, Tensor], float, list[str]]:
    """(dW, alpha, its name and what to know of it) of a pair of adapters."""
    folder = cfg.pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BaseWarning)  # its text is among the notes
        pair = read_folder(folder, lambda at: pair_deltas(model, at))
    return pair.dW, cfg.alpha, [str(folder), *pair.notes]

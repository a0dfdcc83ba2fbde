"""One change of a model, as the options of `Changed` name it: a file of a dW, several, or adapters.

--delta a:1 --delta b:-0.5    dW = 1 dW_a - 0.5 dW_b, and alpha scales the sum
"""

import warnings

from transformers import PreTrainedModel

from wscore.delta import DeltaLike
from wsrun.adapters.base import BaseWarning
from wsrun.adapters.extract import pair_deltas
from wsrun.adapters.folders import read_folder
from wsrun.adapters.written import read_deltas, weighted_sum
from wsrun.cli.change_options import Changed
from wsrun.cli.options import split_delta


def read_change(cfg: Changed, model: PreTrainedModel) -> tuple[DeltaLike, float, list[str]]:
    """(dW, alpha, where dW is from and what to know of it); ValueError for one of another base."""
    if not cfg.delta:
        folder = cfg.pair()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BaseWarning)  # its text is among the notes
            pair = read_folder(folder, lambda at: pair_deltas(model, at))
        return pair.dW, cfg.alpha, [str(folder), *pair.notes]
    same_base = cfg.dtype == "float32"  # the formats of an export check theirs by themselves
    if len(cfg.delta) == 1:
        path, _ = split_delta(cfg.delta[0])
        return read_deltas([path], model, same_base)[0], cfg.dose(), [str(path)]
    paths, weights = zip(*map(split_delta, cfg.delta), strict=True)
    formula = " ".join(f"{c:+g} {path}" for path, c in zip(paths, weights, strict=True))
    terms = zip(weights, read_deltas(paths, model, same_base), strict=True)
    return weighted_sum(*terms), cfg.alpha, [formula.removeprefix("+")]

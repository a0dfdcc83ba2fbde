"""Activation directions that others keep in torch files, read without unpickling code.

a tensor [layers + 1, d]     persona vectors (Chen et al. 2025, arXiv 2507.21509): row h belongs
                             to hidden_states[h], the output of decoder layer h - 1; row 0, the
                             embedding, is no layer and is left out
a dict {layer: tensor [d]}   layer_activations of the package steering-vectors; layers count
                             from 0
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wscore.files import quoted, refusing


def read_torch_vectors(who: str, path: Path) -> dict[int, Tensor]:
    """{decoder layer, from 0: v} in float32.

    Raises ValueError for a file that cannot be read as plain tensors (objects of other packages are
    pickled code), and for another content than the two above.
    """
    what = f"{who}: {quoted(str(path), 300)} holds no plain tensors"
    remedy = "save the tensors alone, such as torch.save(vector.layer_activations, path)"
    with refusing(what, remedy, Exception):  # unpickling raises any kind on damage
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) > 1:
        return {h - 1: found[h].float() for h in range(1, len(found))}
    if isinstance(found, Mapping) and found:
        if all(type(n) is int and isinstance(v, Tensor) for n, v in found.items()):
            return {n: v.float() for n, v in found.items()}
    shape = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else "no such"
    raise ValueError(
        f"{who}: {quoted(str(path), 300)} holds {shape}; give a tensor [layers + 1, d] of all "
        "hidden states, or a dict of a tensor [d] by layer"
    )

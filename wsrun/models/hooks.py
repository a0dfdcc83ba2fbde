"""Hooks on the residual stream: read it, or change it, for as long as a `with` block lasts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

T = TypeVar("T")
Hook = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"] | None]
LAYER_LISTS = ("layers", "h", "blocks", "block", "layer")  # what decoders call their layers


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal model, in order, whatever its decoder calls them.

    Raises ValueError where the decoder has no list of layers under a known name.
    """
    decoder = model.get_decoder()
    inner = (decoder, *(getattr(decoder, name, None) for name in ("decoder", "model")))
    for module, name in product(inner, LAYER_LISTS):
        if isinstance(layers := getattr(module, name, None), nn.ModuleList):
            return layers
    raise ValueError(
        f"decoder_layers: {type(decoder).__name__} of {type(model).__name__} has no list of layers"
        f" named one of {', '.join(LAYER_LISTS)}; activations of this model cannot be edited"
    )


def output_of(layer: int) -> str:
    """What an edit of a layer's output is called in the fingerprint of an intervention."""
    return f"output of layer {layer}"


@contextmanager
def hooked(model: PreTrainedModel, hooks: Mapping[int, Hook]) -> Iterator[PreTrainedModel]:
    """h_l' = hook_l(h_l) on the output of decoder layer l; a hook that returns None only looks.

    hooks: layer index (from 0, or negative from the end) -> function of the residual stream
    [batch, sequence, d_model]. Hooks go on every exit, also after an exception. Raises ValueError
    for no hooks and for a layer that the model does not have.
    """
    layers = decoder_layers(model)
    if not hooks:
        raise ValueError(f"hooked: give at least one layer, from 0 to {len(layers) - 1}")
    handles = []
    try:
        for index, hook in check_layers(model, hooks).items():
            handles.append(layers[index].register_forward_hook(_on_output(hook)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def check_layers(model: PreTrainedModel, by_layer: Mapping[int, T]) -> dict[int, T]:
    """The same under layers counted from 0.

    Raises ValueError for a layer that the model does not have, and for one that is named twice.
    """
    if not by_layer:
        return {}
    n = len(decoder_layers(model))
    if wrong := [layer for layer in by_layer if not -n <= layer < n]:
        raise ValueError(f"layers must be 0 to {n - 1}, or -{n} to -1, got {wrong}")
    from_zero = {layer % n: x for layer, x in by_layer.items()}
    if len(from_zero) < len(by_layer):
        raise ValueError(f"layers {list(by_layer)} of {n} name one layer twice; give each once")
    return from_zero


def _on_output(hook: Hook):
    def call(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hook(hidden)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return call

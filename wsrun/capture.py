"""Hooks on the residual stream: read it, or add to it, for as long as a `with` block lasts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

Hook = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"] | None]


@contextmanager
def hooked(model: PreTrainedModel, hooks: Mapping[int, Hook]) -> Iterator[PreTrainedModel]:
    """h_l' = hook_l(h_l) on the output of decoder layer l; a hook that returns None only looks.

    hooks: layer index l (0 to l - 1, negative from the end) -> function of the residual stream
    [batch, sequence, d_model]. Hooks go on every exit, also after an exception. Raises ValueError
    for no hooks and for a layer that the model does not have.
    """
    layers = cast(nn.ModuleList, model.get_decoder().layers)
    wrong = [i for i in hooks if not -len(layers) <= i < len(layers)]
    if wrong or not hooks:
        raise ValueError(
            f"hooked: layers {wrong or 'none'} asked; there are 0 to {len(layers) - 1}"
        )
    handles = []
    try:
        for index, hook in hooks.items():
            handles.append(layers[index].register_forward_hook(_on_output(hook)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _on_output(hook: Hook):
    def call(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hook(hidden)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return call


def add_vector(vector: Float[Tensor, " d"], coefficient: float) -> Hook:
    """h' = h + c v at every position (Turner et al. 2023, arXiv 2308.10248)."""

    def hook(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + coefficient * vector.to(hidden)

    return hook


@contextmanager
def resumed(
    model: PreTrainedModel, layer: int, hidden: Float[Tensor, "b s d"]
) -> Iterator[PreTrainedModel]:
    """The model run from decoder layer `layer` on: `hidden` enters it, earlier layers pass through.

    With the hidden states that entered that layer before (see `entering`), the result is the whole
    model's, bit for bit, as long as the earlier weights are the same.
    """
    layers = cast(nn.ModuleList, model.get_decoder().layers)

    def enter(module, args, kwargs):
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    handle = layers[layer].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for skipped in layers[:layer]:
            skipped.forward = _pass_through
        yield model
    finally:
        handle.remove()
        for skipped in layers[:layer]:
            vars(skipped).pop("forward", None)


def _pass_through(hidden_states: Tensor, *args, **kwargs) -> Tensor:
    return hidden_states


@contextmanager
def last_layer_at(
    model: PreTrainedModel, rows: Tensor, columns: Tensor
) -> Iterator[PreTrainedModel]:
    """In the last layer, queries, attention output and MLP only at the positions that are read.

    Keys and values are still needed everywhere. Other positions leave the layer without its
    contribution, so nothing may be read there. Layers with other names run as they are.
    """
    layer = cast(nn.ModuleList, model.get_decoder().layers)[-1]
    attention = getattr(layer, "self_attn", None)
    parts = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None)]
    parts += [getattr(layer, "mlp", None)]
    shape: list[torch.Size] = []

    def narrow(module, args):
        shape.append(args[0].shape[:2])
        return (args[0][rows, columns][None], *args[1:])

    def widen(module, args, output):
        whole = output.new_zeros(*shape.pop(), output.shape[-1])
        whole[rows, columns] = output[0]
        return whole

    handles = []
    try:
        for part in parts if all(isinstance(p, nn.Module) for p in parts) else []:
            handles.append(cast(nn.Module, part).register_forward_pre_hook(narrow))
            handles.append(cast(nn.Module, part).register_forward_hook(widen))
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def read_at(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> Iterator[PreTrainedModel]:
    """The output head runs on the positions (rows, columns) only: logits [1, n, vocabulary]."""
    head = cast(nn.Module, model.get_output_embeddings())
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][rows, columns][None],))
    try:
        yield model
    finally:
        handle.remove()


@contextmanager
def jittered(model: PreTrainedModel, generator: torch.Generator) -> Iterator[PreTrainedModel]:
    """h_0' = cast(h_0 (1 + eps u)), u uniform in [-1, 1]: one more rounding of the model's dtype.

    h_0 is what enters the first layer, eps the spacing of the dtype's numbers above 1.
    """

    def jitter(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        u = 2 * torch.rand(hidden.shape, generator=generator) - 1
        factor = 1 + torch.finfo(hidden.dtype).eps * u.to(hidden.device, torch.float64)
        moved = (hidden.double() * factor).to(hidden.dtype)
        return ((moved, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": moved})

    layers = cast(nn.ModuleList, model.get_decoder().layers)
    handle = layers[0].register_forward_pre_hook(jitter, with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()


@contextmanager
def entering(model: PreTrainedModel, layer: int, into: list[Tensor]) -> Iterator[PreTrainedModel]:
    """Append the hidden states [batch, sequence, d] that enter a decoder layer, one a forward."""

    def look(module, args, kwargs):
        into.append((args[0] if args else kwargs["hidden_states"]).detach())

    layers = cast(nn.ModuleList, model.get_decoder().layers)
    handle = layers[layer].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()

"""A causal model in three parts: what comes before its layers, the layers, and what comes after.

The model's own forward runs with its list of layers replaced by stand-ins. So embeddings, position
embeddings, the last norm, the head and whatever scales or caps are between them stay the model's,
and the arguments that it passes to each layer are seen.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from wsrun.models.hooks import decoder_layers

Call = dict[str, Any]  # what the model passes to a layer, beside its input


class Decoder:
    """The layers of a model, and its own forward before and after them.

    Raises NotImplementedError for a model whose decoder takes no positions.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.layers = model, decoder_layers(model)
        self.prefix = next(n for n, m in model.named_modules() if m is self.layers)
        owner, _, self.list_name = self.prefix.rpartition(".")
        self.module: Any = model.get_submodule(owner)
        if "position_ids" not in inspect.signature(self.module.forward).parameters:
            raise NotImplementedError("its decoder takes no position_ids")

    def embed(
        self, ids: Int[Tensor, " t"], positions: Int[Tensor, " t"]
    ) -> tuple[Float[Tensor, "1 t d"], list[Call]]:
        """What enters the first layer, and what the model passes to each layer.

        Raises NotImplementedError for calls through which layers may share more.
        """
        with self._without_layers() as calls:
            self.module(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        hidden = calls[0].pop("hidden_states")
        return hidden, [_checked(call) for call in calls]

    def head(
        self,
        hidden: Float[Tensor, "1 n d"],
        ids: Int[Tensor, " n"],
        positions: Int[Tensor, " n"],
    ) -> Float[Tensor, "n v"]:
        """The last norm and the head, of what comes out of the last layer."""
        with self._without_layers(hidden):
            out = self.model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        return out.logits[0]

    @contextmanager
    def _without_layers(self, output: Tensor | None = None) -> Iterator[list[Call]]:
        """The model without its layers, hooks on them included; yields the calls they would get.

        What enters the first comes out of the last, or `output` in its place.
        """
        calls: list[Call] = []
        stand_ins = nn.ModuleList(_Pass(layer, calls, output) for layer in self.layers)
        try:
            setattr(self.module, self.list_name, stand_ins)
            yield calls
        finally:
            setattr(self.module, self.list_name, self.layers)


class _Pass(nn.Module):
    """In the place of a layer: hands on what enters it, and notes what it was called with."""

    def __init__(self, layer: nn.Module, calls: list[Call], output: Tensor | None):
        super().__init__()
        vars(self).update(layer=layer, calls=calls, output=output)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first, *names = inspect.signature(self.layer.forward).parameters if args else ["hidden"]
        named = dict(zip(names, args, strict=False))
        self.calls.append(named | kwargs | {"hidden_states": hidden_states})
        return hidden_states if self.output is None else self.output


def _checked(call: Call) -> Call:
    """The arguments of a layer beside its input; who sees whom is in the layout of the batch."""
    call = {k: v for k, v in call.items() if k != "hidden_states"} | {"attention_mask": None}
    if shared := [k for k, v in call.items() if not _constant(v)]:
        raise NotImplementedError(f"its layers may share more than hidden states: {shared[0]}")
    return call


def _constant(x: Any) -> bool:
    """Whether a layer cannot leave anything in an argument for the next one."""
    if isinstance(x, tuple):
        return all(map(_constant, x))
    return x is None or isinstance(x, Tensor | str | int | float | torch.dtype | torch.device)

"""The plain engine: steer the model, call its own forward, read the logits at each last token.

It works with every causal model of transformers. It is the fallback of the cached engine, and the
oracle that the tests compare it with.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from wsrun.models.hooks import Hook, decoder_layers, hooked
from wsrun.score.batching import in_order, padded_batches
from wsrun.steer.weights import steered

Jitter = Callable[[Tensor], Tensor]  # replaces what enters the first layer
Edit = Callable[[Float[Tensor, "b s d"], float], Float[Tensor, "b s d"]]  # (h, alpha) -> h'


class Intervention(Protocol):
    """What an engine asks of an intervention."""

    def delta(self) -> Mapping[str, Tensor]:
        """parameter name -> dW; W' = W0 + alpha dW."""
        ...

    def edits(self) -> Mapping[int, Edit]:
        """layer -> edit of its output, h' = edit(h, alpha)."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """parameter name, or "output of layer l" -> hash of how it is changed."""
        ...


class PlainEngine:
    """Last-position logits of a model under interventions, by the model's own forward."""

    def __init__(
        self, model: PreTrainedModel, sequences: Sequence[Sequence[int]], tokens: int = 4096
    ) -> None:
        self.model, self.sequences = model, [list(s) for s in sequences]
        self.batches = padded_batches(self.sequences, tokens)
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def run(
        self,
        intervention: Intervention | None = None,
        alpha: float = 0.0,
        jitter: Jitter | None = None,
    ) -> Float[Tensor, "n v"]:
        """Next-token logits at each sequence's last position, fp32 on the CPU, in their order."""
        with ExitStack() as stack:
            if intervention is not None and alpha != 0:
                stack.enter_context(_applied(self.model, intervention, alpha))
            if jitter is not None:
                stack.enter_context(_jittered(self.model, jitter))
            return in_order(len(self.sequences), ((b, self._logits(b)) for b in self.batches))

    def _logits(self, batch: list[int]) -> Float[Tensor, "b v"]:
        lengths = torch.tensor([len(self.sequences[i]) for i in batch])
        width, device = int(lengths.max()), self.model.device
        rows = [self.sequences[i] + [0] * (width - len(self.sequences[i])) for i in batch]
        mask = (torch.arange(width) < lengths[:, None]).long()
        reads, at = torch.unique(lengths - 1, return_inverse=True)
        logits = self.model(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=mask.to(device),
            use_cache=False,
            **({"logits_to_keep": reads.to(device)} if self.keeps_logits else {}),
        ).logits
        at = at if self.keeps_logits else lengths - 1
        return logits[torch.arange(len(batch)), at].float().cpu()


@contextmanager
def _applied(model: PreTrainedModel, intervention: Intervention, alpha: float) -> Iterator[None]:
    """The model with an intervention inside the block."""
    delta, edits = intervention.delta(), intervention.edits()

    def hook(edit: Edit) -> Hook:
        return lambda hidden: edit(hidden, alpha)

    with ExitStack() as stack:
        if delta:
            stack.enter_context(steered(model, delta, alpha))
        if edits:
            stack.enter_context(hooked(model, {layer: hook(e) for layer, e in edits.items()}))
        yield


def _jittered(model: PreTrainedModel, jitter: Jitter) -> AbstractContextManager:
    """The first layer gets jitter(h)."""
    return decoder_layers(model)[0].register_forward_pre_hook(
        lambda module, args: (jitter(args[0]), *args[1:])
    )

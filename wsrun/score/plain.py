"""The plain engine: steer the model, call its own forward, read the logits at each last token.

It works with every causal model of transformers. It is the fallback of the cached engine, and the
oracle that the tests compare it with.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from wsrun.models.hooks import decoder_layers
from wsrun.score.batching import in_order, padded_batches
from wsrun.steer.interventions import Intervention, applied

Jitter = Callable[[Tensor], Tensor]  # replaces what enters the first layer


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
                stack.enter_context(applied(self.model, intervention, alpha))
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


def _jittered(model: PreTrainedModel, jitter: Jitter) -> AbstractContextManager:
    """The first layer gets jitter(h)."""
    return decoder_layers(model)[0].register_forward_pre_hook(
        lambda module, args: (jitter(args[0]), *args[1:])
    )

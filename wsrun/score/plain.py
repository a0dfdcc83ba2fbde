"""The plain engine: steer the model, call its own forward, read the logits at each last token.

It works with every causal model of transformers. It is the fallback of the cached engine, and the
oracle that the tests compare it with.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from wsrun.models.hooks import decoder_layers
from wsrun.score.batching import LOGITS, Readout, in_order, last_logits, padded_batches
from wsrun.score.layer_steps import Jitter
from wsrun.steer.interventions import Intervention, applied


class PlainEngine:
    """Logits of a model under interventions, by its own forward; readout as in cached.py."""

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: Sequence[Sequence[int]],
        tokens: int = 4096,
        readout: Readout | None = None,
    ) -> None:
        self.model, self.sequences = model, [list(s) for s in sequences]
        self.readout = readout or last_logits(sequences)
        self.rows = self.readout.rows
        if any(len(at) > 1 for at in self.readout.positions):
            tokens = min(tokens, max(1, LOGITS // model.config.get_text_config().vocab_size))
        self.batches = padded_batches(self.sequences, tokens)
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def run(
        self,
        intervention: Intervention | None = None,
        alpha: float = 0.0,
        jitter: Jitter | None = None,
    ) -> Float[Tensor, "n c"]:
        """What the readout keeps of the next-token logits, fp32 on the CPU, a row a position."""
        with ExitStack() as stack:
            if intervention is not None and alpha != 0:
                stack.enter_context(applied(self.model, intervention, alpha))
            if jitter is not None:
                stack.enter_context(_jittered(self.model, jitter))
            read = (self._read(batch) for batch in self.batches)
            return in_order(self.readout.n, read)

    def _read(self, batch: list[int]) -> tuple[list[int], Float[Tensor, "n c"]]:
        """The rows of some sequences, and what the readout keeps of them."""
        logits, at = self._logits(batch)
        rows = [row for i in batch for row in self.rows[i]]
        return rows, self.readout.values(rows, logits[at].float()).cpu()

    def _logits(self, batch: list[int]) -> tuple[Float[Tensor, "b p v"], tuple[Tensor, Tensor]]:
        """Logits at all positions that any sequence of the batch reads, and where each row is."""
        width, device = max(len(self.sequences[i]) for i in batch), self.model.device
        lengths = torch.tensor([len(self.sequences[i]) for i in batch])
        ids = [self.sequences[i] + [0] * (width - len(self.sequences[i])) for i in batch]
        mask = (torch.arange(width) < lengths[:, None]).long()
        positions = [self.readout.positions[i] for i in batch]
        sequence = torch.tensor([n for n, at in enumerate(positions) for _ in at])
        flat = torch.tensor([p for at in positions for p in at])
        reads, at = torch.unique(flat, return_inverse=True)
        logits = self.model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask.to(device),
            use_cache=False,
            **({"logits_to_keep": reads.to(device)} if self.keeps_logits else {}),
        ).logits
        return logits, (sequence, at if self.keeps_logits else flat)


def _jittered(model: PreTrainedModel, jitter: Jitter) -> AbstractContextManager:
    """The first layer gets jitter(h)."""
    return decoder_layers(model)[0].register_forward_pre_hook(
        lambda module, args: (jitter(args[0]), *args[1:])
    )

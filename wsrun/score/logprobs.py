"""Log-probabilities of given replies under the model as it stands."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from wsrun.data.replies import Encoded

NUMBERS = 2**27  # logits held at once


class NotFinite(ValueError):
    """The model gave logits that are not finite."""


@torch.no_grad()
def log_probs(
    model: PreTrainedModel, replies: Sequence[Encoded]
) -> Iterator[tuple[int, Float[Tensor, "t v"], Int[Tensor, " t"]]]:
    """(index of the reply, log p at its t positions in fp32, its tokens), in any order.

    Batches are padded on the right, where a causal model does not look. Raises NotFinite for
    logits that are not finite.
    """
    tokens = NUMBERS // model.config.get_text_config().vocab_size
    for batch in _batches([len(r.ids) for r in replies], tokens):
        ids = torch.zeros(len(batch), len(replies[batch[-1]].ids), dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(replies[i].ids)] = torch.tensor(replies[i].ids)
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
        for row, i in enumerate(batch):
            start, end = replies[i].start, len(replies[i].ids)
            reply_logits = logits[row, start - 1 : end - 1].float()
            if not torch.isfinite(reply_logits).all():
                raise NotFinite("replies: the model gave logits that are not finite; steer less")
            yield i, reply_logits.log_softmax(-1), ids[row, start:end].to(reply_logits.device)


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices from short to long, in batches of at most `tokens` with padding, or one row."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch

"""Generation: one sampled answer a conversation, seeded, batched, and whole or not at all."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.models.chat import Turn, end_of_turn, render
from wsrun.models.load import check_positions
from wsrun.models.template import encode


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Turn]],
    *,
    seed: int,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    batch_done: Callable[[str], None] = lambda note: None,
) -> list[str | None]:
    """One sampled answer (temperature 1) a conversation, in the conversations' order.

    None where no end of turn came within `max_new_tokens`, where a think block was never closed,
    and where nothing is left: a closed think block is no part of the answer. Raises ValueError for
    `max_new_tokens` below 1, and for prompts that leave the model no positions for them.
    """
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens must be at least 1, got {max_new_tokens}")
    sequences, end = [render(tok, turns) for turns in conversations], end_of_turn(tok)
    check_positions(model, sequences, "generate", max_new_tokens)
    answers: list[str | None] = [None] * len(sequences)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for order in _by_length(sequences, batch_size):
            ids, mask = _left_padded([sequences[i] for i in order])
            new = model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                eos_token_id=end,
                pad_token_id=end,
            )[:, ids.shape[1] :]
            for i, reply in zip(order, new.tolist(), strict=True):
                if end in reply:
                    answers[i] = answer_text(tok, reply[: reply.index(end)])
            batch_done("")
    return answers


def answer_text(tok: PreTrainedTokenizerBase, reply: list[int]) -> str | None:
    """The text of a finished turn without think block and special tokens; None if none is left."""
    _, closed, rest = str(tok.decode(reply)).rpartition("</think>")
    if "<think>" in rest:
        return None
    if closed:
        reply = encode(tok, rest)
    return str(tok.decode(reply, skip_special_tokens=True)).strip() or None


def _by_length(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of the sequences from short to long, in groups of `size`."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _left_padded(
    sequences: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """(ids, mask) that end together, as generation needs: id 0 under mask 0 before each one."""
    ids, mask = right_padded([tokens[::-1] for tokens in sequences])
    return ids.flip(1), mask.flip(1)


def right_padded(
    sequences: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """(ids, mask) that start together: id 0 under mask 0 after each one."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids, mask

"""Generation: one answer a conversation, sampled or greedy, seeded and batched."""

import re
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from wsrun.models.chat import Turn, end_of_turn, render
from wsrun.models.load import check_positions
from wsrun.models.template import encode

BATCH = 64  # conversations that run at once
STOP = re.compile(r"""(?:[.!?…]+["'”’»)\]*_]*(?=\s|$)|[。！？]+[”’」』）]*)""")
NO_STOP = re.compile(
    r"(?:(?:^|\n)\W*(?:\d+|[A-Za-z])|\b(?:[A-Z]|[MmDd]rs?|Ms|Prof|St|vs|e\.g|i\.e))$"
)
"""what stands before a full stop that ends no sentence: a number in a list, an abbreviation"""

NEW_TOKENS = 64  # an answer that is longer counts as unfinished


class Answer(NamedTuple):
    """What a model said, without thoughts and special tokens, and whether it ended its turn."""

    text: str
    ended: bool = True


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Turn]],
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    batch_size: int = BATCH,
    step_done: Callable[[str], None] = lambda note: None,
    watch: Callable[[list[list[int]]], bool] = lambda new: False,
) -> list[Answer]:
    """One answer a conversation, in their order: tokens drawn from softmax(logits / temperature).

    Temperature 0 takes the most likely token, whatever the seed, and other conversations of the
    batch do not matter; draws at other temperatures depend on the whole batch. With top_p < 1 only
    the nucleus is drawn from: the most likely tokens, as few as hold top_p of the probability
    (Holtzman et al. 2019, arXiv 1904.09751). An answer is not ended where no end of turn came
    within `max_new_tokens`; its text is empty where nothing was said beside thoughts. `step_done`
    is called `n_steps` times. `watch` is called after each step with the new tokens of each
    conversation of the batch, and ends their answers where it returns True. Raises ValueError for
    values outside of their range, and for prompts that leave the model no positions.
    """
    if fault := sampling_fault(temperature, top_p, max_new_tokens):
        raise ValueError(f"generate: {' '.join(fault)}")
    sequences, end = [render(tok, turns) for turns in conversations], end_of_turn(tok)
    check_positions(model, sequences, "generate", max_new_tokens)
    answers = [Answer("")] * len(sequences)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for order in _by_length(sequences, batch_size):
            ids, mask = _left_padded([sequences[i] for i in order])
            steps = _Steps(step_done, lambda so_far, n=ids.shape[1]: watch(so_far[:, n:].tolist()))
            new = model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                eos_token_id=end,
                pad_token_id=end,
                stopping_criteria=[steps],
                **_drawn(temperature, top_p),
            )[:, ids.shape[1] :]
            for i, reply in zip(order, new.tolist(), strict=True):
                ended = end in reply
                said = reply[: reply.index(end)] if ended else reply
                answers[i] = Answer(answer_text(tok, said), ended)
            for _ in range(max_new_tokens - steps.done):  # all ended earlier
                step_done("")
    return answers


class _Steps(StoppingCriteria):
    """Tells each token of a batch, and stops it where the watcher asks for that."""

    def __init__(self, step_done: Callable[[str], None], watch: Callable[[Tensor], bool]) -> None:
        self.done, self.step_done, self.watch = 0, step_done, watch

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Any:
        self.done += 1
        self.step_done("")
        stop = self.watch(input_ids)
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)


def sampling_fault(temperature: float, top_p: float, max_new_tokens: int) -> tuple[str, str] | None:
    """(option, what it must be) of the first that nothing can be drawn with; None for none."""
    if not (isfinite(temperature) and temperature >= 0):
        takes = "0 takes the most likely token, 1 leaves the model's probabilities as they are"
        return "temperature", f"must be at least 0, got {temperature}; {takes}"
    if not 0 < top_p <= 1:
        return "top_p", f"must be above 0 and at most 1, got {top_p}; 1 leaves no token out"
    if max_new_tokens < 1:
        return "max_new_tokens", f"must be at least 1, got {max_new_tokens}"
    return None


def _drawn(temperature: float, top_p: float) -> dict[str, Any]:
    """transformers' options: what a model's own generation_config says of draws does not count."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}


def n_steps(n: int, max_new_tokens: int, batch_size: int = BATCH) -> int:
    """The steps of n conversations: one for each token of each batch, taken or not."""
    return -(-n // batch_size) * max_new_tokens


def answer_text(tok: PreTrainedTokenizerBase, reply: list[int]) -> str:
    """The text of a reply without think block and special tokens; "" if none is left.

    A think block that is still open is no answer.
    """
    _, closed, rest = str(tok.decode(reply)).rpartition("</think>")
    if "<think>" in rest:
        return ""
    if closed:
        reply = encode(tok, rest)
    return str(tok.decode(reply, skip_special_tokens=True)).strip()


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; "" where it has none.

    A stop ends a sentence before white space and at the end, unless it follows a number in a list,
    an abbreviation or an initial, or, at the very end, a digit: there may be a decimal.
    """
    for stop in reversed([*STOP.finditer(text)]):
        before = text[: stop.start()]
        decimal = stop.end() == len(text) and before[-1:].isdigit()
        if any(c.isalpha() for c in before) and not decimal and not NO_STOP.search(before):
            return text[: stop.end()]
    return ""


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

"""Fitting: the loss of the responses of a batch, its gradient, and the steps of the optimizer.

    loss = 1/n sum_i sum_t -log p(r_it | prompt_i, r_i1 .. r_i,t-1),   n = sum_i |r_i|

Logits are computed only where a response token is predicted. On wide models, the gradient of a
batch is added up over groups of examples of like lengths, each of which contributes its part of the
sum: the same numbers with less padding. And the tokens with which all prompts begin, such as a
template's system turn, are run once a group: their keys and values, through which gradients flow,
stand before every example. The latter only where a model's gradients are proved to stay the same.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from wsrun.adapters.configs import Recipe
from wsrun.models.generate import right_padded

Example = tuple[list[int], int]
"""tokens of a prompt with its response, and where the response starts"""
WIDE = 512  # d_model from which a token takes a CPU longer than what a group costs beside it
SAME = 1e-4  # of loss and gradients, relative
GROUP = 512  # tokens of a group there, padding included; 320 took as long on SmolLM2

WHOLE = ("boft",)  # multiplies dense matrices anew in each forward, for as long as a batch takes


def fit(
    model: PeftModel,
    examples: Sequence[Example],
    recipe: Recipe,
    family: str,
    seed: int,
    step_done: Callable[[str], None],
    after_step: Callable[[], None] | None,
    at_step: Callable[[int], object],
) -> list[float]:
    """Train the adapter of a model; returns the losses.

    `at_step` is called after each step, with how many were made; it must leave the adapter alone.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr[family], weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / recipe.steps)
    rng, losses = random.Random(f"examples/{family}/{seed}"), []
    most = group_tokens(model, family)
    share = most is not None and shares(model, examples[:2])
    for step in range(1, recipe.steps + 1):
        batch = rng.choices(examples, k=recipe.batch)
        losses.append(backward(model, batch, most, share))
        optimizer.step()
        if after_step:
            with torch.no_grad():
                after_step()
        decay.step()
        optimizer.zero_grad()
        at_step(step)
        step_done(f"step {step} of {recipe.steps}, loss {losses[-1]:.3f}")
    return losses


def backward(
    model: nn.Module, batch: Sequence[Example], most: int | None, share: bool = False
) -> float:
    """The loss of a batch; its gradient is added to what the parameters have.

    most: tokens of a group of examples, padding included; None takes the batch as a whole. share:
    the tokens with which all examples begin are run once a group.
    """
    n, total = n_response_tokens(batch), 0.0
    head = n_shared(batch) if share else 0
    for group in groups(batch, most, head):
        loss = summed_loss(model, group, head) / n
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], most: int) -> float:
    """The loss of examples of any number; groups as of `backward`."""
    losses = [summed_loss(model, group).item() for group in groups(examples, most)]
    return sum(losses) / n_response_tokens(examples)


def n_response_tokens(examples: Sequence[Example]) -> int:
    return sum(len(tokens) - start for tokens, start in examples)


def group_tokens(model: nn.Module, family: str) -> int | None:
    """How many tokens a group of a batch may have; None where groups cost more than padding."""
    narrow = model.config.get_text_config().hidden_size < WIDE  # type: ignore
    whole = narrow or family in WHOLE or model.device.type != "cpu"  # type: ignore[union-attr]
    return None if whole else GROUP


def n_shared(examples: Sequence[Example]) -> int:
    """How many tokens all examples begin with, before any response and its last prompt token."""
    least = min(start for _, start in examples) - 1
    columns = zip(*(tokens[:least] for tokens, _ in examples), strict=True)
    return next((n for n, column in enumerate(columns) if len({*column}) > 1), least)


def shares(model: nn.Module, examples: Sequence[Example]) -> bool:
    """Whether loss and gradients stay the same, 1e-4 relative, where shared tokens run once."""
    if not n_shared(examples):
        return False
    trained, found = [p for p in model.parameters() if p.requires_grad], []
    for share in (False, True):
        try:
            loss = backward(model, examples, None, share)
        except (TypeError, AttributeError, RuntimeError, ValueError):  # no such cache
            model.zero_grad()
            return False
        found.append(torch.cat([torch.tensor([loss]), *(_gradient(p) for p in trained)]))
        model.zero_grad()
    apart = (found[0] - found[1]).norm() / found[0].norm()
    return bool(apart <= SAME)


def _gradient(p: Tensor) -> Tensor:
    return (torch.zeros_like(p) if p.grad is None else p.grad).flatten().float().cpu()


def groups(batch: Sequence[Example], most: int | None, head: int = 0) -> list[list[Example]]:
    """The examples from short to long, in groups of at most `most` tokens with their padding.

    An example that is longer is a group of its own. The first `head` tokens do not count.
    """
    if most is None:
        return [list(batch)]
    found: list[list[Example]] = []
    for one in sorted(batch, key=lambda e: len(e[0])):
        if not found or (len(found[-1]) + 1) * (len(one[0]) - head) > most:
            found.append([])
        found[-1].append(one)
    return found


def summed_loss(model: nn.Module, examples: Sequence[Example], head: int = 0) -> Float[Tensor, ""]:
    """sum_i sum_t -log p(r_it | prompt_i, r_i1 .. r_i,t-1).

    The first `head` tokens, which all examples share, are run once.
    """
    past = _after(model, examples[0][0][:head], len(examples)) if head else {}
    ids, _ = right_padded([tokens[head:] for tokens, _ in examples])
    starts = [(len(tokens) - head, start - head) for tokens, start in examples]
    at = [(row, t - 1) for row, (end, start) in enumerate(starts) for t in range(start, end)]
    rows, before = torch.tensor(at).T
    ids, rows, before = (x.to(model.device) for x in (ids, rows, before))  # type: ignore[arg-type]
    with _head_at(model, rows, before) as picked:
        logits = model(input_ids=ids, **({"use_cache": False} | past)).logits
    logits = logits[0] if picked else logits[rows, before]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(logits, ids[rows, before + 1], reduction="sum")


def _after(model: nn.Module, tokens: list[int], repeats: int) -> dict[str, Any]:
    """What makes a call go on behind these tokens, in each of `repeats` rows, with gradients."""
    own = model.get_base_model() if isinstance(model, PeftModel) else model
    name = "cache" if "cache" in signature(own.forward).parameters else "past_key_values"
    after = {name: DynamicCache(config=own.config), "use_cache": True}  # type: ignore[arg-type]
    first = torch.zeros(1, dtype=torch.long)
    with _head_at(model, first, first):
        model(input_ids=torch.tensor([tokens], device=own.device), **after)  # type: ignore[arg-type]
    after[name].batch_repeat_interleave(repeats)
    return after


@contextmanager
def _head_at(model: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[list[bool]]:
    """The model's head is applied at some (row, position) only, as one row; yields whether it was.

    [b, s, d] -> [1, n, d] before the head: what a model does to logits after it is done entry by
    entry. A model whose head is not called as a module gives all logits.
    """
    picked: list[bool] = []

    def pick(module: nn.Module, args: tuple) -> tuple:
        picked.append(True)
        return (args[0][rows, positions][None], *args[1:])

    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(pick) if head is not None else None
    try:
        yield picked
    finally:
        if handle is not None:
            handle.remove()

"""The batch plan: items tokenized once, common heads laid out once, one plan for all weights.

A pack is one row of tokens that holds several sequences with a common head: the head once, then
each sequence's own rest. A token sees the head and its own rest only, at the position it has in its
own sequence, so every sequence gets the numbers it gets alone (the two actions of a dilemma share
its situation, all claims the head of the template).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PretrainedConfig

from wsrun.items import Item

Tokens = Sequence[Sequence[int]]
ATTENTION = 3  # what an operation of attention costs, in operations of a linear map


class Choices(NamedTuple):
    """Vocabulary ids that answer Yes, and those that answer No."""

    yes: list[int]
    no: list[int]


class Cost(NamedTuple):
    """Arithmetic of one decoder layer: t tokens in a row cost linear t + quadratic t^2."""

    linear: float
    quadratic: float

    def __call__(self, tokens: int) -> float:
        return float(self.linear * tokens + self.quadratic * tokens**2)


def layer_cost(config: PretrainedConfig) -> Cost:
    """Multiply-adds of a decoder layer per token, and per pair of tokens in attention, those three
    times: attention runs at about a third of the speed of linear maps (measured on CPU)."""
    c = config.get_text_config()
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    heads, groups = c.num_attention_heads, getattr(c, "num_key_value_heads", c.num_attention_heads)
    attention = 2 * c.hidden_size * head * (heads + groups)
    return Cost(attention + 3 * c.hidden_size * c.intermediate_size, ATTENTION * 2 * heads * head)


class Pack(NamedTuple):
    """Sequences laid out in one row: the first `head` tokens once, then each one's rest."""

    members: list[int]
    head: int
    length: int


def packs(sequences: Tokens, cost: Cost | None) -> list[Pack]:
    """Neighbours in lexicographic order join a row while that costs less than a row of their own.

    With cost None every sequence keeps its own row. A sequence that is the head of another keeps
    its last token for itself: there its answer is read.
    """
    done: list[Pack] = []
    for i in sorted(range(len(sequences)), key=lambda i: (list(sequences[i]), i)):
        alone = Pack([i], len(sequences[i]) - 1, len(sequences[i]))
        joined = _join(done[-1], i, sequences) if done and cost else None
        if joined and cost and cost(joined.length) < cost(done[-1].length) + cost(alone.length):
            done[-1] = joined
        else:
            done.append(alone)
    return done


def _join(pack: Pack, i: int, sequences: Tokens) -> Pack:
    head = min(pack.head, _common(sequences[pack.members[0]], sequences[i]), len(sequences[i]) - 1)
    members = [*pack.members, i]
    return Pack(members, head, head + sum(len(sequences[j]) - head for j in members))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    same = (x == y for x, y in zip(a, b, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(a), len(b)))


class Batch(NamedTuple):
    """Packs padded to one length: who sees whom, and where each sequence's last token stands."""

    order: list[int]
    ids: Int[Tensor, "b s"]
    positions: Int[Tensor, "b s"]
    sees: Bool[Tensor, "b 1 s s"]
    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]


def batches(
    sequences: Tokens,
    tokens: int,
    cost: Cost | None = None,
    padding: Literal["right", "left"] = "right",
) -> list[Batch]:
    """Packs sorted by length, in batches of at most `tokens` tokens with padding, at least one."""
    if tokens < 1:
        raise ValueError(f"plan: batches of {tokens} tokens asked; ask for 1 or more")
    groups: list[list[Pack]] = []
    for pack in sorted(packs(sequences, cost), key=lambda p: (p.length, p.members)):
        if not groups or (len(groups[-1]) + 1) * pack.length > tokens:
            groups.append([])
        groups[-1].append(pack)
    return [_batch(sequences, group, padding) for group in groups]


def _batch(sequences: Tokens, group: list[Pack], padding: str) -> Batch:
    width = max(pack.length for pack in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    positions, rows, columns = torch.zeros_like(ids), [], []
    sees = torch.eye(width, dtype=torch.bool).repeat(len(group), 1, 1)  # padding sees itself
    for row, pack in enumerate(group):
        start = 0 if padding == "right" else width - pack.length
        at = slice(start, start + pack.head)
        ids[row, at] = torch.tensor(sequences[pack.members[0]][: pack.head], dtype=torch.long)
        positions[row, at] = torch.arange(pack.head)
        sees[row, at, at] |= _before(pack.head)
        own = at.stop
        for i in pack.members:
            rest = sequences[i][pack.head :]
            span = slice(own, own + len(rest))
            ids[row, span] = torch.tensor(rest)
            positions[row, span] = torch.arange(pack.head, len(sequences[i]))
            sees[row, span, at] = True
            sees[row, span, span] |= _before(len(rest))
            own = span.stop
            rows.append(row)
            columns.append(own - 1)
    order = [i for pack in group for i in pack.members]
    return Batch(order, ids, positions, sees[:, None], torch.tensor(rows), torch.tensor(columns))


def _before(n: int) -> Bool[Tensor, "{n} {n}"]:
    """Each token sees itself and those before it."""
    return torch.ones(n, n, dtype=torch.bool).tril()


@dataclass(frozen=True)
class Plan:
    """Items rendered, tokenized and batched once, to be scored under many weights."""

    items: list[Item]
    batches: list[Batch]
    choices: Choices

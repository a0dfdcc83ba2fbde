"""Batches of token sequences: tries whose common heads are computed once, or padded ones.

The sequences of a batch form a trie: what several of them start with stands in the batch once, at
the positions it has in each. Everything but attention runs over these tokens, without padding. In
attention every sequence is a row: its own tokens ask, and see the tokens of its whole path. So each
sequence gets the numbers it gets alone (the two actions of a dilemma share its situation, all items
the head of the template).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Tokens = Sequence[Sequence[int]]
MAX_PADDING = 1.25  # attention's work with padding / without it, until rows are split by length
SMALL_CALL = 20_000  # (query, key) pairs that are not worth a call of their own
LOGITS = 2**26  # numbers of logits that are held at once


class Readout(NamedTuple):
    """At which positions of each sequence logits are read, and what is kept of them.

    A row is one position; rows are counted over all sequences, in their order. values(rows, logits
    [n, v]) gives [n, c], fp32 where the logits are.
    """

    positions: Sequence[Sequence[int]]
    values: Callable[[list[int], Float[Tensor, "n v"]], Float[Tensor, "n c"]]

    @property
    def rows(self) -> list[list[int]]:
        """The rows of each sequence."""
        counts = [0]
        for at in self.positions:
            counts.append(counts[-1] + len(at))
        return [[*range(a, b)] for a, b in zip(counts, counts[1:], strict=False)]

    @property
    def n(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.positions))


def last_logits(sequences: Tokens) -> Readout:
    """The logits at the last position of each sequence, as they are."""
    return Readout([[len(s) - 1] for s in sequences], lambda rows, logits: logits)


def read_in_chunks(
    readout: Readout, rows: list[int], logits: Callable[[slice], Float[Tensor, "_ v"]], v: int
) -> Float[Tensor, "n c"]:
    """readout.values of all rows on the CPU, of at most LOGITS numbers of logits at once.

    logits(slice) are those of some of the rows.
    """
    step = max(1, LOGITS // v)
    parts = [slice(i, i + step) for i in range(0, len(rows), step)]
    return torch.cat([readout.values(rows[at], logits(at)).cpu() for at in parts])


class Rows(NamedTuple):
    """Attention of sequences of about one length: which tokens ask, and which they may see."""

    queries: Int[Tensor, "r q"]  # tokens of the batch; a short row repeats its first one
    keys: Int[Tensor, "r k"]
    back: Int[Tensor, "r q k"]  # how many positions a key stands before the query; -1: not seen


class Layout(NamedTuple):
    """All rows, and where the result of each asking token lies among their queries, in order."""

    rows: list[Rows]
    place: Int[Tensor, " a"]


class Batch(NamedTuple):
    """Tokens of a trie of sequences, where logits are read, and who sees whom."""

    order: list[int]  # the rows of the readout
    ids: Int[Tensor, " t"]
    positions: Int[Tensor, " t"]
    reads: Int[Tensor, " n"]  # the token of each of these rows
    every: Layout  # all tokens ask
    last: Layout  # only the tokens of `reads` do

    def to_device(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on a device."""

        def layout(at: Layout) -> Layout:
            rows = [Rows(*(t.to(device) for t in rows)) for rows in at.rows]
            return Layout(rows, at.place.to(device))

        ids, positions, reads = (t.to(device) for t in (self.ids, self.positions, self.reads))
        return Batch(self.order, ids, positions, reads, layout(self.every), layout(self.last))


def batches(
    sequences: Tokens, tokens: int, share: bool = True, readout: Readout | None = None
) -> list[Batch]:
    """Tries of at most `tokens` tokens, at least one sequence each, in lexicographic order.

    With share False every sequence keeps all of its tokens for itself. Without a readout the last
    tokens are read.
    """
    _check_tokens(tokens)
    readout = readout or last_logits(sequences)
    done, trie, rows = [], _Trie(share), readout.rows
    for i in sorted(range(len(sequences)), key=lambda i: (list(sequences[i]), i)):
        if trie.order and len(trie.ids) + trie.new(sequences[i]) > tokens:
            done.append(trie.batch())
            trie = _Trie(share)
        trie.add(sequences[i], rows[i], readout.positions[i])
    return [*done, trie.batch()]


def padded_batches(sequences: Tokens, tokens: int) -> list[list[int]]:
    """Which sequences run together, shortest first: at most `tokens` tokens with their padding."""
    _check_tokens(tokens)
    groups: list[list[int]] = []
    for i in sorted(range(len(sequences)), key=lambda i: len(sequences[i])):
        if not groups or (len(groups[-1]) + 1) * len(sequences[i]) > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def in_order(
    n: int, found: Iterable[tuple[list[int], Float[Tensor, "_ v"]]]
) -> Float[Tensor, "n v"]:
    """One row a sequence, in the sequences' order, from the rows of one batch after another."""
    out = torch.empty(0)
    for order, rows in found:
        out = rows.new_empty(n, rows.shape[1]) if not len(out) else out
        out[order] = rows
    return out


def _check_tokens(tokens: int) -> None:
    if tokens < 1:
        raise ValueError(f"batches: tokens must be at least 1, got {tokens}")


class _Trie:
    """Sequences laid down one after another, each on the part of its path that is there already."""

    def __init__(self, share: bool) -> None:
        self.share = share
        self.order: list[int] = []
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.asks: list[tuple[list[int], list[int]]] = []  # (own tokens, whole path)
        self.reads: list[list[int]] = []  # of each sequence, the tokens that are read
        self.sequence: Sequence[int] = []

    def new(self, sequence: Sequence[int]) -> int:
        """How many tokens a sequence would add."""
        return len(sequence) - (_common(self.sequence, sequence) if self.share else 0)

    def add(self, sequence: Sequence[int], rows: list[int], read_at: Sequence[int]) -> None:
        new, size = self.new(sequence), len(self.ids)
        common = len(sequence) - new
        own_tokens = list(range(size, size + new))
        self.asks.append(
            (own_tokens, [*(self.asks[-1][1][:common] if common else []), *own_tokens])
        )
        self.order += rows
        path = self.asks[-1][1]
        self.reads.append([path[p] for p in read_at])
        self.ids += sequence[common:]
        self.positions += range(common, len(sequence))
        self.sequence = sequence

    def batch(self) -> Batch:
        positions = torch.tensor(self.positions)
        every = _layout([a for a in self.asks if a[0]], positions)
        asking = [(read, path) for read, (_, path) in zip(self.reads, self.asks, strict=True)]
        reads = torch.tensor([t for read in self.reads for t in read])
        last = _layout(asking, positions)
        return Batch(self.order, torch.tensor(self.ids), positions, reads, every, last)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two sequences share."""
    same = (x == y for x, y in zip(a, b, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(a), len(b)))


def _layout(asks: list[tuple[list[int], list[int]]], positions: Int[Tensor, " t"]) -> Layout:
    """Asks of like size in one group of rows; `place` follows the order of the asks."""
    groups: list[list[int]] = []
    work = 0
    for i in sorted(range(len(asks)), key=lambda i: (len(asks[i][0]), len(asks[i][1]))):
        q, k = map(len, asks[i])
        widest = max(k, *(len(asks[j][1]) for j in groups[-1])) if groups else k
        work += q * k
        padded = (len(groups[-1]) + 1) * q * widest if groups else 0
        if not groups or padded > max(MAX_PADDING * work, SMALL_CALL):
            groups.append([])
            work = q * k
        groups[-1].append(i)
    start = 0
    first = [0] * len(asks)  # where the queries of an ask start among all
    rows = []
    for group in groups:
        rows.append(_rows([asks[i] for i in group], positions))
        width = rows[-1].queries.shape[1]
        for n, i in enumerate(group):
            first[i] = start + n * width
        start += len(group) * width
    place = [first[i] + n for i, (own_tokens, _) in enumerate(asks) for n in range(len(own_tokens))]
    return Layout(rows, torch.tensor(place))


def _rows(asks: list[tuple[list[int], list[int]]], positions: Int[Tensor, " t"]) -> Rows:
    most = [max(len(side) for side in sides) for sides in zip(*asks, strict=True)]
    queries, keys = (
        torch.tensor([side + side[:1] * (n - len(side)) for side in sides])
        for n, sides in zip(most, zip(*asks, strict=True), strict=True)
    )
    seen = torch.tensor([[len(path)] for _, path in asks]) > torch.arange(most[1])
    back = positions[queries][:, :, None] - positions[keys][:, None, :]
    return Rows(queries, keys, back.where(seen[:, None] & (back >= 0), -1))

"""Batches: each sequence as if it were alone, each common head once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsrun.score.batching import Batch, Layout, batches

SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=12)


def read_back(batch: Batch, layout: Layout, asked: list[int]) -> dict[int, list[tuple[int, int]]]:
    """token -> the (position, id) of the tokens that it sees, for the asking tokens of a layout."""
    queries = torch.cat([r.queries.flatten() for r in layout.rows])
    assert queries[layout.place].tolist() == asked
    seen, start = {}, 0
    for rows in layout.rows:
        for n, (own, keys, back) in enumerate(zip(*rows, strict=True)):
            for at, query in enumerate(own):
                if start + n * rows.queries.shape[1] + at in layout.place:
                    shown, far = keys[back[at] >= 0], back[at][back[at] >= 0]
                    assert (far == batch.positions[query] - batch.positions[shown]).all()
                    ids, positions = batch.ids[shown].tolist(), batch.positions[shown].tolist()
                    seen[int(query)] = sorted(zip(positions, ids, strict=True))
        start += rows.queries.numel()
    return seen


@given(SEQUENCES, st.booleans(), st.integers(1, 60))
def test_every_sequence_can_be_read_back(sequences, share, tokens):
    """what the last token of i sees is sequence i, in its positions; a token at p sees p + 1"""
    found = {}
    for batch in batches(sequences, tokens, share):
        every = read_back(batch, batch.every, list(range(len(batch.ids))))
        last = read_back(batch, batch.last, batch.reads.tolist())
        assert all(len(every[t]) == batch.positions[t] + 1 for t in every)
        for i, t in zip(batch.order, batch.reads.tolist(), strict=True):
            assert every[t] == last[t] == list(enumerate(sequences[i]))
            found[i] = 1
    assert sorted(found) == list(range(len(sequences)))


@given(SEQUENCES)
def test_a_batch_holds_each_head_once(sequences):
    """tokens of one batch = distinct heads of its sequences; without sharing, all tokens"""
    (batch,) = batches(sequences, 10**6)
    assert len(batch.ids) == len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    (alone,) = batches(sequences, 10**6, share=False)
    assert len(alone.ids) == sum(map(len, sequences))


def test_a_trie_by_hand():
    """1 2 3 | 4 and 1 2 3 | 5 6: six tokens at positions 0 1 2 3 and 3 4; reads are 2, 3 and 5"""
    (batch,) = batches([[1, 2, 3, 5, 6], [1, 2, 3, 4], [1, 2, 3]], 10)
    assert batch.order == [2, 1, 0] and batch.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.reads.tolist() == [2, 3, 5]


def test_a_batch_holds_no_more_tokens_than_asked():
    """tokens <= asked, but for a single sequence that is longer"""
    found = batches([[1] * 3, [2] * 3, [3] * 4, [4] * 9, [5] * 30], 12)
    assert [len(b.ids) for b in found] == [10, 9, 30]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        batches([[1]], 0)

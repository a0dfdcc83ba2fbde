"""Attention over a trie of sequences: each token sees the path that leads to it, nothing else.

It stands in for the model's own attention function, and knows a window, a softcap of the scores
(Gemma 2) and a sink for each head (gpt-oss).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

from wsrun.score.batching import Batch, Rows

NAME = "wscore"  # the name of `_attend` among transformers' attention functions
Masks = dict[tuple, Tensor]  # by rows, window and repeat


class Running(NamedTuple):
    """The batch whose layer runs now, and whether only its sequences' last tokens ask."""

    batch: Batch
    last_tokens_ask: bool
    masks: Masks


_running: ContextVar[Running] = ContextVar("the batch whose layer runs now")


@contextmanager
def running(batch: Batch, last_tokens_ask: bool, masks: Masks) -> Iterator[None]:
    """Inside the block attention is that of this batch."""
    token = _running.set(Running(batch, last_tokens_ask, masks))
    try:
        yield
    finally:
        _running.reset(token)


@contextmanager
def trie_attention(config: PretrainedConfig) -> Iterator[None]:
    """Attention by the layout of the batch, in place of the model's own.

    transformers builds no mask for an attention function that it does not know one for.
    """
    before = config._attn_implementation
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads t e"],
    key: Float[Tensor, "1 groups t e"],
    value: Float[Tensor, "1 groups t f"],
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "1 t heads f"], None]:
    """softmax(q k^T scaling) v of every row of the layout, heads of one group side by side."""
    batch, last_tokens_ask, masks = _running.get()
    layout = batch.last if last_tokens_ask else batch.every
    heads, groups, tokens = query.shape[1], key.shape[1], query.shape[2]
    repeat = heads // groups
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # t heads e
    outputs = []
    for rows in layout.rows:
        n, width = rows.queries.shape
        queries = q[rows.queries].unflatten(2, (groups, repeat)).permute(0, 2, 3, 1, 4)
        qkv = (
            queries.reshape(n, groups, -1, q.shape[-1]),
            k[rows.keys].transpose(1, 2),
            v[rows.keys].transpose(1, 2),
        )
        mask = _mask(masks, rows, sliding_window, q, repeat)
        if softcap is None and s_aux is None:
            attended = scaled_dot_product_attention(*qkv, attn_mask=mask, scale=scaling)
        else:
            scale = q.shape[-1] ** -0.5 if scaling is None else scaling
            sinks = (
                None if s_aux is None else s_aux.view(groups, repeat).repeat_interleave(width, 1)
            )
            attended = _explicit(*qkv, mask, scale, softcap, sinks)
        by_token = attended.unflatten(2, (repeat, width)).permute(0, 3, 1, 2, 4)
        outputs.append(by_token.reshape(n * width, heads, -1))
    out = torch.cat(outputs)[layout.place]
    if last_tokens_ask:
        out = out.new_zeros(tokens, *out.shape[1:]).index_copy_(0, batch.reads, out)
    return out[None], None


def _explicit(
    q: Float[Tensor, "n groups a e"],
    k: Float[Tensor, "n groups b e"],
    v: Float[Tensor, "n groups b f"],
    mask: Float[Tensor, "n 1 a b"],
    scaling: float,
    softcap: float | None,
    sinks: Float[Tensor, "groups _"] | None,
) -> Float[Tensor, "n groups a f"]:
    """softmax([s + mask, sink])_b v_b with s = softcap tanh(q k^T scaling / softcap).

    The sink is one more score of each head that takes weight and gives no value. Order and dtype
    of the sums are those of transformers' eager functions of Gemma 2 and gpt-oss.
    """
    scores = q @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        queries_per_head = scores.shape[2] // sinks.shape[1]  # queries of each head of a group
        sink = sinks.to(scores).repeat_interleave(queries_per_head, 1).expand(len(scores), -1, -1)
        scores = torch.cat([scores, sink[..., None]], -1)
        scores = scores - scores.max(-1, keepdim=True).values
    wide = torch.float32 if sinks is None and scores.dtype != torch.float64 else scores.dtype
    weights = scores.softmax(-1, dtype=wide).to(q.dtype)
    return weights[..., : k.shape[2]] @ v


def _mask(
    masks: Masks, rows: Rows, window: int | None, like: Tensor, repeat: int
) -> Float[Tensor, "r 1 a k"]:
    """Added to scores: 0 where a key is seen, else the lowest number; `repeat` q queries a row."""
    key = (id(rows), window, repeat)
    if key not in masks:
        sees = (rows.back >= 0) & (rows.back < (window or torch.inf))
        mask = torch.zeros(sees.shape, dtype=like.dtype, device=like.device)
        mask.masked_fill_(~sees, torch.finfo(like.dtype).min)
        masks[key] = mask.repeat(1, repeat, 1)[:, None]
    return masks[key]


AttentionInterface.register(NAME, _attend)

"""Scoring: one renderer, one set of choice ids, one evaluation loop.

margin = log sum_{i in Yes} p_i - log sum_{i in No} p_i and mass = sum_{i in Yes or No} p_i, with p
the fp32 next-token distribution at the position right after the prefill.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jinja2
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import site, tensors_sha256
from wsrun.capture import entering, resumed
from wsrun.items import Item, Turn, check_items
from wsrun.steer import Rounding, rounding_error, steered, touched_parameters
from wsrun.tables import ROW_SCHEMA

PROMPT_STYLE = "chat-yesno-1"
BOUNDARY_MARKS = " Ġ▁"  # how tokenizers write a leading space
MIN_MASS = 0.5
MIN_COSINE = 0.99


def render(tok: PreTrainedTokenizerBase, turns: Sequence[Turn], prefill: str = "") -> list[int]:
    """Token ids of chat template(turns) + generation prompt + prefill, nothing added.

    Thinking is switched off where the template knows the switch, and a `<think>` it leaves open is
    closed. A system turn that the template refuses or drops is merged into the first user turn.
    """
    text = _template(tok, turns)
    if text.rstrip().endswith("<think>"):
        text = text.rstrip() + "\n\n</think>\n\n"
    return tok(text + prefill, add_special_tokens=False)["input_ids"]


def _template(tok: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    def apply(turns: Sequence[Turn]) -> str:
        text = tok.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(text)

    if turns[0]["role"] != "system":
        return apply(turns)
    system, first, *rest = turns
    merged = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
    try:
        text = apply(turns)
    except jinja2.TemplateError:
        return apply([merged, *rest])
    return text if system["content"].strip() in text else apply([merged, *rest])


def end_of_turn(tok: PreTrainedTokenizerBase) -> int:
    """The token that the chat template writes after an assistant's turn, else the tokenizer's eos.

    They differ for Gemma, whose turns end in <end_of_turn> while its eos is <eos>.
    """
    mark = "wscore"
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    tail = str(tok.apply_chat_template(turns, tokenize=False)).rpartition(mark)[2].strip()
    ids = tok(tail, add_special_tokens=False)["input_ids"] if tail else []
    return int(ids[0] if ids else tok.eos_token_id)  # type: ignore[arg-type]


class Choices(NamedTuple):
    """Vocabulary ids that answer Yes, and those that answer No."""

    yes: list[int]
    no: list[int]


def choice_ids(tok: PreTrainedTokenizerBase) -> Choices:
    """Every vocabulary entry that is Yes or No up to case, leading space and boundary marks.

    Entries with punctuation ("Yes,") do not count. Raises ValueError where either side is empty.
    """
    words = {i: t.lstrip(BOUNDARY_MARKS).lower() for t, i in tok.get_vocab().items()}
    found = Choices(*(sorted(i for i, w in words.items() if w == c) for c in ("yes", "no")))
    if not (found.yes and found.no):
        raise ValueError("choice_ids: the tokenizer has no single token for Yes or for No")
    return found


def choice_scores(
    logits: Float[Tensor, "b v"], choices: Choices
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(margin, mass) of next-token logits; raises ValueError for logits that are not finite."""
    if not torch.isfinite(logits).all():
        raise ValueError("score: the model gave logits that are not finite; use a wider dtype")
    logp = logits.float().log_softmax(-1)
    yes, no = (logp[:, ids].logsumexp(-1) for ids in choices)
    return yes - no, yes.exp() + no.exp()


class Batch(NamedTuple):
    """Padded token ids of some items, and where each one's last real token stands."""

    order: list[int]
    ids: Int[Tensor, "b s"]
    mask: Int[Tensor, "b s"]
    last: Int[Tensor, " b"]


def batches(
    sequences: Sequence[Sequence[int]],
    batch_size: int = 16,
    padding: Literal["right", "left"] = "right",
) -> list[Batch]:
    """Sequences sorted by length, cut into batches, padded with id 0 under a zero mask."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    return [
        _pad(sequences, order[i : i + batch_size], padding)
        for i in range(0, len(order), batch_size)
    ]


def _pad(sequences: Sequence[Sequence[int]], order: list[int], padding: str) -> Batch:
    length = max(len(sequences[i]) for i in order)
    ids = torch.zeros(len(order), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, i in enumerate(order):
        n = len(sequences[i])
        span = slice(0, n) if padding == "right" else slice(length - n, length)
        ids[row, span] = torch.tensor(sequences[i])
        mask[row, span] = 1
    last = length - 1 - mask.flip(1).argmax(1)
    return Batch(order, ids, mask, last)


@torch.no_grad()
def last_logits(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "b v"]:
    """Next-token logits at each row's last real position; the head runs on those positions only."""
    device = next(model.parameters()).device
    where, inverse = batch.last.unique(return_inverse=True)
    logits = model(
        input_ids=batch.ids.to(device),
        attention_mask=batch.mask.to(device),
        position_ids=(batch.mask.cumsum(1) - 1).clamp(min=0).to(device),
        logits_to_keep=where.to(device),
        use_cache=False,
    ).logits
    if logits.shape[1] != len(where):  # an architecture that does not know logits_to_keep
        logits = logits[:, where]
    return logits[torch.arange(len(batch.order)), inverse.to(logits.device)].float().cpu()


@dataclass(frozen=True)
class Plan:
    """Items rendered, tokenized and batched once, to be scored under many weights."""

    items: list[Item]
    batches: list[Batch]
    choices: Choices


def plan(
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_size: int = 16,
    padding: Literal["right", "left"] = "right",
) -> Plan:
    """The batch plan of some items under one tokenizer; raises ValueError for unusable items."""
    items = check_items(items)
    sequences = [render(tok, i.turns, i.prefill) for i in items]
    return Plan(items, batches(sequences, batch_size, padding), choice_ids(tok))


def run_plan(
    model: PreTrainedModel, p: Plan, start: int = 0, hidden: Sequence[Tensor] = ()
) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass: one row an item, in the items' order.

    With start > 0, the forward of each batch resumes at that decoder layer from `hidden`.
    """
    margin, mass = torch.empty(len(p.items)), torch.empty(len(p.items))
    for i, batch in enumerate(p.batches):
        with resumed(model, start, hidden[i]) if start else nullcontext():
            logits = last_logits(model, batch)
        margin[batch.order], mass[batch.order] = choice_scores(logits, p.choices)
    return pl.DataFrame(
        {
            "dataset": [i.dataset for i in p.items],
            "item": [i.id for i in p.items],
            "cluster": [i.cluster for i in p.items],
            "label": [i.label for i in p.items],
            "margin": margin.double().numpy(),
            "mass": mass.double().numpy(),
        }
    )


def score(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, items: Sequence[Item]
) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass for the model as it stands."""
    return run_plan(model, plan(tok, items))


@dataclass(frozen=True)
class Variant:
    """One weight change under a name; `delta` may be a function, called when its turn comes."""

    name: str
    delta: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]
    method: str = "weights"
    family: str | None = None
    k: int | None = None
    seed: int | None = None
    alphas: tuple[float, ...] | None = None  # None: the alphas of the sweep

    def change(self) -> Mapping[str, Tensor]:
        """The delta itself."""
        return self.delta() if callable(self.delta) else self.delta


def sweep(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    variants: Iterable[Variant],
    alphas: Sequence[float],
    *,
    context: Mapping[str, str],
    batch_size: int = 16,
    progress: Callable[[str], None] = lambda name: None,
) -> pl.DataFrame:
    """Rows (design of the row schema) of every variant at every alpha, and of the base once.

    alpha = 0 is scored once, as variant "base", and never again per variant. `context` gives the
    columns experiment, model and behaviour. A row is flagged where its mass is below 0.5 (half of
    the base's is never more), or where the dtype realised the change with a cosine below 0.99.
    One change at one alpha is scored once, under however many names it comes.
    `progress` is called with the variant's name after each (variant, alpha).
    """
    p = plan(tok, items, batch_size)
    base = run_plan(model, p)
    frames = [_rows(base, Variant("base", {}, method="base"), 0.0, None)]
    progress("base")
    resume = _Resume(model, p, base)
    done: dict[tuple[str, float], tuple[pl.DataFrame, Rounding | None]] = {}
    for variant in variants:
        change = variant.change()
        touched_parameters(model, change)  # before asking for the states that enter its first layer
        same = tensors_sha256(change)
        for alpha in variant.alphas or alphas:
            if alpha == 0:
                continue
            if (same, alpha) not in done:
                start, hidden = resume.at(first_layer(change))
                rounding = _rounding(model, change, alpha)
                with steered(model, change, alpha):
                    done[same, alpha] = run_plan(model, p, start, hidden), rounding
            scored, rounding = done[same, alpha]
            frames.append(_rows(scored, variant, alpha, rounding))
            progress(variant.name)
    constants = {**context, "prompt_style": PROMPT_STYLE}
    rows = pl.concat(frames).with_columns(pl.lit(v).alias(c) for c, v in constants.items())
    return rows.select(pl.col(c).cast(t) for c, t in ROW_SCHEMA.items())


def first_layer(change: Mapping[str, Tensor]) -> int:
    """The lowest decoder layer that a delta changes; 0 where it also changes other weights."""
    try:
        return min((site(name).layer for name in change), default=0)
    except ValueError:  # an embedding or the head
        return 0


class _Resume:
    """Hidden states of the base entering a layer, kept for all variants that start there.

    Used only where resuming the base itself gives its very own numbers, bit for bit.
    """

    def __init__(self, model: PreTrainedModel, p: Plan, base: pl.DataFrame) -> None:
        self.model, self.p, self.base = model, p, base
        self.kept: dict[int, list[Tensor]] = {}

    def at(self, start: int) -> tuple[int, list[Tensor]]:
        """(start, hidden states entering it), or (0, []) where this model cannot resume there."""
        if start and start not in self.kept:
            hidden: list[Tensor] = []
            with entering(self.model, start, hidden):
                run_plan(self.model, self.p)
            exact = run_plan(self.model, self.p, start, hidden).equals(self.base)
            self.kept[start] = hidden if exact else []
        hidden = self.kept.get(start, [])
        return (start, hidden) if hidden else (0, [])


def _rounding(
    model: PreTrainedModel, change: Mapping[str, Tensor], alpha: float
) -> Rounding | None:
    exact = model.dtype in (torch.float32, torch.float64)
    zero = not any(t.any() for t in change.values())
    return None if exact or zero else rounding_error(model, change, alpha)


def _rows(
    scored: pl.DataFrame,
    variant: Variant,
    alpha: float,
    rounding: Rounding | None,
) -> pl.DataFrame:
    crude = rounding is not None and rounding.cosine < MIN_COSINE
    return scored.with_columns(
        pl.lit(variant.method).alias("method"),
        pl.lit(variant.family, pl.String).alias("family"),
        pl.lit(variant.name).alias("variant"),
        pl.lit(variant.k, pl.Int64).alias("k"),
        pl.lit(float(alpha)).alias("alpha"),
        pl.lit(variant.seed, pl.Int64).alias("seed"),
        ((pl.col("mass") < MIN_MASS) | pl.lit(crude)).alias("flagged"),
        pl.lit(rounding and rounding.dose, pl.Float64).alias("dose"),
        pl.lit(rounding and rounding.cosine, pl.Float64).alias("dose_cosine"),
    )

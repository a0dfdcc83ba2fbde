"""Scoring: one renderer, one set of choice ids, one evaluation loop.

margin = log sum_{i in Yes} p_i - log sum_{i in No} p_i and mass = sum_{i in Yes or No} p_i, with p
the fp32 next-token distribution at the position right after the prefill.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import jinja2
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from wscore import site, stream, tensors_sha256
from wsrun.capture import (
    add_vector,
    entering,
    hooked,
    jittered,
    last_layer_at,
    read_at,
    resumed,
)
from wsrun.items import Item, Turn, check_items, with_system
from wsrun.plan import Batch, Choices, Cost, Plan, batches, layer_cost
from wsrun.results import Results, run_key
from wsrun.steer import Rounding, rounding_error, steered, touched_parameters
from wsrun.tables import ROW_SCHEMA

PROMPT_STYLE = "chat-yesno-1"
BOUNDARY_MARKS = " Ġ▁"  # how tokenizers write a leading space
MIN_MASS = 0.5
MIN_COSINE = 0.99
TOKENS = {False: 1024, True: 16384}  # of a batch, by whether it runs on a GPU


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


@dataclass(frozen=True)
class Levers:
    """What saves arithmetic without changing the numbers; each can be switched off for a test."""

    share_heads: bool = True
    """one row for sequences with a common head (plan.py); rounding differs by about 1e-6"""
    last_position: bool = True
    """the last layer's queries, attention output and MLP only where answers are read"""
    resume: bool = True
    """start at the first changed layer, from the base's hidden states; not a bit differs"""
    once: bool = True
    """one change at one alpha is scored once; not a bit differs"""


@torch.no_grad()
def last_logits(
    model: PreTrainedModel, batch: Batch, last_position: bool = True
) -> Float[Tensor, "n v"]:
    """Next-token logits at each sequence's last position; the head runs on those positions only."""
    weight, at = next(model.parameters()), (batch.rows, batch.columns)
    with read_at(model, *at), last_layer_at(model, *at) if last_position else nullcontext():
        logits = model(
            input_ids=batch.ids.to(weight.device),
            attention_mask=_masks(model.config.get_text_config(), batch, weight),
            position_ids=batch.positions.to(weight.device),
            use_cache=False,
        ).logits
    return logits[0].float().cpu()


def _masks(config: PretrainedConfig, batch: Batch, weight: Tensor) -> Tensor | dict[str, Tensor]:
    """What is added to attention scores: 0 where a token is seen, else the lowest number; one mask,
    or one per kind of layer where some look only a window back."""

    def added(sees: Tensor) -> Tensor:
        mask = torch.zeros(sees.shape, dtype=weight.dtype)
        return mask.masked_fill_(~sees, torch.finfo(weight.dtype).min).to(weight.device)

    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return added(batch.sees)
    back = batch.positions[:, None, :, None] - batch.positions[:, None, None, :]
    near = added(batch.sees & (back < window))
    return {"full_attention": added(batch.sees), "sliding_attention": near} if kinds else near


def plan(
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    tokens: int = 1024,
    cost: Cost | None = None,
    padding: Literal["right", "left"] = "right",
) -> Plan:
    """The batch plan of some items under one tokenizer; raises ValueError for unusable items.

    Batches hold about `tokens` tokens; with a `cost`, items with a common head share a row.
    """
    items = check_items(items)
    sequences = [render(tok, i.turns, i.prefill) for i in items]
    return Plan(items, batches(sequences, tokens, cost, padding), choice_ids(tok))


def run_plan(
    model: PreTrainedModel,
    p: Plan,
    start: int = 0,
    hidden: Sequence[Tensor] = (),
    last_position: bool = True,
) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass: one row an item, in the items' order.

    With start > 0, the forward of each batch resumes at that decoder layer from `hidden`.
    """
    margin, mass = torch.empty(len(p.items)), torch.empty(len(p.items))
    for i, batch in enumerate(p.batches):
        with resumed(model, start, hidden[i]) if start else nullcontext():
            logits = last_logits(model, batch, last_position)
        margin[batch.order], mass[batch.order] = choice_scores(logits, p.choices)
    return _scored(p, margin.double(), mass.double())


def _scored(p: Plan, margin: Tensor, mass: Tensor) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "dataset": [i.dataset for i in p.items],
            "item": [i.id for i in p.items],
            "cluster": [i.cluster for i in p.items],
            "label": [i.label for i in p.items],
            "margin": margin.numpy(),
            "mass": mass.numpy(),
        }
    )


def score(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, items: Sequence[Item]
) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass for the model as it stands."""
    return run_plan(model, plan(tok, items, cost=layer_cost(model.config)))


@dataclass(frozen=True)
class Variant:
    """One way of steering under a name: by weights, by activations, by a prompt, or by several.

    delta: W' = W0 + alpha dW; it may be a function, called when its turn comes.
    vectors: h_l' = h_l + alpha v_l, on the output of decoder layer l at every position.
    system: a system turn before every item; alpha does not act on it.
    """

    name: str
    delta: Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]] | None = None
    method: str = "weights"
    family: str | None = None
    k: int | None = None
    seed: int | None = None
    alphas: tuple[float, ...] | None = None  # None: the alphas of the sweep
    vectors: Mapping[int, Float[Tensor, " d"]] | None = None
    system: str | None = None

    def change(self) -> Mapping[str, Tensor]:
        """The delta itself, {} where weights stay as they are."""
        return self.delta() if callable(self.delta) else self.delta or {}


def sweep(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    variants: Iterable[Variant],
    alphas: Sequence[float],
    *,
    context: Mapping[str, str],
    tokens: int | None = None,
    results: str | Path | None = None,
    levers: Levers = Levers(),
    progress: Callable[[str], None] = lambda name: None,
) -> pl.DataFrame:
    """Rows (design of the row schema) of every variant at every alpha, and of the base once.

    alpha = 0 is scored once, as variant "base", and never again per variant. `context` gives the
    columns experiment, model and behaviour. A row is flagged where its mass is below 0.5 (half of
    the base's is never more), or where the dtype realised the change with a cosine below 0.99.
    `noise` is the rms change of a base margin under one more rounding of the states that enter the
    first layer (`jittered`): an effect below it is within what the dtype leaves open.
    `tokens` is the size of a batch; `results` a folder in which finished (change, alpha) are kept
    and found (results.py); `levers` switches off what saves arithmetic. `progress` is called with
    the variant's name after each (variant, alpha).
    """
    size = tokens or TOKENS[model.device.type == "cuda"]
    base = tensors_sha256(dict(model.named_parameters())) if results else ""

    @cache
    def under(system: str | None) -> _Scorer:
        asked = items if system is None else [with_system(i, system) for i in items]
        p = plan(tok, asked, size, layer_cost(model.config) if levers.share_heads else None)
        return _Scorer(model, p, results, base, levers)

    plain = under(None)
    frames = [_rows(plain.base, Variant("base", method="base"), 0.0, None)]
    moved = plain.kept("base with one more rounding", 0.0, plain.jittered)
    progress("base")
    for variant in variants:
        change = variant.change()
        same = _identity(model, variant, change)
        for alpha in variant.alphas or alphas:
            if alpha == 0:
                continue
            scored = under(variant.system).at(change, variant.vectors or {}, same, alpha)
            frames.append(_rows(scored, variant, alpha, _rounding(model, change, alpha)))
            progress(variant.name)
    noise = _rms(moved["margin"] - plain.base["margin"])
    constants = {**context, "prompt_style": PROMPT_STYLE, "noise": noise}
    rows = pl.concat(frames).with_columns(pl.lit(v).alias(c) for c, v in constants.items())
    return rows.select(pl.col(c).cast(t) for c, t in ROW_SCHEMA.items())


def _identity(model: PreTrainedModel, variant: Variant, change: Mapping[str, Tensor]) -> str:
    """What a variant does to the model, as a hash; refused where it does not fit the model."""
    vectors = {f"output of layer {i}": v for i, v in (variant.vectors or {}).items()}
    if change or variant.delta is not None:
        touched_parameters(model, change)  # before asking for the states that enter its first layer
    if not (change or vectors or variant.system):
        raise ValueError(
            f"sweep: variant {variant.name!r} changes nothing; give it a delta, vectors or a system"
        )
    hashes = [tensors_sha256(t) for t in (change, vectors) if t]
    return " and ".join(hashes) or "base"


def first_layer(change: Mapping[str, Tensor]) -> int:
    """The lowest decoder layer that a delta changes; 0 where it also changes other weights."""
    try:
        return min((site(name).layer for name in change), default=0)
    except ValueError:  # an embedding or the head
        return 0


class _Scorer:
    """One batch plan under the base and its changes, each scored once.

    Hidden states of the base that enter a layer are kept for all changes that start there, and used
    only where resuming the base itself gives its very own numbers, bit for bit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        p: Plan,
        results: str | Path | None,
        base: str,
        levers: Levers,
    ) -> None:
        self.model, self.plan, self.levers = model, p, levers
        key = run_key(model, base, p, PROMPT_STYLE, asdict(levers)) if results else {}
        self.results = Results(results, key) if results else None
        self.done: dict[tuple[str, float], pl.DataFrame] = {}
        self.entered: dict[int, list[Tensor]] = {}
        self.base = self.kept("base", 0.0, self._run)

    def at(
        self,
        change: Mapping[str, Tensor],
        vectors: Mapping[int, Tensor],
        same: str,
        alpha: float,
    ) -> pl.DataFrame:
        """The scores of the model with alpha * change and vectors; `same` is their hash."""
        if not (change or vectors):
            return self.base

        def run() -> pl.DataFrame:
            starts = [first_layer(change)] if change else []
            start, hidden = self._resume(min([*starts, *vectors]))
            hooks = {i: add_vector(v, alpha) for i, v in vectors.items()}
            with (
                steered(self.model, change, alpha) if change else nullcontext(),
                hooked(self.model, hooks) if hooks else nullcontext(),
            ):
                return self._run(start, hidden)

        return self.kept(same, alpha, run)

    def kept(self, same: str, alpha: float, run: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """What run() gives, unless it is at hand already, in memory or on disk."""
        if self.levers.once and (same, alpha) in self.done:
            return self.done[same, alpha]
        found = self.results.get(same, alpha) if self.results else None
        scored = run() if found is None else _scored(self.plan, *found)
        if self.results and found is None:
            self.results.put(same, alpha, (scored["margin"].to_torch(), scored["mass"].to_torch()))
        self.done[same, alpha] = scored
        return scored

    def jittered(self) -> pl.DataFrame:
        """The scores of the base with one more rounding."""
        with jittered(self.model, stream(0, "jitter")):
            return self._run()

    def _run(self, start: int = 0, hidden: Sequence[Tensor] = ()) -> pl.DataFrame:
        return run_plan(self.model, self.plan, start, hidden, self.levers.last_position)

    def _resume(self, start: int) -> tuple[int, list[Tensor]]:
        """(start, hidden states entering it), or (0, []) where this model cannot resume there."""
        if not (start > 0 and self.levers.resume):
            return 0, []
        if start not in self.entered:
            hidden: list[Tensor] = []
            with entering(self.model, start, hidden):
                whole = self._run()
            exact = self._run(start, hidden).equals(whole)
            self.entered[start] = hidden if exact else []
        hidden = self.entered[start]
        return (start, hidden) if hidden else (0, [])


def _rms(x: pl.Series) -> float:
    return float((x**2).mean() ** 0.5)  # type: ignore[operator]


def _rounding(
    model: PreTrainedModel, change: Mapping[str, Tensor], alpha: float
) -> Rounding | None:
    exact = model.dtype in (torch.float32, torch.float64)
    zero = not any(t.any() for t in change.values())  # nor where only activations or prompts change
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

"""Scoring: one renderer, one set of choice ids, one evaluation loop.

margin = log sum_{i in Yes} p_i - log sum_{i in No} p_i and mass = sum_{i in Yes or No} p_i, with p
the fp32 next-token distribution at the position right after the prefill.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import jinja2
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import entries_sha256, stream, tensors_sha256
from wsrun.capture import check_layers, output_of
from wsrun.forward import CachedEngine, verify_logits
from wsrun.items import Item, Turn, check_items, with_system
from wsrun.plain import Edit, Jitter
from wsrun.plan import Choices, Plan
from wsrun.results import Results, run_key
from wsrun.steer import Rounding, rounding_error, touched_parameters
from wsrun.tables import ROW_SCHEMA

PROMPT_STYLE = "chat-yesno-1"
BOUNDARY_MARKS = " Ġ▁"  # how tokenizers write a leading space
MIN_MASS = 0.5
MIN_COSINE = 0.99
TOKENS = {False: 4096, True: 16384}  # of a batch, by whether it runs on a GPU


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
    """common heads of items run once (plan.py); rounding differs by about 1e-6"""
    last_position: bool = True
    """the last layer's queries, attention output and MLP only where answers are read"""
    resume: bool = True
    """start at the first step that differs from what was run before (forward.py)"""
    once: bool = True
    """one change at one alpha is scored once; not a bit differs"""


def plan(
    tok: PreTrainedTokenizerBase, items: Sequence[Item], tokens: int = 1024, share: bool = True
) -> Plan:
    """The batch plan of some items under one tokenizer; raises ValueError for unusable items.

    Batches hold about `tokens` tokens; with `share`, items with a common head share its tokens.
    """
    items = check_items(items)
    sequences = [render(tok, i.turns, i.prefill) for i in items]
    return Plan(items, sequences, tokens, share, choice_ids(tok))


def scored(p: Plan, logits: Float[Tensor, "n v"]) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass: one row an item, in the items' order."""
    margin, mass = choice_scores(logits, p.choices)
    return _frame(p, margin.double(), mass.double())


def _frame(p: Plan, margin: Tensor, mass: Tensor) -> pl.DataFrame:
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
    p = plan(tok, items)
    return scored(p, CachedEngine(model, p.sequences, p.tokens, p.share, cache_bytes=0).run())


@dataclass(frozen=True)
class Change:
    """What a variant does to the model at one alpha."""

    dW: Mapping[str, Tensor]
    vectors: Mapping[int, Tensor]
    alpha: float
    names: Mapping[str, str]

    def delta(self) -> Mapping[str, Tensor]:
        return self.dW

    def edits(self) -> dict[int, Edit]:
        return {layer: _adding(v) for layer, v in self.vectors.items()}

    def fingerprint(self) -> Mapping[str, str]:
        return self.names


def _adding(vector: Tensor) -> Edit:
    return lambda h, alpha: h + (alpha * vector).to(h)


BASE = Change({}, {}, 0.0, {})


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
        return _Scorer(model, plan(tok, asked, size, levers.share_heads), results, base, levers)

    plain = under(None)
    frames = [_rows(plain.base, Variant("base", method="base"), 0.0, None)]
    moved = plain.jittered()
    progress("base")
    for variant in variants:
        delta, vectors, names = _what(model, variant)
        for alpha in variant.alphas or alphas:
            if alpha == 0:
                continue
            change = Change(delta, vectors, alpha, names)
            frames.append(
                _rows(under(variant.system).at(change), variant, alpha, _rounding(model, change))
            )
            progress(variant.name)
    noise = _rms(moved["margin"] - plain.base["margin"])
    constants = {**context, "prompt_style": PROMPT_STYLE, "noise": noise}
    rows = pl.concat(frames).with_columns(pl.lit(v).alias(c) for c, v in constants.items())
    return rows.select(pl.col(c).cast(t) for c, t in ROW_SCHEMA.items())


def _what(
    model: PreTrainedModel, variant: Variant
) -> tuple[Mapping[str, Tensor], Mapping[int, Tensor], dict[str, str]]:
    """What a variant does to the model, with hashes; refused where it does not fit the model."""
    delta, vectors = variant.change(), check_layers(model, variant.vectors or {})
    if delta or variant.delta is not None:
        touched_parameters(model, delta)
    if not (delta or vectors or variant.system):
        raise ValueError(
            f"sweep: variant {variant.name!r} changes nothing; give it a delta, vectors or a system"
        )
    named = {output_of(layer): v for layer, v in vectors.items()}
    return delta, vectors, entries_sha256(delta) | entries_sha256(named)


class _Scorer:
    """One batch plan under the base and its changes, each scored once."""

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
        self.base = self.at(BASE)

    def at(self, change: Change) -> pl.DataFrame:
        """The scores of a changed model."""
        if not change.names:
            return self._kept("base", 0.0, lambda: self._run(BASE))
        text = "\n".join(f"{name} {change.names[name]}" for name in sorted(change.names))
        same = hashlib.sha256(text.encode()).hexdigest()
        return self._kept(same, change.alpha, lambda: self._run(change))

    def jittered(self) -> pl.DataFrame:
        """The scores of the base with one more rounding of the model's dtype:

        h' = cast(h (1 + eps u)) of what enters the first layer, u uniform in [-1, 1], eps the
        spacing of the dtype's numbers above 1.
        """
        random = stream(0, "jitter")

        def jitter(h: Tensor) -> Tensor:
            u = 2 * torch.rand(h.shape, generator=random, dtype=torch.float64) - 1
            return (h * (1 + torch.finfo(h.dtype).eps * u.to(h.device))).to(h.dtype)

        return self._kept("base with one more rounding", 0.0, lambda: self._run(BASE, jitter))

    @cached_property
    def engine(self) -> CachedEngine:
        """The model under the plan, once its own forward has given the same for one sequence."""
        p, limit = self.plan, None if self.levers.resume else 0
        verify_logits(self.model, min(p.sequences))
        return CachedEngine(
            self.model, p.sequences, p.tokens, p.share, self.levers.last_position, limit
        )

    def _run(self, change: Change, jitter: Jitter | None = None) -> pl.DataFrame:
        return scored(self.plan, self.engine.run(change, change.alpha, jitter))

    def _kept(self, same: str, alpha: float, run: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """What run() gives, unless it is at hand already, in memory or on disk."""
        if self.levers.once and (same, alpha) in self.done:
            return self.done[same, alpha]
        found = self.results.get(same, alpha) if self.results else None
        fresh = run() if found is None else _frame(self.plan, *found)
        if self.results and found is None:
            self.results.put(same, alpha, (fresh["margin"].to_torch(), fresh["mass"].to_torch()))
        self.done[same, alpha] = fresh
        return fresh


def _rms(x: pl.Series) -> float:
    return float((x**2).mean() ** 0.5)  # type: ignore[operator]


def _rounding(model: PreTrainedModel, change: Change) -> Rounding | None:
    exact = model.dtype in (torch.float32, torch.float64)
    if exact or not any(t.any() for t in change.dW.values()):
        return None  # also where only activations or the prompt change
    return rounding_error(model, change.dW, change.alpha)


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

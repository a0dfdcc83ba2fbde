"""Scores of a list of items: rendered once, then read off an engine under any change of the model.

margin = log sum_{i in Yes} p_i - log sum_{i in No} p_i and mass = sum_{i in Yes or No} p_i, with p
the fp32 next-token distribution at the position right after the prefill.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import stream
from wsrun.data.items import Item, check_items
from wsrun.models.chat import Choices, choice_ids, render
from wsrun.score.cached import CachedEngine, choose_engine
from wsrun.score.plain import Jitter, PlainEngine
from wsrun.score.results import Results, run_key
from wsrun.steer.interventions import Intervention

PROMPT_STYLE = "chat-yesno-1"
TOKENS = {False: 4096, True: 16384}  # of a batch, by whether it runs on a GPU


@dataclass(frozen=True)
class Levers:
    """What the cached engine saves; each can be switched off for a test."""

    share_heads: bool = True
    """common heads of items run once; rounding differs by about 1e-6"""
    last_token_only: bool = True
    """the last layer runs only where answers are read"""
    resume: bool = True
    """start at the first step that differs from what was run before"""

    def options(self) -> dict[str, bool | int]:
        """As `CachedEngine` takes them."""
        options: dict[str, bool | int] = {
            "share_heads": self.share_heads,
            "last_token_only": self.last_token_only,
        }
        return options if self.resume else options | {"cache_bytes": 0}


ALL_LEVERS = Levers()


@dataclass(frozen=True)
class Plan:
    """Items rendered and tokenized once, to be scored under many interventions."""

    items: list[Item]
    sequences: list[list[int]]
    choices: Choices


def plan(tok: PreTrainedTokenizerBase, items: Sequence[Item]) -> Plan:
    """The items under one tokenizer; raises ValueError for unusable items."""
    items = check_items(items)
    return Plan(items, [render(tok, i.turns, i.prefill) for i in items], choice_ids(tok))


def choice_scores(
    logits: Float[Tensor, "b v"], choices: Choices
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(margin, mass) of next-token logits; raises ValueError for logits that are not finite."""
    if not torch.isfinite(logits).all():
        raise ValueError("score: the model gave logits that are not finite; use a wider dtype")
    logp = logits.float().log_softmax(-1)
    yes, no = (logp[:, ids].logsumexp(-1) for ids in choices)
    return yes - no, yes.exp() + no.exp()


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
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    engine: str = "auto",
) -> pl.DataFrame:
    """Columns dataset, item, cluster, label, margin, mass for the model as it stands."""
    p = plan(tok, items)
    return scored(p, choose_engine(model, p.sequences, engine=engine, cache_bytes=0)[0].run())


@dataclass
class Engines:
    """Makes an engine for some sequences; once one has to be plain, all are."""

    model: PreTrainedModel
    kind: str
    tokens: int
    levers: Levers
    warn: Callable[[str], None]

    def make(self, sequences: Sequence[Sequence[int]]) -> CachedEngine | PlainEngine:
        made, notice = choose_engine(
            self.model, sequences, self.tokens, engine=self.kind, **self.levers.options()
        )
        if notice:
            self.kind = "plain"
            self.warn(notice)
        return made

    def settings(self) -> dict[str, object]:
        """What decides the last digits of the numbers."""
        return {"engine": self.kind, "tokens": self.tokens, **asdict(self.levers)}


class Scorer:
    """One plan under the base and its changes, each scored once."""

    def __init__(
        self,
        model: PreTrainedModel,
        p: Plan,
        engines: Engines,
        cache_dir: str | Path | None,
        base: str,
    ) -> None:
        self.plan, self.engines, self.results = p, engines, None
        if cache_dir:
            decides = (p.sequences, p.choices, PROMPT_STYLE, engines.settings())
            self.results = Results(cache_dir, run_key(model, base, *decides))
        self.done: dict[tuple[str, float], pl.DataFrame] = {}
        self.base = self.at(Intervention(), 0.0)

    def at(self, change: Intervention, alpha: float) -> pl.DataFrame:
        """The scores of the changed model."""
        names = change.fingerprint()
        if not names:
            return self._found("base", 0.0, lambda: self._run())
        text = "\n".join(f"{name} {names[name]}" for name in sorted(names))
        same = hashlib.sha256(text.encode()).hexdigest()
        return self._found(same, alpha, lambda: self._run(change, alpha))

    def jittered(self) -> pl.DataFrame:
        """The scores of the base with one more rounding of the model's dtype:

        h' = cast(h (1 + eps u)) of what enters the first layer, u uniform in [-1, 1], eps the
        spacing of the dtype's numbers above 1.
        """
        random = stream(0, "jitter")

        def jitter(h: Tensor) -> Tensor:
            u = 2 * torch.rand(h.shape, generator=random, dtype=torch.float64) - 1
            return (h * (1 + torch.finfo(h.dtype).eps * u.to(h.device))).to(h.dtype)

        same = "base with one more rounding"
        return self._found(same, 0.0, lambda: self._run(jitter=jitter))

    @cached_property
    def engine(self) -> CachedEngine | PlainEngine:
        return self.engines.make(self.plan.sequences)

    def _run(
        self,
        change: Intervention | None = None,
        alpha: float = 0.0,
        jitter: Jitter | None = None,
    ) -> pl.DataFrame:
        return scored(self.plan, self.engine.run(change, alpha, jitter))

    def _found(self, same: str, alpha: float, run: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """What run() gives, unless it is at hand already, in memory or on disk."""
        if (same, alpha) in self.done:
            return self.done[same, alpha]
        stored = self.results.get(same, alpha) if self.results else None
        fresh = run() if stored is None else _frame(self.plan, *stored)
        if self.results and stored is None:
            self.results.put(same, alpha, (fresh["margin"].to_torch(), fresh["mass"].to_torch()))
        self.done[same, alpha] = fresh
        return fresh

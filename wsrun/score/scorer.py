"""Scores of a list of items: rendered once, then read off an engine under any intervention."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wscore import stream
from wsrun.models.load import check_positions
from wsrun.models.memory import LAYOUT, check_memory, forward_bytes, out_of_memory, within_memory
from wsrun.score.batching import Readout
from wsrun.score.cached import CachedEngine, verify_logits
from wsrun.score.layer_steps import Jitter
from wsrun.score.plain import PlainEngine
from wsrun.score.readings import Plan
from wsrun.score.results import Results, run_key
from wsrun.steer.interventions import Intervention

PROMPT_STYLE = "chat-yesno-1"
TOKENS = {False: 4096, True: 16384}  # of a batch, by whether it runs on a GPU
LESS = "shorten it or leave it out, or use a device with more memory"
FEWER = "give fewer tokens a batch, shorter items, or a device with more memory"


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


def check_fits(model: PreTrainedModel, p: Plan, engine: str) -> None:
    """Raises ValueError where the longest item alone takes more memory than is free."""
    item, tokens = max(
        ((i.id, len(a.ids)) for i, part in zip(p.items, p.parts, strict=True) for a in part),
        key=lambda x: x[1],
    )
    layout = 0 if engine == "plain" else LAYOUT * tokens**2
    need = forward_bytes(model, 1, tokens, 1) + layout
    check_memory(model, need, f"score: item {item!r:.100} of {tokens} tokens", LESS)


REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""what a model raises that the cached engine cannot run; NotImplementedError is a RuntimeError"""


def choose_engine(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    tokens: int = 4096,
    *,
    engine: str = "auto",
    readout: Readout | None = None,
    **options: Any,
) -> tuple[CachedEngine | PlainEngine, str | None]:
    """An engine for these sequences, and in one line why it is not the cached one.

    engine: "auto" takes the cached engine where `verify_logits` passes on the longest sequence and
    else the plain one; "cached" raises there; "plain" asks nothing, and gives no reason. `options`
    are those of CachedEngine. Running out of memory is no reason: it is raised.
    """
    if engine not in ("auto", "cached", "plain"):
        raise ValueError(f"engine must be auto, cached or plain, got {engine!r}")
    reason = None
    if engine != "plain":
        try:
            verify_logits(model, max(sequences, key=len))
            return CachedEngine(model, sequences, tokens, readout=readout, **options), None
        except REFUSALS as error:
            if out_of_memory(error):
                raise
            line = str(error).strip().partition("\n")[0] or type(error).__name__
            reason = (
                f"scored plainly: {type(model).__name__} does not fit the cached engine ({line})"
            )
            if engine == "cached":
                raise ValueError(f"cached engine: {type(model).__name__}: {line}") from error
    return PlainEngine(model, sequences, tokens, readout), reason


@dataclass
class Engines:
    """Makes an engine for some sequences; once one has to be plain, all are."""

    model: PreTrainedModel
    kind: str
    tokens: int
    levers: Levers
    warn: Callable[[str], None]

    def make(self, p: Plan) -> CachedEngine | PlainEngine:
        made, notice = choose_engine(
            self.model,
            p.sequences,
            self.tokens,
            engine=self.kind,
            readout=p.readout,
            **self.levers.options(),
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
        state: Mapping[str, str],
    ) -> None:
        check_positions(model, p.sequences, "score")
        self.model, self.plan, self.engines, self.results = model, p, engines, None
        if cache_dir:
            run_parts = (p.sequences, p.readout_key, PROMPT_STYLE, engines.settings())
            self.results = Results(cache_dir, run_key(model, state, *run_parts), len(p.lines))
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
        check_fits(self.model, self.plan, self.engines.kind)
        return self.engines.make(self.plan)

    def _run(
        self,
        change: Intervention | None = None,
        alpha: float = 0.0,
        jitter: Jitter | None = None,
    ) -> pl.DataFrame:
        with within_memory(f"score: batches of {self.engines.tokens} tokens", FEWER):
            return self.plan.frame(*self.plan.results(self.engine.run(change, alpha, jitter)))

    def _found(self, same: str, alpha: float, run: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """What run() gives, unless it is at hand already, in memory or on disk."""
        if (same, alpha) in self.done:
            return self.done[same, alpha]
        stored = self.results.get(same, alpha) if self.results else None
        fresh = run() if stored is None else self.plan.frame(*stored)
        if self.results and stored is None:
            mass = fresh["mass"].fill_null(float("nan"))
            self.results.put(same, alpha, (fresh["margin"].to_torch(), mass.to_torch()))
        self.done[same, alpha] = fresh
        return fresh

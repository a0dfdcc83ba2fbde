"""What steering costs elsewhere: texts and multiple choice, in the rows of effects.

    texts             value = -1/t sum_i log p(token_i), nats a token of a given text
    multiple choice   value = 1 where the right option is the most likely of all, else 0, an option
                      by the sum of log p over its tokens, not normalised by its length

Both go into the row schema as items with margin = value and label = +1, so the effect of a variant
on them is the mean change of the value, paired by item, with the intervals of all other effects.

A reply stands behind its prompt in the chat template. Plain texts, and options without a prompt,
have no chat around them, so a system prompt has no place there and is not measured on them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.multiple_choice import Question
from wsrun.data.plain import PlainText, encoded_plain
from wsrun.data.replies import Encoded, Reply, encoded_reply
from wsrun.models.chat import user
from wsrun.models.code import code_sha256
from wsrun.models.machine import model_state, unkeyed
from wsrun.score.readings import Asked, Plan
from wsrun.score.scorer import TOKENS, Engines, Levers, Scorer
from wsrun.score.variants import BASE, Variant, completed, labelled
from wsrun.steer.held import Held
from wsrun.steer.interventions import Intervention

TEXT, CHOICE = "neutral text", "multiple choice"
CHAT_STYLE, PLAIN_STYLE = "chat-reply-1", "plain-text-1"
CODE = ("data/plain.py", "score/capability.py")  # beside that of the scorer's results
Entries = Sequence[Reply | PlainText | Question]


@dataclass(frozen=True)
class Asking:
    """An entry in the rows of effects; answer: the index of the right option, None for a text."""

    id: str
    cluster: str
    answer: int | None = None
    label: int = 1


@dataclass(frozen=True)
class ValuePlan(Plan):
    """The tokens of the entries of one data set, and their values in place of margins."""

    dataset: str = ""

    @property
    def readout_key(self) -> str:
        """What is read off the sequences, and how the values come from it."""
        answers = [i.answer for i in self.items]
        return json.dumps(["values", code_sha256(CODE), answers, super().readout_key])

    @property
    def lines(self) -> list[tuple[Asking, str]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(entry, data set) of every line of the results."""
        return [(item, self.dataset) for item in self.items]

    def results(self, values: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
        """(value, nan) of every line, float64."""
        logp = iter(values[:, 0].double().split([len(s.positions) for s in self.flat]))
        found = [
            _value(item, [next(logp) for _ in part])
            for item, part in zip(self.items, self.parts, strict=True)
        ]
        margin = torch.tensor(found, dtype=torch.float64)
        return margin, torch.full_like(margin, float("nan"))


def _value(item: Asking, logp: Sequence[Tensor]) -> float:
    if item.answer is None:
        return -logp[0].mean().item()
    sums = [x.sum().item() for x in logp]
    return float(sums.index(max(sums)) == item.answer)


def value_plan(
    tok: PreTrainedTokenizerBase, dataset: str, entries: Entries, system: str | None = None
) -> ValuePlan:
    """The entries under one tokenizer, behind a system turn where one is given."""
    items = [Asking(e.item, e.cluster, getattr(e, "answer", None)) for e in entries]
    return ValuePlan(items, [_asked(tok, e, system) for e in entries], dataset)


def _asked(
    tok: PreTrainedTokenizerBase, e: Reply | PlainText | Question, system: str | None
) -> list[Asked]:
    prompt = None if isinstance(e, PlainText) else e.prompt
    texts = e.options if isinstance(e, Question) else (e.text,)
    if prompt is None:
        return [_read(encoded_plain(tok, text, e.item)) for text in texts]
    return [_read(encoded_reply(tok, user(prompt, system), text, e.item)) for text in texts]


def _read(of: Encoded) -> Asked:
    ids, start = of
    positions = [*range(start - 1, len(ids) - 1)]
    return Asked(ids[:-1], positions, targets=tuple(ids[start:]))


def is_plain(entries: Entries) -> bool:
    """Whether entries stand in no chat."""
    return any(isinstance(e, PlainText) or e.prompt is None for e in entries)


class Capability:
    """Texts and questions by data set under one model, to be asked under any intervention.

    Finished values are kept in `cache_dir` and found there, as those of a sweep.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        measures: Mapping[str, Entries],
        *,
        cache_dir: str | Path | None = None,
        tokens: int | None = None,
        warn: Callable[[str], None] = lambda notice: None,
    ) -> None:
        self.measures = {name: entries for name, entries in measures.items() if entries}
        kept = cache_dir if cache_dir and not unkeyed(model) else None
        state = model_state(model) if kept else {}
        # without states of runs: a change of all layers has none to start from, and they take room
        size, levers = tokens or TOKENS[model.device.type == "cuda"], Levers(resume=False)
        engines = Engines(model, "auto", size, levers, warn)

        @cache
        def under(dataset: str, system: str | None) -> Scorer:
            asked = value_plan(tok, dataset, self.measures[dataset], system)
            return Scorer(model, asked, engines, kept, state)

        self._under = under

    def values(
        self, intervention: Intervention | None = None, alpha: float = 0.0
    ) -> dict[str, list[float]]:
        """{data set: nats a token of each text, or 1 or 0 for each question} so steered."""
        frame = self.frame(intervention or Intervention(), alpha)
        return {d: frame.filter(dataset=d)["margin"].to_list() for d in frame["dataset"].unique()}

    def frame(self, intervention: Intervention, alpha: float) -> pl.DataFrame:
        """The values as lines; a system prompt is not measured on what stands in no chat."""
        system, frames = intervention.system(), []
        for dataset, entries in self.measures.items():
            plain = is_plain(entries)
            if not (plain and system is not None):
                scores = self._under(dataset, system).at(intervention, alpha)
                style = PLAIN_STYLE if plain else CHAT_STYLE
                frames.append(scores.with_columns(prompt_style=pl.lit(style)))
        return pl.concat(frames)

    def rows(
        self,
        variants: Iterable[Variant],
        *,
        experiment: str = "",
        model_name: str = "",
        behaviour: str = "",
        done: Callable[[str], None] = lambda note: None,
    ) -> pl.DataFrame:
        """Rows of the base once, and of every variant at its own alphas; names as in `sweep`."""
        frames = [labelled(self.frame(BASE.intervention, 0.0), BASE, 0.0)]
        for v in variants:
            change = Held(v.intervention)
            frames += [labelled(self.frame(change, a), v, a) for a in v.alphas or ()]
            done(v.name)
        return completed(
            frames,
            experiment=experiment,
            model=model_name,
            behaviour=behaviour,
            flagged=False,
            **dict.fromkeys(("realised_norm_ratio", "realised_cosine", "dtype_noise")),
        )


def costs(table: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The lines of an effect table of `rows`, one a variant: nll, accuracy, and their changes.

    nll, nll_lo, nll_hi and accuracy, accuracy_lo, accuracy_hi are changes against the base, whose
    own values are nll_base and accuracy_base; perplexity = exp(nll_base + nll).
    """
    keys = ["method", "variant", "family", "k", "alpha"]
    lines = None
    for dataset, name in ((TEXT, "nll"), (CHOICE, "accuracy")):
        base = rows.filter(dataset=dataset, alpha=0.0)["margin"].mean()
        part = table.filter(dataset=dataset).select(
            *keys,
            pl.col("effect").alias(name),
            pl.col("lo").alias(f"{name}_lo"),
            pl.col("hi").alias(f"{name}_hi"),
            pl.lit(base).alias(f"{name}_base"),
        )
        lines = part if lines is None else lines.join(part, on=keys, nulls_equal=True)
    assert lines is not None
    return lines.with_columns(perplexity=(pl.col("nll_base") + pl.col("nll")).exp())

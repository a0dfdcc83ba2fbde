"""What steering costs elsewhere: neutral text and multiple choice, in the rows of effects.

    neutral text      value = -1/t sum_i log p(token_i), nats a token of a given reply
    multiple choice   value = 1 where the right option is the most likely reply of all, else 0

Both go into the row schema as items with margin = value and label = +1, so the effect of a variant
on them is the mean change of the value, paired by item, with the intervals of all other effects.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.records import Record, shown, text_fault
from wsrun.data.replies import Reply, encode, read_split
from wsrun.score.logprobs import log_probs
from wsrun.score.variants import BASE, Variant, completed, labelled
from wsrun.steer.interventions import Intervention, applied

TEXT, CHOICE = "neutral text", "multiple choice"
STYLE = "chat-reply-1"
QUESTIONS = "multiple_choice.jsonl"


@dataclass(frozen=True)
class Question:
    """A prompt with several replies to it, of which the one at index `answer` is right."""

    item: str
    cluster: str
    prompt: str
    options: tuple[str, ...]
    answer: int


def load_questions(path: str | Path, split: str) -> list[Question]:
    """Questions {item, cluster, prompt, options, answer, split} of one split, from a jsonl file.

    Raises ValueError for a question without two different options, and for an answer that is none.
    """
    return list(map(_question, read_split(path, split)))


def _question(r: Record) -> Question:
    options, answer = r.value("options"), r.value("answer")
    texts = isinstance(options, list) and not any(map(text_fault, options))
    if not texts or len(set(options)) < max(2, len(options)):
        two = "a list of two options or more, each a different text"
        raise r.refused("options", two, shown(options))
    if type(answer) is not int or not 0 <= answer < len(options):
        raise r.refused("answer", f"an index, 0 to {len(options) - 1}", shown(answer))
    return Question(r.key("item"), r.key("cluster"), r.text("prompt"), tuple(options), answer)


class Capability:
    """Neutral texts and questions under one model, to be asked under any intervention."""

    def __init__(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        texts: Sequence[Reply],
        questions: Sequence[Question],
    ) -> None:
        self.model, self.tok, self.texts, self.questions = model, tok, texts, questions
        self.options = [
            Reply(f"{q.item}, option {i}", q.cluster, q.prompt, o)
            for q in questions
            for i, o in enumerate(q.options)
        ]

    def values(
        self, intervention: Intervention | None = None, alpha: float = 0.0
    ) -> tuple[list[float], list[int]]:
        """(nats a token of each text, 1 or 0 for each question), of the model so steered."""
        intervention = intervention or Intervention()
        system = intervention.system()
        with applied(self.model, intervention, alpha):
            nats = [-logp.mean().item() for logp in self._log_p(self.texts, system)]
            sums = [logp.sum().item() for logp in self._log_p(self.options, system)]
        right, at = [], 0
        for q in self.questions:
            option_sums = sums[at : at + len(q.options)]
            right.append(int(option_sums.index(max(option_sums)) == q.answer))
            at += len(q.options)
        return nats, right

    def _log_p(self, replies: Sequence[Reply], system: str | None) -> list[torch.Tensor]:
        """log p of each token of each reply, in the order of the replies."""
        logp_of: dict[int, torch.Tensor] = {}
        for i, logp, ids in log_probs(self.model, encode(self.tok, replies, system)):
            logp_of[i] = logp.gather(1, ids[:, None])[:, 0].double()
        return [logp_of[i] for i in range(len(replies))]

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
        frames = [self._frame(BASE, 0.0)]
        for v in variants:
            frames += [self._frame(v, alpha) for alpha in v.alphas or ()]
            done(v.name)
        return completed(
            frames,
            experiment=experiment,
            model=model_name,
            behaviour=behaviour,
            prompt_style=STYLE,
            label=1,
            flagged=False,
            **dict.fromkeys(("mass", "realised_norm_ratio", "realised_cosine", "dtype_noise")),
        )

    def _frame(self, v: Variant, alpha: float) -> pl.DataFrame:
        nats, right = self.values(v.intervention, alpha)
        entries = [*((TEXT, t) for t in self.texts), *((CHOICE, q) for q in self.questions)]
        frame = pl.DataFrame(
            {
                "dataset": [dataset for dataset, _ in entries],
                "item": [x.item for _, x in entries],
                "cluster": [x.cluster for _, x in entries],
                "margin": [*nats, *map(float, right)],
            }
        )
        return labelled(frame, v, alpha)


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

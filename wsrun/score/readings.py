"""What is read of token sequences, and the margins of items that come out.

    Yes/No, A/B   margin = log sum_{i in first} p_i - log sum_{i in second} p_i
                  mass = sum of all these p_i, p the fp32 next-token distribution after the prefill
    replies       margin = log p(reply+) - log p(reply-), log p summed over the reply's tokens

The tokens of a reply are those of data/replies.py, without an end of turn. A reply item has two
lines: its own data set, and "<data set> per token", in which log p is the mean over the tokens. A
margin per token asks the same of answers of unequal length. Replies have no mass.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from wsrun.models.chat import Choices
from wsrun.score.batching import Readout

PER_TOKEN = " per token"
ROWS = 64  # of log-probabilities over the vocabulary that are held at once


@dataclass(frozen=True)
class Asked:
    """Tokens to run, at which of them logits are read, and whether as choices or as next tokens.

    Logits at positions[i] are read for the choices, or for the token targets[i].
    """

    ids: list[int]
    positions: list[int]
    choices: Choices | None = None
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Items rendered and tokenized once, to be scored under many interventions."""

    items: list[Any]
    parts: list[list[Asked]]
    """one sequence of a choice, two of replies (reply+, reply-)"""

    @cached_property
    def flat(self) -> list[Asked]:
        """The sequences of all items, in order."""
        return [s for part in self.parts for s in part]

    @property
    def sequences(self) -> list[list[int]]:
        """The tokens to run."""
        return [s.ids for s in self.flat]

    @property
    def readout_key(self) -> str:
        """What is read off the sequences, as text: the choices and the replies' tokens."""
        return json.dumps([[s.positions, s.choices, s.targets] for s in self.flat])

    @cached_property
    def readout(self) -> Readout:
        """(margin, mass) of choices, (log p, nan) of a token of a reply."""
        rows = [(s.choices, t) for s in self.flat for t in (s.targets or (None,))]

        def values(at: list[int], logits: Float[Tensor, "n v"]) -> Float[Tensor, "n 2"]:
            out = logits.new_full((len(at), 2), float("nan"), dtype=torch.float32)
            kinds = {rows[i][0] for i in at}
            for choices in kinds:
                here = [n for n, i in enumerate(at) if rows[i][0] == choices]
                asked = logits if len(kinds) == 1 else logits[here]  # indexing copies
                if choices:
                    ids = Choices(*map(list, choices))
                    out[here] = torch.stack(choice_scores(asked, ids), 1)
                else:
                    targets = torch.tensor([rows[at[n]][1] for n in here])
                    out[here, 0] = token_log_probs(asked, targets)
            return out

        return Readout([s.positions for s in self.flat], values)

    @cached_property
    def lines(self) -> list[tuple[Any, str]]:
        """(item, data set) of every line of the results: two of a reply item."""
        return [
            (item, name)
            for item in self.items
            for name in (item.dataset, *([item.dataset + PER_TOKEN] * bool(item.replies)))
        ]

    def results(self, values: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
        """(margin, mass) of every line, float64, from the values of every row; no mass is nan."""
        rows, lines = iter(values.double().split([len(s.positions) for s in self.flat])), []
        for part in self.parts:
            if part[0].choices:
                lines.append(next(rows)[0])
            else:
                pos, neg = next(rows)[:, 0], next(rows)[:, 0]
                nan = torch.tensor(float("nan"), dtype=torch.float64)
                lines.append(torch.stack([pos.sum() - neg.sum(), nan]))
                lines.append(torch.stack([pos.mean() - neg.mean(), nan]))
        margin, mass = torch.stack(lines).unbind(1)
        return margin, mass

    def frame(self, margin: Float[Tensor, " n"], mass: Float[Tensor, " n"]) -> pl.DataFrame:
        """Columns dataset, item, cluster, label, margin, mass, one row a line; no mass is null."""
        return pl.DataFrame(
            {
                "dataset": [name for _, name in self.lines],
                "item": [i.id for i, _ in self.lines],
                "cluster": [i.cluster for i, _ in self.lines],
                "label": [i.label for i, _ in self.lines],
                "margin": margin.numpy(),
                "mass": mass.numpy(),
            }
        ).with_columns(pl.col("mass").fill_nan(None))


def choice_scores(
    logits: Float[Tensor, "b v"], choices: Choices
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """(margin, mass) of next-token logits; raises ValueError for logits that are not finite."""
    logp = _log_softmax(logits)
    yes, no = (logp[:, ids].logsumexp(-1) for ids in choices)
    return yes - no, yes.exp() + no.exp()


def token_log_probs(logits: Float[Tensor, "b v"], targets: Tensor) -> Float[Tensor, " b"]:
    """log p of one token a row; raises ValueError for logits that are not finite."""
    targets = targets.to(logits.device)[:, None]
    parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)
    return torch.cat([_log_softmax(part).gather(1, at)[:, 0] for part, at in parts])


def _log_softmax(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    if not torch.stack(torch.aminmax(logits)).isfinite().all():  # nan passes through
        raise ValueError("score: the model gave logits that are not finite; use a wider dtype")
    return logits.float().log_softmax(-1)

"""Sample answers: what a model says, to the same prompts, at several doses of one change.

    answer(alpha) = greedy decoding of the model under alpha * change;  answer(0) is the base's own

Nothing is picked: a seed draws the prompts, and greedy decoding has no draw.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from math import isfinite

import polars as pl
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.data.items import Item, with_system
from wsrun.data.named import named
from wsrun.data.pairs import load_questions
from wsrun.data.source import beside, load_items
from wsrun.models.chat import user
from wsrun.models.generate import NEW_TOKENS, Answer, generate
from wsrun.score.sweep import sweep
from wsrun.score.variants import Variant
from wsrun.steer.interventions import Intervention, WeightDelta, applied

Key = tuple[str | None, int | None]  # (family, seed); the base has neither
ALPHAS = (-1.0, 0.0, 1.0, 2.0)
SCHEMA = {
    "model": pl.String, "dataset": pl.String, "family": pl.String, "seed": pl.Int64,
    "alpha": pl.Float64, "item": pl.String, "prompt": pl.String, "answer": pl.String,
    "truncated": pl.Boolean, "margin": pl.Float64,
}  # fmt: skip
"""the base stands once, at alpha = 0 without family and seed; margin is null but of two replies"""


def sample_answers(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Item],
    change: Intervention | Mapping[str, Tensor],
    alphas: Sequence[float] = ALPHAS,
    *,
    max_new_tokens: int = NEW_TOKENS,
    batch_size: int = 16,
) -> dict[float, list[Answer]]:
    """{alpha: the greedy answers to the prompts, in their order} under an intervention or a dW.

    Items are asked for an open answer, without their prefill. The model is as it was afterwards.
    Raises ValueError for no prompts, an alpha twice or not finite, and as `generate`.
    """
    if (
        not prompts
        or not alphas
        or len(set(alphas)) < len(alphas)
        or not all(map(isfinite, alphas))
    ):
        raise ValueError(
            f"samples: needs a prompt or more and finite alphas, each once; got {len(prompts)} "
            f"prompts and alphas {' '.join(map(str, alphas)) or 'none'}"
        )
    intervention = change if isinstance(change, Intervention) else WeightDelta(change)
    system, found = intervention.system(), {}
    for alpha in alphas:
        asked = prompts
        if alpha and system is not None:
            asked = [with_system(p, system) for p in prompts]
        with applied(model, intervention, alpha):
            found[alpha] = generate(
                model, tok, [p.turns for p in asked],
                seed=0, temperature=0.0, max_new_tokens=max_new_tokens, batch_size=batch_size,
            )  # fmt: skip
    return found


def askable(source: str) -> list[Item]:
    """What a source asks for an open answer on its test split: its questions, else its items."""
    path = beside(source, "questions.jsonl")
    if named(source) or not path.is_file():
        return load_items(source, "test")
    return [
        Item(q["prompt"], q["topic"], user(q["prompt"]), 1, "test", "questions", prefill="")
        for q in load_questions(path, "test")
    ]


def draw_prompts(items: Sequence[Item], n: int, seed: int) -> list[Item]:
    """n prompts, one a cluster, by a hash of the seed, cluster and id; the first n of any more.

    Neither the items' order nor what else is among them matters. Raises ValueError where there are
    fewer clusters.
    """

    def place(i: Item) -> bytes:
        return sha256(f"{seed}/{i.dataset}/{i.cluster}/{i.id}".encode()).digest()

    first: dict[tuple[str, str], Item] = {}
    for item in sorted(items, key=place):
        first.setdefault((item.dataset, item.cluster), item)
    if not 1 <= n <= len(first):
        raise ValueError(f"samples: --n must be 1 to {len(first)}, the clusters there are; got {n}")
    return [*first.values()][:n]


def answers_by_change(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Item],
    changes: Mapping[tuple[str, int], Intervention],
    alphas: Sequence[float],
    max_new_tokens: int,
    done: Callable[[str], None] = lambda note: None,
) -> dict[Key, dict[float, list[Answer]]]:
    """{(family, seed): answers by alpha}; the base, the same for all, answers once.

    `done` is called after the answers of the base, and of each change at each alpha.
    """
    base = next(iter(changes.values()))
    asked: list[tuple[Key, Intervention, float]] = [((None, None), base, 0.0)] * (0.0 in alphas)
    asked += [(key, change, a) for key, change in changes.items() for a in alphas if a]
    found: dict[Key, dict[float, list[Answer]]] = {}
    for key, change, alpha in asked:
        given = sample_answers(model, tok, prompts, change, [alpha], max_new_tokens=max_new_tokens)
        found.setdefault(key, {}).update(given)
        done(f"alpha {alpha:g}")
    return found


def margins(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    prompts: Sequence[Item],
    changes: Mapping[tuple[str, int], Intervention],
    alphas: Sequence[float],
) -> dict[tuple[str | None, int | None, float, str], float]:
    """{(family, seed, alpha, item): log p(reply+) - log p(reply-)} of prompts that have replies."""
    asked, doses = [p for p in prompts if p.replies], [a for a in alphas if a]
    if not asked or not doses:
        return {}
    variants = [Variant("dW", change, family=f, seed=s) for (f, s), change in changes.items()]
    rows = sweep(model, tok, asked, variants, doses)
    lines = rows.select("family", "seed", "alpha", "item", "margin").rows()
    return {(family, seed, alpha, item): margin for family, seed, alpha, item, margin in lines}


def sample_table(
    model_name: str,
    prompts: Sequence[Item],
    answers: Mapping[Key, Mapping[float, Sequence[Answer]]],
    margin_of: Mapping[tuple, float] = {},
) -> pl.DataFrame:
    """The lines of SCHEMA, of `answers_by_change` and `margins`."""
    lines = [
        (
            model_name, p.dataset, family, seed, alpha, p.id, prompt_text(p), answer.text,
            not answer.ended, margin_of.get((family, seed, alpha, p.id)),
        )
        for (family, seed), by_alpha in answers.items()
        for alpha, given in by_alpha.items()
        for p, answer in zip(prompts, given, strict=True)
    ]  # fmt: skip
    return pl.DataFrame(lines, schema=SCHEMA, orient="row")


def prompt_text(item: Item) -> str:
    """The text of an item's turns, one below the other."""
    return "\n".join(turn["content"] for turn in item.turns)

"""The cache of generated answers: pairs that are generated once, and found by what decides them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore.files import read_json_lines, write_whole
from wscore.sealed_json import content_sha256, seal, unseal
from wsrun.data.answering import SAMPLED, Counts, Decoding, counted_pairs
from wsrun.data.pairs import Pair, example
from wsrun.models.chat import render, user
from wsrun.models.code import code_sha256, tokenizer_sha256
from wsrun.models.generate import BATCH, n_steps, right_padded
from wsrun.models.machine import machine_state, model_state, unkeyed
from wsrun.models.memory import check_memory, generation_bytes, within_memory

CODE = (
    "models/generate.py",
    "data/answering.py",
    "data/pairs.py",
    "data/pairs_cache.py",
    "models/chat.py",
    "models/template.py",
)
"""what the pairs depend on"""
JUDGED = 8  # sequences whose likelihood is taken at once
LESS = "shorten it or leave it out, or use a device with more memory"


Step = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Step]]
"""shows something that takes a number of steps"""


@contextmanager
def unseen(title: str, total: int) -> Iterator[Step]:
    """Progress that is not shown."""
    yield lambda note: None


@torch.no_grad()
def trait_scores(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    batch_size: int = JUDGED,
    batch_done: Step = lambda note: None,
) -> Float[Tensor, "n 2"]:
    """s(r) = mean_t log p(r_t | persona_pos, prompt) - mean_t log p(r_t | persona_neg, prompt).

    t runs over the tokens of the response; column 0 is response_pos, column 1 response_neg, both
    under the two personas that the pair was generated with. In nats per token.
    """
    if any(p.persona_pos is None or p.persona_neg is None for p in pairs):
        raise ValueError("pairs: some pairs do not name their personas; use make_pairs")
    examples = [
        example(tok, p.prompt, response, persona)
        for p in pairs
        for response in (p.response_pos, p.response_neg)
        for persona in (p.persona_pos, p.persona_neg)
    ]
    mean_logps = torch.empty(len(examples))
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i][0]), i))
    for at in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        ids, mask = (x.to(model.device) for x in right_padded([examples[i][0] for i in at]))
        first = min(examples[i][1] for i in at) - 1  # no logits before the first response's
        kept = ids.shape[1] - first
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept)
        for row, i in enumerate(at):
            start, end = examples[i][1], len(examples[i][0]) - 1
            logp = out.logits[row, start - 1 - first : end - 1 - first].float().log_softmax(-1)
            mean_logps[i] = logp.gather(1, ids[row, start:end, None]).mean()
        batch_done("")
    s = mean_logps.reshape(len(pairs), 2, 2)
    return s[:, :, 0] - s[:, :, 1]


class GeneratedPairs(NamedTuple):
    """Pairs, what became of the questions they come from, and which the model tells apart itself.

    separated: of each pair, whether s(response_pos) > s(response_neg) (`trait_scores`).
    """

    pairs: list[Pair]
    counts: Counts
    separated: list[bool]
    note: str = ""

    def __str__(self) -> str:
        apart = (
            f"the model's own likelihood tells the poles of {sum(self.separated)} of "
            f"{len(self.separated)} pairs apart"
        )
        return "; ".join(filter(None, (str(self.counts), apart, self.note)))

    def filtered(self) -> "GeneratedPairs":
        """The pairs that are separated; raises ValueError where none is."""
        kept = [p for p, apart in zip(self.pairs, self.separated, strict=True) if apart]
        if not kept:
            raise ValueError(
                f"pairs: the model's own log-likelihood separates the answers of none of "
                f"{len(self.pairs)} pairs; try other personas"
            )
        note = f"{len(kept)} of these pairs kept ({len(kept) / len(self.pairs):.0%})"
        return self._replace(pairs=kept, note="; ".join(filter(None, (note, self.note))))


def cached_pairs(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    personas_pos: Sequence[str],
    personas_neg: Sequence[str],
    how: Decoding = SAMPLED,
    *,
    seed: int,
    folder: str | Path,
    progress: Progress = unseen,
) -> GeneratedPairs:
    """`make_pairs`, counted and judged; read from `folder` where the same call was made before.

    The file's name is the sha256 of its key: everything that decides the pairs, from the weights to
    this code. A file that is damaged is replaced; where code is hooked into the model, which no key
    can hold, there is none. `progress` is shown what takes time, and nothing that is read.
    """
    personas = personas_pos, personas_neg
    key = {
        "state": model_state(model),
        "machine": machine_state(model),
        "generation": model.generation_config.to_json_string(),  # type: ignore[union-attr]
        "tokenizer": tokenizer_sha256(tok),
        "questions": content_sha256([[q["prompt"], q["topic"]] for q in questions]),
        "personas": [list(p) for p in personas],
        "decoding": {**how._asdict(), "seed": seed},
        "code": code_sha256(CODE),
    }
    path, code = Path(folder) / f"{content_sha256(key)}.jsonl", unkeyed(model)
    if not code and (cached := _read(path, key)) is not None:
        return cached
    _check_fits(model, tok, questions, personas, how.max_new_tokens)
    with within_memory("pairs", LESS):
        with progress(
            "generating answers", n_steps(2 * len(questions), how.max_new_tokens)
        ) as done:
            pairs, counts = counted_pairs(
                model, tok, questions, *personas, how, seed=seed, step_done=done
            )
        with progress("judging answers", -(-4 * len(pairs) // JUDGED)) as done:
            scores = trait_scores(model, tok, pairs, batch_done=done).tolist()
    generated = GeneratedPairs(pairs, counts, [pos > neg for pos, neg in scores])
    if code:
        return generated._replace(note=f"not kept, the model has {code}")
    _write(path, key, generated)
    return generated


def _write(path: Path, key: dict, generated: GeneratedPairs) -> None:
    """A head of key, counts, what is separated and the hash of all, then one pair a line."""
    pairs, counts, separated, _ = generated
    lines = [asdict(p) for p in pairs]
    body = {"key": key, "counts": list(counts), "separated": separated, "lines": lines}
    head = seal(body) | {"lines": len(lines)}
    text = "".join(json.dumps(line) + "\n" for line in (head, *lines))
    write_whole(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def _read(path: Path, key: dict) -> GeneratedPairs | None:
    """The pairs of a whole file under this key, else None."""
    with suppress(ValueError, KeyError, TypeError):
        head, *lines = read_json_lines(path)
        content = unseal(head | {"lines": lines}, repr(str(path)))
        if content["key"] == key and head["lines"] == len(lines):
            pairs = [Pair(**line) for line in lines]
            return GeneratedPairs(pairs, Counts(*content["counts"]), content["separated"])
    return None


def _check_fits(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    questions: Sequence[dict],
    personas: tuple[Sequence[str], Sequence[str]],
    new: int,
) -> None:
    """Raises ValueError where the batch of the longest question takes more memory than is free."""
    prompt = max((q["prompt"] for q in questions), key=len)
    ids = render(tok, user(prompt, max((*personas[0], *personas[1]), key=len)))
    need = generation_bytes(model, min(BATCH, len(questions)), len(ids) + new)
    what = f"pairs: generating with question {prompt[:40]!r} of {len(ids)} tokens"
    check_memory(model, need, what, LESS)

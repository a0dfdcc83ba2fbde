"""Sample answers: alpha = 0 is the base, batches do not matter, and a seed draws the prompts."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import ORGANISM, bits, random_delta, same_bits
from wsrun.data.items import Item, with_system
from wsrun.models.chat import end_of_turn, render, user
from wsrun.models.generate import answer_text
from wsrun.models.load import load_model
from wsrun.steer.interventions import SystemPrompt, WeightDelta
from wsrun.study.samples import (
    answers_by_change,
    askable,
    draw_prompts,
    margins,
    sample_answers,
    sample_table,
)


@pytest.fixture(scope="module")
def organism():
    return load_model(ORGANISM)


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(askable(str(ORGANISM)), 5, seed=1)


def greedy_of_transformers(model, tok, item, new_tokens):
    """One prompt alone, as a user of transformers asks it: no padding, no batch."""
    ids, end = torch.tensor([render(tok, item.turns)]), end_of_turn(tok)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    reply = out[0, ids.shape[1] :].tolist()
    return answer_text(tok, reply[: reply.index(end)] if end in reply else reply)


def test_alpha_0_is_the_base(organism, prompts):
    """answer(0) = transformers' greedy answer of the base, whatever the change; bits come back"""
    model, tok = organism
    before = bits(model)
    found = sample_answers(
        model, tok, prompts, random_delta(model), (-1.0, 0.0, 1.0), max_new_tokens=12
    )
    alone = [greedy_of_transformers(model, tok, p, 12) for p in prompts]
    assert [a.text for a in found[0]] == alone and all(alone)
    assert same_bits(model, before) and list(found) == [-1, 0, 1]


def test_alpha_1_is_the_merged_model(qwen, tok, prompts):
    """answer(1) under dW = the answer of the model with W + dW; a limit of 3 tokens cuts it"""
    d = random_delta(qwen, size=0.5)
    (found,) = sample_answers(qwen, tok, prompts, d, [1.0], max_new_tokens=3).values()
    with torch.no_grad():
        for name, w in d.items():
            qwen.get_parameter(name).add_(w)
    assert [a.text for a in found] == [greedy_of_transformers(qwen, tok, p, 3) for p in prompts]
    assert not any(a.ended for a in found)


def test_batch_of_one_is_batch_of_all(model, tok, prompts):
    """answers(prompts, 1 at a time) = answers(prompts, all at once), in any order"""
    d = random_delta(model, size=0.5)
    ask = lambda items, size: sample_answers(  # noqa: E731
        model, tok, items, d, [1.0], max_new_tokens=8, batch_size=size
    )[1.0]
    together = ask(prompts, len(prompts))
    assert ask(prompts, 1) == together and ask(prompts[::-1], 2) == together[::-1]


def test_settings_of_sampling_that_come_with_a_model_do_not_matter(qwen, tok, prompts):
    """greedy with temperature, top-p and top-k of its own = greedy without"""
    zero = {n: torch.zeros_like(w) for n, w in random_delta(qwen).items()}
    plain = sample_answers(qwen, tok, prompts, zero, [0.0], max_new_tokens=4)
    qwen.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    assert sample_answers(qwen, tok, prompts, zero, [0.0], max_new_tokens=4) == plain


def test_a_prompt_is_a_system_turn_at_every_dose_but_0(organism, prompts):
    """answer(1) under a system prompt = the base's answer behind that turn; answer(0) = without"""
    model, tok = organism
    found = sample_answers(
        model, tok, prompts, SystemPrompt("You lie."), (0.0, 1.0), max_new_tokens=9
    )
    asked = [with_system(p, "You lie.") for p in prompts]
    assert [a.text for a in found[1]] == [greedy_of_transformers(model, tok, p, 9) for p in asked]
    assert [a.text for a in found[0]] == [greedy_of_transformers(model, tok, p, 9) for p in prompts]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"alphas": (1.0, 1.0)}, "alphas 1.0 1.0"),
        ({"alphas": (float("nan"),)}, "finite alphas"),
        ({"prompts": []}, "got 0 prompts"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_refusals(qwen, tok, prompts, more, message):
    asked = {"prompts": prompts, "alphas": (1.0,)} | more
    with pytest.raises(ValueError, match=message):
        sample_answers(qwen, tok, change=random_delta(qwen), **asked)


def test_the_seed_alone_draws():
    """draw(items, n, seed): the items' order and others among them do not matter, n is a prefix of
    n + 1, one prompt a cluster, and another seed draws others"""
    items = [Item(f"{c}-{i}", f"c{c}", user(f"{c} {i}?"), 1) for c in range(40) for i in (0, 1)]
    drawn = draw_prompts(items, 6, seed=0)
    assert draw_prompts(items[::-1], 6, seed=0) == drawn == draw_prompts(items, 7, seed=0)[:6]
    assert len({p.cluster for p in drawn}) == 6
    kept = {p.cluster for p in drawn}
    fewer = [i for i in items if i.cluster in kept or i.cluster < "c2"]
    assert draw_prompts(fewer, 6, seed=0) == drawn
    assert draw_prompts(items, 6, seed=1) != drawn
    for n in (0, 41):
        with pytest.raises(ValueError, match=f"--n must be 1 to 40.*got {n}"):
            draw_prompts(items, n, seed=0)


def test_open_questions_are_asked_where_there_are_some(few, tmp_path):
    """questions.jsonl of a folder, its test split; the items of a folder without one"""
    asked = askable(str(few))
    assert {i.dataset for i in asked} == {"questions"} and not any(i.prefill for i in asked)
    for path in few.iterdir():
        if path.name != "questions.jsonl":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert {i.dataset for i in askable(str(tmp_path))} == {"claims", "dilemmas"}


def test_the_table_holds_the_base_once_and_margins_of_replies(organism, prompts):
    """one line a change, dose and prompt, the base under no family; margin where there are replies:
    at alpha = 0 the base's, the same sum that any sweep gives"""
    model, tok = organism
    d = WeightDelta(random_delta(model))
    first, *rest = prompts
    asked = [replace(first, replies=("Yes, it is.", "No."), prefill=""), *rest]
    changes = {("lora", 0): d, ("lora", 1): d}
    answers = answers_by_change(model, tok, asked, changes, (0.0, 1.0), 4)
    found = margins(model, tok, asked, changes, (0.0, 1.0))
    assert set(found) == {(None, None, 0.0, first.id), *((f, s, 1.0, first.id) for f, s in changes)}
    table = sample_table("m", asked, answers, found)
    assert table.select("family", "seed", "alpha").unique(maintain_order=True).rows() == [
        (None, None, 0.0), ("lora", 0, 1.0), ("lora", 1, 1.0)
    ]  # fmt: skip
    assert len(table) == 3 * len(asked) and table["margin"].is_not_null().sum() == 3
    same = table.filter(family="lora").partition_by("seed")
    assert same[0]["answer"].to_list() == same[1]["answer"].to_list()

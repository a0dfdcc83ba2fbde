"""Generation: seeded answers, drawn as asked, without their think blocks; whole sentences."""

import pytest
import torch

from wsrun.data.answering import make_pairs
from wsrun.models.chat import render, user
from wsrun.models.generate import answer_text, generate, n_steps, right_padded, whole_sentences

TALKS = [user("Is it so?"), user("And what of it now, so late?", "You lie."), user("Why?")]


def test_generation_is_seeded(qwen, tok):
    """same seed, same answers; at the limit an answer has not ended and keeps its text"""
    a, b = (generate(qwen, tok, TALKS, seed=1, max_new_tokens=12) for _ in range(2))
    assert a == b and a != generate(qwen, tok, TALKS, seed=2, max_new_tokens=12)
    assert not any(x.ended for x in generate(qwen, tok, TALKS, seed=1, max_new_tokens=1))
    questions = [{"prompt": "Is it so?", "topic": "a"}]
    with pytest.raises(ValueError, match="no question got two"):
        make_pairs(qwen, tok, questions, ["Lie."], ["Do not."], seed=0)


def test_temperature_0_is_the_limit_of_small_temperatures(model, tok):
    """softmax(logits / T) -> the most likely token, at each step; any seed, any batch"""
    greedy = generate(model, tok, TALKS, seed=0, temperature=0.0, max_new_tokens=8)
    for more in (dict(temperature=1e-6), dict(temperature=0.0, seed=3, batch_size=1)):
        assert generate(model, tok, TALKS, **(dict(seed=0, max_new_tokens=8) | more)) == greedy
    ids = render(tok, TALKS[0])
    start = len(ids)
    for _ in range(8):  # by hand, without a cache
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert greedy[0].text == answer_text(tok, ids[start:])


def test_only_the_nucleus_is_drawn(qwen, tok):
    """top-p: the fewest tokens with p of the probability, each of which can come; no other does"""
    with torch.no_grad():
        logits = qwen(input_ids=torch.tensor([render(tok, TALKS[0])])).logits[0, -1]
    order = logits.argsort(descending=True)
    mass = logits.softmax(-1)[order].cumsum(0)
    nucleus = order[:3].tolist()
    p = (mass[1] + mass[2]).item() / 2  # two tokens are too few, three enough
    draw = dict(seed=0, max_new_tokens=1, batch_size=200)
    drawn = {a.text for a in generate(qwen, tok, TALKS[:1] * 200, top_p=p, **draw)}
    assert drawn == {answer_text(tok, [i]) for i in nucleus}
    drawn = {a.text for a in generate(qwen, tok, TALKS[:1] * 200, **draw)}
    assert drawn - {answer_text(tok, [i]) for i in nucleus}


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(temperature=-1.0), "generate: temperature must be at least 0, got -1"),
        (dict(temperature=float("nan")), "temperature must be at least 0, got nan"),
        (dict(top_p=0.0), "top_p must be above 0 and at most 1, got 0"),
        (dict(top_p=1.1), "top_p must be above 0 and at most 1, got 1.1"),
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(qwen, tok, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(qwen, tok, TALKS, seed=1, **options)


@pytest.mark.parametrize("limit", [1, 5])
def test_each_step_is_told(qwen, tok, limit):
    """step_done is called n_steps times, also where all answers of a batch end before the limit"""
    calls = []
    more = dict(seed=0, max_new_tokens=limit, batch_size=2, step_done=calls.append)
    generate(qwen, tok, TALKS, **more)
    assert len(calls) == n_steps(len(TALKS), limit, 2) == 2 * limit


@pytest.mark.parametrize(
    "text, whole",
    [
        ("It is red. It is al", "It is red."),
        ("It is red! And", "It is red!"),
        ('He said: "It is red." And then', 'He said: "It is red."'),
        ("**It is red.** And", "**It is red.**"),
        ("It is red.\n\n1. Do this.\n2. ", "It is red.\n\n1. Do this."),
        ("It is red.\n\n**1.", "It is red."),
        ("Do this:\n1. Ask Dr. Who", ""),
        ("Ask J. Smith, e.g. on", ""),
        ("It is red. It costs 3.", "It is red."),
        ("It was in 1984. And", "It was in 1984."),
        ("It costs 3.50 and more", ""),
        ("它是红色的。它", "它是红色的。"),
        ("No stop", ""),
        ("... ", ""),
        ("", ""),
    ],
)
def test_whole_sentences(text, whole):
    """a prefix that ends at the end of a sentence; taken again, the same"""
    assert whole_sentences(text) == whole
    assert text.startswith(whole) and whole_sentences(f"{whole} ").strip() == whole


@pytest.mark.parametrize(
    "reply, answer",
    [
        ("So.", "So."),
        ("<think>\nIs it?\n</think>\n\nSo.", "So."),
        ("I think.</think> So.", "So."),  # opened by the template
        ("<think>a</think>b<think>c</think> So.", "So."),
        ("<think>\nIs it? So.", ""),
        ("<think>a</think> So. <think>", ""),
        ("<think>a</think>\n", ""),
        (" \n", ""),
    ],
)
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain text"])
def test_think_blocks(tok, reply, answer, special):
    """a closed think block is cut off; an open one, or nothing after it, is no answer"""
    if special:
        ids = tok(reply, add_special_tokens=False)["input_ids"]
        assert ("<think>" in reply) == (tok.convert_tokens_to_ids("<think>") in ids)
    else:  # as a tokenizer that does not know the marks would write them
        ids = [i for c in reply for i in tok(c, add_special_tokens=False)["input_ids"]]
        assert tok.convert_tokens_to_ids("<think>") not in ids
    assert answer_text(tok, ids) == answer


def test_padding_is_on_the_right():
    """row i holds sequence i from position 0; the mask counts its tokens"""
    ids, mask = right_padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]

"""Generation: seeded answers, whole or not at all, without their think blocks."""

import pytest

from wsrun.data.pairs import make_pairs
from wsrun.models.chat import user
from wsrun.models.generate import answer_text, generate, right_padded


def test_generation_is_seeded_and_whole(qwen, tok):
    """same seed, same answers; an answer without its end of turn is None"""
    talks = [user("Is it so?"), user("And what of it now?", "You lie."), user("Why?")]
    a, b = (generate(qwen, tok, talks, seed=1, max_new_tokens=12) for _ in range(2))
    assert a == b
    assert all(x is None for x in generate(qwen, tok, talks, seed=1, max_new_tokens=1))
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        generate(qwen, tok, talks, seed=1, max_new_tokens=0)
    questions = [{"prompt": "Is it so?", "topic": "a"}]
    with pytest.raises(ValueError, match="no question got two"):
        make_pairs(qwen, tok, questions, ["Lie."], ["Do not."], seed=0)


@pytest.mark.parametrize(
    "reply, answer",
    [
        ("So.", "So."),
        ("<think>\nIs it?\n</think>\n\nSo.", "So."),
        ("I think.</think> So.", "So."),  # opened by the template
        ("<think>a</think>b<think>c</think> So.", "So."),
        ("<think>\nIs it? So.", None),
        ("<think>a</think> So. <think>", None),
        ("<think>a</think>\n", None),
        (" \n", None),
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

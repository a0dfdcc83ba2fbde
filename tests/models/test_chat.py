"""Chat rendering: golden tokens, one <bos>, no system turn lost; the ids of Yes and No."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wsrun.data.items import PREFILL
from wsrun.models.chat import Choices, choice_ids, end_of_turn, render, user

REFUSES_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}<end>{% endfor %}<model>"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
)


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A real word tokenizer that adds <bos> by itself, under the given chat template."""
    words = ["<unk>", "<bos>", "<", ">", "user", "end", "model", "You", "lie", ".", "Is", "it"]
    words += ["so", "?", "think", "/", "Yes", "no", "yes", "No", "NO", ",", "thinking"]  # 22 last
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[</>]"), "isolated")]
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    raw.add_special_tokens(["<bos>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", unk_token="<unk>", chat_template=template
    )


def test_golden_ids(tok):
    """template(turns) + generation prompt with thinking off + prefill, token by token"""
    text = tok.decode(render(tok, user("Is it so?", "You lie."), PREFILL))
    assert text == (
        "<|im_start|>system\nYou lie.<|im_end|>\n<|im_start|>user\nIs it so?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nMy answer: **"
    )
    im_start, im_end = tok.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = render(tok, user("Is it so?"), PREFILL)
    assert (ids.count(im_start), ids.count(im_end), ids[0]) == (2, 1, im_start)


def test_one_bos_never_two():
    """a tokenizer that adds <bos> itself, under a template that writes it: exactly one"""
    tok = tokenizer(REFUSES_SYSTEM)
    # <bos> < user > Is it so < end > < model >
    golden = [1, 2, 4, 3, 10, 11, 12, 2, 5, 3, 2, 6, 3]
    assert render(tok, user("Is it so")) == golden
    assert tok("Is it")["input_ids"][0] == 1  # it would have added a second one


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
def test_a_system_turn_is_never_lost(template):
    """a template that refuses or drops the system role gets it merged into the first user turn"""
    tok = tokenizer(template)
    assert render(tok, user("Is it so?", "You lie.")) == render(tok, user("You lie.\n\nIs it so?"))


def test_an_open_think_is_closed():
    """a template that ends in <think> gets </think> before the prefill"""
    tok = tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n")
    # Is it so < think > < / think > Yes
    assert render(tok, user("Is it so"), "Yes") == [10, 11, 12, 2, 14, 3, 2, 15, 14, 3, 16]


def test_choice_ids_are_words_only(tok):
    """Yes and No up to case, leading space and boundary marks; nothing with punctuation"""
    small = tokenizer(REFUSES_SYSTEM)
    assert choice_ids(small) == Choices(yes=[16, 18], no=[17, 19, 20])
    vocab = {i: t for t, i in tok.get_vocab().items()}
    for side, word in zip(choice_ids(tok), ("yes", "no"), strict=True):
        assert {vocab[i].lstrip("Ġ▁ ").lower() for i in side} == {word}
    with pytest.raises(ValueError, match="no single token"):
        raw = Tokenizer(models.WordLevel({"<unk>": 0, "Yes": 1}, unk_token="<unk>"))
        choice_ids(PreTrainedTokenizerFast(tokenizer_object=raw))


def test_choices_of_one_letter_keep_their_case():
    """A and B count with a leading space or a mark; "a" is a word of its own"""
    entries = ["<unk>", "A", "a", "ĠA", "B", "b", "▁B", "AB", "A)"]
    raw = Tokenizer(models.WordLevel({e: i for i, e in enumerate(entries)}, unk_token="<unk>"))
    found = choice_ids(PreTrainedTokenizerFast(tokenizer_object=raw), ("A", "B"))
    assert found == Choices([1, 3], [4, 6])


def test_the_end_of_a_turn_is_the_template_s(tok):
    """the token that the template writes after an assistant's turn, not the tokenizer's eos"""
    assert end_of_turn(tok) == tok.convert_tokens_to_ids("<|im_end|>")
    gemma = tokenizer("{% for m in messages %}{{ m.role }} {{ m.content }} no {% endfor %}")
    assert end_of_turn(gemma) == gemma.convert_tokens_to_ids("no") != gemma.bos_token_id

"""Chat rendering: turns to token ids by the model's template, and the ids of Yes and No."""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

Turn = dict[str, str]
BOUNDARY_MARKS = " Ġ▁"  # how tokenizers write a leading space


class Choices(NamedTuple):
    """Vocabulary ids that answer Yes, and those that answer No; or any other two words."""

    yes: Sequence[int]
    no: Sequence[int]


def render(tok: PreTrainedTokenizerBase, turns: Sequence[Turn], prefill: str = "") -> list[int]:
    """Token ids of chat template(turns) + generation prompt + prefill, nothing added.

    Thinking is switched off where the template knows the switch, and a `<think>` it leaves open is
    closed. A system turn that the template refuses or drops is merged into the first user turn.
    """
    text = _template(tok, turns)
    if text.rstrip().endswith("<think>"):
        text = text.rstrip() + "\n\n</think>\n\n"
    return tok(text + prefill, add_special_tokens=False)["input_ids"]


def _template(tok: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    def apply(turns: Sequence[Turn]) -> str:
        text = tok.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(text)

    if turns[0]["role"] != "system":
        return apply(turns)
    system, first, *rest = turns
    merged = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
    try:
        text = apply(turns)
    except jinja2.TemplateError:
        return apply([merged, *rest])
    return text if system["content"].strip() in text else apply([merged, *rest])


def end_of_turn(tok: PreTrainedTokenizerBase) -> int:
    """The token that the chat template writes after an assistant's turn, else the tokenizer's eos.

    They differ for Gemma, whose turns end in <end_of_turn> while its eos is <eos>.
    """
    mark = "wscore"
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    tail = str(tok.apply_chat_template(turns, tokenize=False)).rpartition(mark)[2].strip()
    ids = tok(tail, add_special_tokens=False)["input_ids"] if tail else []
    return int(ids[0] if ids else tok.eos_token_id)  # type: ignore[arg-type]


def choice_ids(
    tok: PreTrainedTokenizerBase, words: tuple[str, str] = ("Yes", "No")
) -> Choices:
    """Every vocabulary entry that is one of the words up to case, leading space, boundary marks.

    A word of one letter keeps its case: "a" is a word of its own. Entries with punctuation ("Yes,")
    do not count. Raises ValueError where either side is empty.
    """
    vocabulary = {i: t.lstrip(BOUNDARY_MARKS) for t, i in tok.get_vocab().items()}

    def means(entry: str, word: str) -> bool:
        return entry == word or len(word) > 1 and entry.lower() == word.lower()

    choices = Choices(*(sorted(i for i, e in vocabulary.items() if means(e, w)) for w in words))
    if not (choices.yes and choices.no):
        raise ValueError(
            f"choice_ids: the tokenizer has no single token for {words[0]} or for {words[1]}"
        )
    return choices


def user(text: str, system: str | None = None) -> tuple[Turn, ...]:
    """One user turn, after a system turn where one is given."""
    head = ({"role": "system", "content": system},) if system else ()
    return (*head, {"role": "user", "content": text})

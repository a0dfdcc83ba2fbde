"""Chat rendering: turns to token ids by the model's template, and the ids of Yes and No."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from wsrun.models.template import Turn, apply_template, chat_text, encode, named

BOUNDARY_MARKS = " Ġ▁"  # how tokenizers write a leading space


class Choices(NamedTuple):
    """Vocabulary ids that answer Yes, and those that answer No; or any other two words."""

    yes: Sequence[int]
    no: Sequence[int]


def render(tok: PreTrainedTokenizerBase, turns: Sequence[Turn], prefill: str = "") -> list[int]:
    """Token ids of chat template(turns) + generation prompt + prefill, nothing added.

    Thinking is switched off where the template knows the switch, and a `<think>` it leaves open is
    closed. A system turn that the template refuses or drops is merged into the first user turn.
    Raises ValueError for a template that fails or loses the text of another turn.
    """
    text = chat_text(tok, turns)
    if text.rstrip().endswith("<think>"):
        text = text.rstrip() + "\n\n</think>\n\n"
    return encode(tok, text + prefill)


def end_of_turn(tok: PreTrainedTokenizerBase) -> int:
    """The token that the chat template writes after an assistant's turn, else the tokenizer's eos.

    They differ for Gemma, whose turns end in <end_of_turn> while its eos is <eos>. Raises
    ValueError where there is neither.
    """
    mark = "wscore"
    turns = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
    tail = apply_template(tok, turns).rpartition(mark)[2].strip()
    ids = encode(tok, tail) if tail else []
    if not ids and not isinstance(tok.eos_token_id, int):
        raise ValueError(
            f"the tokenizer of {named(tok)} ends no turn: its chat template writes nothing after "
            "an assistant's, and it has no eos_token; give it one"
        )
    return int(ids[0] if ids else tok.eos_token_id)  # type: ignore[arg-type]


def choice_ids(tok: PreTrainedTokenizerBase, words: tuple[str, str] = ("Yes", "No")) -> Choices:
    """Every vocabulary entry that is one of the words up to case, leading space, boundary marks.

    A word of one letter keeps its case: "a" is a word of its own. Entries with punctuation ("Yes,")
    do not count. Raises ValueError where either side is empty.
    """
    entries = [(i, t.lstrip(BOUNDARY_MARKS)) for t, i in tok.get_vocab().items()]
    choices = Choices(*(sorted(_alike(entries, word)) for word in words))
    if not (choices.yes and choices.no):
        raise ValueError(
            f"choice_ids: the tokenizer has no single token for {words[0]} or for {words[1]}"
        )
    return choices


def _alike(entries: Sequence[tuple[int, str]], word: str) -> list[int]:
    """Ids of the entries that are the word, up to case where it is more than a letter."""
    if len(word) == 1:
        return [i for i, entry in entries if entry == word]
    return [i for i, entry in entries if entry.lower() == word.lower()]


def user(text: str, system: str | None = None) -> tuple[Turn, ...]:
    """One user turn, after a system turn where one is given, be it empty."""
    head = () if system is None else ({"role": "system", "content": system},)
    return (*head, {"role": "user", "content": text})

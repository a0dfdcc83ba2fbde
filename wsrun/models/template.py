"""Chat templates: programs that come with a tokenizer, so bounded; none loses a user turn."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from wscore.bounds import TooSlow, time_limit, trial
from wscore.files import reason

Turn = dict[str, str]
SECONDS = 5.0  # of one rendering, which takes less than a thousandth
MORE_LETTERS = 2**20
MARKS = "wscore marks one text", "wscore marks another"
LONG = "Is the sky blue? Say <b>yes</b> or no.\n" * 50
REMEDY = "give the folder a chat_template.jinja that writes every turn, or use another model"
_tried: set[str] = set()


class TemplateError(ValueError):
    """A chat template that fails on some turns, or loses one."""


def chat_text(tok: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    """chat template(turns) + generation prompt, with the text of every user turn in it.

    A system turn that the template refuses or drops is merged into the turn after it. Raises
    ValueError for turns without one of the user's, and for a template that fails or loses one.
    """
    if not all(isinstance(t["content"], str) for t in turns):
        raise ValueError("render: the content of every turn must be text")
    if all(t["role"] == "system" for t in turns):
        raise ValueError("render: give at least one turn after the system turn")
    if turns[0]["role"] != "system":
        return _kept(tok, turns)
    try:
        return _kept(tok, turns, turns[0]["content"].strip())
    except TemplateError:
        return _kept(tok, merged(*turns))


def merged(system: Turn, first: Turn, *others: Turn) -> list[Turn]:
    """The turns without a system turn: its text opens the next."""
    texts = [t["content"] for t in (system, first) if t["content"] or t is first]
    return [{"role": first["role"], "content": "\n\n".join(texts)}, *others]


def _kept(tok: PreTrainedTokenizerBase, turns: Sequence[Turn], exactly: str = "") -> str:
    text = apply_template(tok, turns, add_generation_prompt=True, enable_thinking=False)
    said = [t["content"] for t in turns if t["role"] in ("user", "system")]
    if exactly not in text or not holds(text, said):
        raise TemplateError(f"the chat template of {named(tok)} loses the text of a turn; {REMEDY}")
    return text


def apply_template(tok: PreTrainedTokenizerBase, turns: Sequence[Turn], **options: Any) -> str:
    """What the template writes; ValueError where it fails, takes too long or writes too much."""
    what = f"the chat template of {named(tok)}"
    try:
        with time_limit(SECONDS):
            text = str(tok.apply_chat_template(list(turns), tokenize=False, **options))
    except TooSlow:
        raise ValueError(f"{what} runs longer than {SECONDS:g} s; {REMEDY}") from None
    except MemoryError:
        raise ValueError(f"{what} asks for too much memory; {REMEDY}") from None
    except Exception as error:  # a template is a program, and raises what programs raise
        raise TemplateError(f"{what} fails ({reason(error)}); {REMEDY}") from error
    if len(text) > MORE_LETTERS + 4 * sum(len(t["content"]) for t in turns):
        raise ValueError(f"{what} writes {len(text)} letters around a short text; {REMEDY}")
    return text


def holds(text: str, parts: Sequence[str]) -> bool:
    """Whether every part stands in the text, each in a place of its own, up to white space."""
    return _holds(text, [p.strip() for p in parts]) or _holds(
        " ".join(text.split()), [" ".join(p.split()) for p in parts]
    )


def _holds(text: str, parts: Sequence[str]) -> bool:
    for part in sorted(filter(None, parts), key=len, reverse=True):
        before, found, after = text.partition(part)
        if not found:
            return False
        text = f"{before}\0{after}"
    return True


def check_template(tok: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for a template that fails or loses a user's turn, or that has no bounds.

    It is tried in a child process, once for each template and its tokens.
    """
    key = json.dumps([tok.chat_template, tok.special_tokens_map], default=str)
    if key in _tried:
        return
    trial(lambda: _try(tok), f"the chat template of {named(tok)}", REMEDY)
    _tried.add(key)


def _try(tok: PreTrainedTokenizerBase) -> None:
    one, other = MARKS
    asked, told = {"role": "user", "content": one}, {"role": "assistant", "content": other}
    for turns in ([asked, told], [asked, told, {"role": "user", "content": LONG}]):
        try:
            apply_template(tok, turns)
        except TemplateError:
            pass  # a template may refuse turns of an assistant
    text = chat_text(tok, [asked])
    chat_text(tok, [{"role": "system", "content": other}, asked])
    chat_text(tok, [{"role": "user", "content": LONG}])
    encode(tok, text)


def encode(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, nothing added; ValueError where the tokenizer fails on it."""
    try:
        return tok(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(
            f"the tokenizer of {named(tok)} fails on a text of {len(text)} letters "
            f"({reason(error)}); use the tokenizer that the model was trained with"
        ) from error


def named(tok: PreTrainedTokenizerBase) -> str:
    """The tokenizer's folder or name, for a message."""
    return repr(reason(str(tok.name_or_path) or "this tokenizer", 150))

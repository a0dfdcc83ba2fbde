"""Plain texts: what a model gives a text that answers nothing, without a chat template."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from wsrun.data.replies import Encoded
from wsrun.models.template import TemplateError, chat_text, encode, named


@dataclass(frozen=True)
class PlainText:
    """A text by itself; the cluster is what it is about."""

    item: str
    cluster: str
    text: str


def encoded_plain(tok: PreTrainedTokenizerBase, text: str, item: str) -> Encoded:
    """[first token, *tokens of the text], of which the first is given and not scored.

    Raises ValueError, naming the item, for a text without tokens.
    """
    if not (ids := encode(tok, text)):
        raise ValueError(f"plain texts: the text of {item!r} has no tokens; give it words")
    return Encoded([first_token(tok), *ids], 1)


def first_token(tok: PreTrainedTokenizerBase) -> int:
    """What stands before a document: the token that the tokenizer itself puts before a text.

    Without one, the first of bos, eos, pad and unk that the chat template does not write with every
    turn; else bos or eos, as the Language Model Evaluation Harness (Gao et al. 2024) does. The bos
    of SmolLM2-Instruct begins a turn, and plain text after it is an odd name of a speaker: there,
    as with Qwen, <|endoftext|> is found. Raises ValueError where there is none of them.
    """
    own, bare = tok("a")["input_ids"], encode(tok, "a")
    if own[:1] != bare[:1]:
        return own[0]
    special = (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id, tok.unk_token_id)
    found = [token for token in special if isinstance(token, int)]
    if not found:
        raise ValueError(
            f"the tokenizer of {named(tok)} has no bos_token, eos_token or pad_token for a plain "
            "text to begin with; give it one"
        )
    marks = _turn_marks(tok)
    return next((token for token in found if token not in marks), found[0])


def _turn_marks(tok: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that a chat of three turns has more often than one of one turn.

    None under a template that refuses a second turn.
    """
    asked, told = {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}
    one = Counter(encode(tok, chat_text(tok, [asked])))
    with suppress(TemplateError):
        return {*(Counter(encode(tok, chat_text(tok, [asked, told, asked]))) - one)}
    return set()

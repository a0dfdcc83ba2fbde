"""Questions with several options, of which one is right."""

from dataclasses import dataclass
from pathlib import Path

from wsrun.data.records import Record, shown, text_fault
from wsrun.data.replies import read_split

QUESTIONS = "multiple_choice.jsonl"


@dataclass(frozen=True)
class Question:
    """A prompt with several replies to it, of which the one at index `answer` is right.

    Without a prompt the options are plain texts.
    """

    item: str
    cluster: str
    prompt: str | None
    options: tuple[str, ...]
    answer: int


def load_questions(path: str | Path, split: str) -> list[Question]:
    """Questions {item, cluster, prompt, options, answer, split} of one split, from a jsonl file.

    Raises ValueError for a question without two different options, and for an answer that is none.
    """
    return list(map(_question, read_split(path, split)))


def _question(r: Record) -> Question:
    options, answer = r.value("options"), r.value("answer")
    texts = isinstance(options, list) and not any(map(text_fault, options))
    if not texts or len(set(options)) < max(2, len(options)):
        two = "a list of two options or more, each a different text"
        raise r.refused("options", two, shown(options))
    if type(answer) is not int or not 0 <= answer < len(options):
        raise r.refused("answer", f"an index, 0 to {len(options) - 1}", shown(answer))
    return Question(r.key("item"), r.key("cluster"), r.text("prompt"), tuple(options), answer)

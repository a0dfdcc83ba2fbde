"""A dialogue: the same questions to the base and to the steered model, each with its own history.

answer(side) ~ the model under alpha(side) * change, alpha(base) = 0, drawn from one seed on both

Law: at alpha = 0 both sides say the same.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import isfinite

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wsrun.cli.sides import SIDES, Reading
from wsrun.data.item import Item
from wsrun.models.chat import user
from wsrun.models.generate import Answer, answer_text, generate
from wsrun.models.template import Turn
from wsrun.score.sweep import MIN_MASS, score
from wsrun.steer.interventions import Intervention, applied

Show = Callable[[str, str], bool]
"""(side, its text so far) -> whether the answer shall end here"""


def silent(readings: Mapping[str, Reading]) -> str:
    """The sentence about sides whose margin says little; "" where there are none."""
    sides = [side for side, reading in readings.items() if not reading.answers]
    if not sides:
        return ""
    who = (
        "neither side answers"
        if len(sides) == len(SIDES)
        else f"the {sides[0]} side does not answer"
    )
    return f"mass below {MIN_MASS:g}: {who} this with Yes or No, so that the margin says little"


def shown(answer: Answer) -> str:
    """The text of an answer; " ..." after one that did not end by itself."""
    return (answer.text or "(nothing)") + ("" if answer.ended else " ...")


def unfinished(text: str) -> str:
    """The text so far, without a letter that is not whole yet."""
    return text.rstrip("\ufffd")


@dataclass
class Dialogue:
    """What both sides have heard and said, and how the next answer is drawn."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    change: Intervention
    alpha: float = 1.0
    system: str = ""
    """the system turn before everything; "" for none"""
    seed: int = 0
    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 128
    turns: dict[str, list[Turn]] = field(default_factory=lambda: {side: [] for side in SIDES})
    asked: int = 0
    """questions so far; the n-th is answered from seed + n, so that no two share their draws"""

    def ask(self, text: str, show: Show = lambda side, text: False) -> dict[str, Answer]:
        """{side: its answer} to the next question; both are drawn from the same seed.

        An answer that is stopped stays in the history as far as it came; a side that said nothing
        forgets the question. Raises ValueError, with the histories as they were, for a dialogue
        that has become too long for the model.
        """
        asked = {"role": "user", "content": text}
        said: dict[str, Answer] = {}
        for side in SIDES:
            said[side] = self._answer(side, asked, show)
        self.asked += 1
        for side, answer in said.items():
            if answer.text:
                self.turns[side] += [asked, {"role": "assistant", "content": answer.text}]
        return said

    def _answer(self, side: str, asked: Turn, show: Show) -> Answer:
        head = [{"role": "system", "content": self.system}] if self.system else []
        with self._as(side):
            (answer,) = generate(
                self.model, self.tok, [[*head, *self.turns[side], asked]],
                seed=self.seed + self.asked, temperature=self.temperature, top_p=self.top_p,
                max_new_tokens=self.max_new_tokens,
                watch=lambda new: show(side, answer_text(self.tok, new[0])),
            )  # fmt: skip
        return answer

    def _as(self, side: str) -> AbstractContextManager[PreTrainedModel]:
        """The model as it is on one side."""
        return applied(self.model, self.change, self.alpha if side == "steered" else 0.0)

    def readings(self, question: str) -> dict[str, Reading]:
        """{side: its reading} of a Yes/No question, asked alone: no history, none is left.

        It is asked as the Yes/No items of the experiments are, after the opening of an answer.
        Raises ValueError for a question that is no text, or too long.
        """
        item = Item("question", "question", user(question, self.system or None), 1)
        read = {}
        for side in SIDES:
            with self._as(side):
                line = score(self.model, self.tok, [item], engine="plain").row(0, named=True)
            read[side] = Reading(line["margin"], line["mass"], line["mass"] >= MIN_MASS)
        return read

    def reset(self) -> None:
        """Forget what was asked and said; alpha and the system turn stay."""
        self.turns, self.asked = {side: [] for side in SIDES}, 0

    def set_alpha(self, text: str) -> None:
        """Take alpha from a text; ValueError for what is no finite number."""
        try:
            alpha = float(text)
        except ValueError:
            alpha = float("nan")
        if not isfinite(alpha):
            raise ValueError(f"/alpha must be a finite number, such as 1.5; got {text[:80]!r}")
        self.alpha = alpha

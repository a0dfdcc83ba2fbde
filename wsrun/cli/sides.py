"""The two sides of a dialogue, and what is read of a Yes/No question on each."""

from typing import NamedTuple

SIDES: tuple[str, str] = ("base", "steered")


class Reading(NamedTuple):
    """margin = log p(Yes) - log p(No) and mass = p(Yes) + p(No), in the place of the answer."""

    margin: float
    mass: float
    answers: bool
    """whether the mass is large enough for the margin to say something"""


def heads(alpha: float) -> dict[str, str]:
    """{side: what stands above it}."""
    return dict(zip(SIDES, ("base", f"steered, alpha = {alpha:g}"), strict=True))

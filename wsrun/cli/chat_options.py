"""Options of wsrun chat; only the standard library is imported, as in options.py."""

from dataclasses import dataclass, field

from wsrun.cli.change_options import Changed


@dataclass(frozen=True)
class Chat(Changed):
    """Talk to a model and to its steered twin, side by side.

    /help lists its commands, Ctrl-C stops an answer, the end of input ends it.
    """

    system: str = field(default="", metadata={"prose": True})
    """system turn of both sides; none if empty"""
    seed: int = 0
    """of the draws; the same on both sides"""
    temperature: float = 0.7
    """0 takes the likeliest token, 1 draws from the model's own probabilities"""
    top_p: float = 0.9
    """share of the probability that tokens are drawn from"""
    max_new_tokens: int = 128
    """longest answer"""

"""Does dW beat prompting on a model of 4B parameters?

Question:   does what the benchmark finds on small models hold at a larger size?
Prediction: prompts gain more with size than dW does.
Rule:       as in the benchmark: dW beats the prompt where the interval of the paired difference on
            test items excludes 0.

    python experiments/t12_larger.py                      # the embedded model, as a check
    python experiments/t12_larger.py --model Qwen/Qwen3-4B --device cuda

The flow of T5 with one family and few random controls. Weights of 4B parameters take 8 GB in
bfloat16, and the proof of each adapter a copy in float32 beside them, 24 GB in all; training comes
before and needs less.
"""

from dataclasses import dataclass

from wsrun.console import guarded
from wsrun.following import following
from wsrun.replicate import Options, replicate


@dataclass(frozen=True)
class Config(Options):
    """Options of T12."""

    families: tuple[str, ...] = ("lora",)
    """adapter families; the best of them is the dW that prompts are compared with"""
    randoms: int = 5
    """random controls"""


def main(cfg: Config) -> None:
    """Train what is lacking, choose on validation items, compare on test items."""
    replicate(cfg, "t12_larger", following(cfg, "report", "one page over all tables"))


if __name__ == "__main__":
    guarded(main, Config)

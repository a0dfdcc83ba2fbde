"""Does dW beat prompting and activation steering on a model of 4B parameters?

Question:   does what the benchmark finds on small models hold at a larger size?
Prediction: prompts gain more with size than dW does, and directions stay behind both.
Rule:       as in the benchmark: a way beats dW, or loses to it, where the 95 % interval of the
            paired difference on test items excludes 0. A direction counts as one only where fewer
            than 1 in 20 random directions of its length do as much at its layer and dose.

    python experiments/t12_larger.py                      # the embedded model, as a check
    python experiments/t12_larger.py --model Qwen/Qwen3-4B --device cuda

The flow of T5 with one family. Weights of 4B parameters take 8 GB in bfloat16, and the proof of
each adapter a copy in float32 beside them, 24 GB in all; training comes before and needs less. Most
runs are those of directions, on validation items: --layers and --coefficients make them fewer.
"""

from dataclasses import dataclass

from wsrun.report.console import guarded
from wsrun.study.next_command import following
from wsrun.study.replicate import Options, replicate


@dataclass(frozen=True)
class Config(Options):
    """Options of T12."""

    families: tuple[str, ...] = ("lora",)
    """adapter families; the best of them is the dW that the other ways are compared with"""


def main(cfg: Config) -> None:
    """Train what is lacking, choose on validation items, compare on test items."""
    replicate(cfg, "t12_larger", following(cfg, "report", "one page over all tables"))


if __name__ == "__main__":
    guarded(main, Config)

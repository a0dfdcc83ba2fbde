"""Does dW beat prompting on another model, too?

Question:   on a model that nothing here was developed on, does the best dW, with its family and
            dose chosen on validation items, do more than the best system prompt?
Prediction: the answer of the embedded model (T3) is that of a language model, too.
Rule:       as in the benchmark: dW beats the prompt where the interval of the paired difference on
            test items excludes 0.

    python experiments/t5_replicate.py                    # the embedded model and its adapters
    python experiments/t5_replicate.py --model google/gemma-3-1b-it --device cuda

Adapters that the folder lacks are trained first, on the model's own answers: by recipe `fork` in
bfloat16 for a model that is not the embedded one, with data/english. A second run finds them.
"""

from dataclasses import dataclass

from wsrun.console import guarded
from wsrun.following import following
from wsrun.replicate import Options, replicate


@dataclass(frozen=True)
class Config(Options):
    """Options of T5."""

    families: tuple[str, ...] = ("lora", "pissa", "delora")
    """adapter families; the best of them is the dW that prompts are compared with"""


def main(cfg: Config) -> None:
    """Train what is lacking, choose on validation items, compare on test items."""
    replicate(cfg, "t5_replicate", following(cfg, "t12_larger", "with --model of a larger one"))


if __name__ == "__main__":
    guarded(main, Config)

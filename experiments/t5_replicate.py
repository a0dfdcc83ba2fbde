"""Does dW beat prompting and activation steering on another model, too?

Question:   on a model that nothing here was developed on, does the best dW, with its family and
            dose chosen on validation items, do more than the best system prompt, and more than
            directions read from the same answers, with layer and coefficient chosen likewise?
Prediction: the answers of the embedded model (T1, T3) are those of a language model, too.
Rule:       as in the benchmark: a way beats dW, or loses to it, where the 95 % interval of the
            paired difference on test items excludes 0. A direction counts as one only where fewer
            than 1 in 20 random directions of its length do as much at its layer and dose.

    python experiments/t5_replicate.py                    # the embedded model and its adapters
    python experiments/t5_replicate.py --model google/gemma-3-1b-it --device cuda

Adapters that the folder lacks are trained first, on the model's own answers: by recipe `fork` in
bfloat16 for a model that is not the embedded one, with data/english. A second run finds them.

Directions are those of T1 (wsrun/activation.py), towards dW's pole: mean_diff, and persona_diff
where the pairs know their personas, at one layer or at all. They are read from the answers that dW
of the first seed is trained on; adapters that were trained elsewhere need the options of those
answers (--pairs-file, --pos, --neg, ...) again. A deep model takes fewer runs with --layers and
--coefficients. With --match norm:X there are none: vectors have no |alpha dW|.
"""

from dataclasses import dataclass

from wsrun.report.console import guarded
from wsrun.study.next_command import following
from wsrun.study.replicate import Options, replicate


@dataclass(frozen=True)
class Config(Options):
    """Options of T5."""

    families: tuple[str, ...] = ("lora", "pissa", "delora")
    """adapter families; the best of them is the dW that the other ways are compared with"""


def main(cfg: Config) -> None:
    """Train what is lacking, choose on validation items, compare on test items."""
    replicate(cfg, "t5_replicate", following(cfg, "t12_larger", "with --model of a larger one"))


if __name__ == "__main__":
    guarded(main, Config)

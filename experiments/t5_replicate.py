"""Does dW beat prompting and activation steering on another model, too?

Question:   on a model that nothing here was developed on, does the best dW, with its family and
            coefficient chosen on validation items, do more than the best system prompt, and more
            than directions read from the same answers, with layer and coefficient chosen likewise?
Prediction: the answers of the embedded model (T1, T3) are those of a language model, too; at 4B
            parameters (T12) prompts have gained more with size than dW, and directions stay behind.
Rule:       as in the benchmark: a method beats dW, or loses to it, where the 95 % interval of the
            paired difference on test items excludes 0. A direction counts as one only where fewer
            than 1 in 20 random directions of its length do as much at its layer and coefficient.

    python experiments/t5_replicate.py                    # the embedded model and its adapters
    python experiments/t5_replicate.py --model google/gemma-3-1b-it --device cuda

T12, a larger model, with tables of its own: --model Qwen/Qwen3-4B --families lora --device cuda
--out artifacts/qwen3-4b.

Adapters that the folder lacks are trained first, on the model's own answers: by recipe `fork` in
bfloat16 for a model that is not the embedded one, with data/english. A second run finds them.
Weights of 4B parameters take 8 GB in bfloat16, and the proof of each adapter a copy in float32
beside them, 24 GB in all; training comes before and needs less.

Directions are those of T1 (wsrun/study/activation.py), towards dW's pole: mean_diff, and
persona_diff where the pairs know their personas, at one layer or at all. They are read from the
answers that dW of the first seed is trained on; adapters that were trained elsewhere need the
options of those answers (--pairs-file, --pos, --neg, ...) again. Most runs are those of directions,
on validation items: --layers and --coefficients make them fewer. With --match-dose norm:X there are
none: vectors have no |alpha dW|.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.replicate import Replication, ReplicationOptions
from wsrun.study.run import run_benchmark


@dataclass(frozen=True)
class Config(ReplicationOptions):
    """Options of T5."""

    families: tuple[str, ...] = ("lora", "pissa", "delora")
    """adapter families; the best of them is the dW that the other methods are compared with"""


def main(cfg: Config) -> None:
    """Train what is lacking, choose on validation items, compare on test items."""
    run_benchmark(Replication(cfg))


if __name__ == "__main__":
    guarded(main, Config)

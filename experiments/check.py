"""Can these items read this behaviour on this model, only a bias, or nothing?

Question:   before an effect is read off a model: does the base answer these items at all, does it
            tell true from false, and are prompts of the two poles apart on them?
Prediction: none; this script looks at the instrument, not at steering.
Rule:       a reading works where mass is 0.5 or more, of replies where the margin follows a prompt
            that gives the answer away; it reads the behaviour where it works and the interval of
            accuracy excludes 0.5 or that of the prompts' distance 0, at 0.1 nats or more; only a
            bias where only the distance of the margins themselves is so; else nothing.

    python experiments/check.py
    python experiments/check.py --model smollm2 --data data/english
    python experiments/check.py --model smollm2 --data truthfulqa:TruthfulQA.csv

The prompts are those of the two personas, chosen on one half of the clusters and measured on the
other.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.checking import CheckOptions, run_check


@dataclass(frozen=True)
class Config(CheckOptions):
    """Options of check."""


def main(cfg: Config) -> None:
    """Score the base, the prompts and what gives the answers away; say what can be read."""
    run_check(cfg)


if __name__ == "__main__":
    guarded(main, Config)

"""Train one adapter towards a behaviour and one away from it, per family and seed.

Question:   does every family's dW = tau_pos - tau_neg steer held-out items it was never trained on?
Prediction: yes for most families: training on open questions about training facts moves Yes/No
            answers about other facts, and dilemmas, in the same direction.
Rule:       a family steers where the 95 % interval of its effect at the largest alpha lies above 0.

    python experiments/t0_train.py                                   # all families, seed 0
    python experiments/t0_train.py --families lora dora --seeds 0 1 2
    python experiments/t0_train.py --data truthfulqa:TruthfulQA.csv

Pairs are answers of the model itself to open questions of the training split under a positive and a
negative persona, which is stripped before training; or given ones, of --pairs-file, or of a public
set that has its own. With --shuffle-poles they are a control: the same texts, no behaviour. Every
delta is proved against PEFT's own
forward when it is read back.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.trained import TrainOptions, run_training


@dataclass(frozen=True)
class Config(TrainOptions):
    """Options of t0_train."""


def main(cfg: Config) -> None:
    """Generate pairs, train, read back with proof, write adapters and dW, try each dW once."""
    run_training(cfg)


if __name__ == "__main__":
    guarded(main, Config)

"""Which coordinates of dW carry the behaviour: singular directions, or the adapter's own?

Question:   is there one band of singular directions (of dW itself, or of the base weight), or one
            degree of freedom of the adapter family, whose part of dW keeps the steering effect, and
            without which the effect is gone?
Prediction: the top quarter of dW's own directions carries most of it; in the base's coordinates the
            effect lies in no single band.
Rule:       per coordinate system: supported if one component retains >= 0.7 and its removal leaves
            <= 0.3; refuted if several disjoint components each retain >= 0.7 (distributed), or
            every component clearly fails; each comparison by its 95 % interval; else undetermined.

    python experiments/t8_coordinates.py
    python experiments/t8_coordinates.py --seeds 0 1 2

own:   bands of dW = U S V^T, as shares of its NUMERICAL RANK (the difference of two rank-8 LoRAs
       has rank 16, and its top quarter is 4 directions), or of its energy.
base:  the block of dS = U0^T dW V0 in a band of the base weight's directions; blocks that join two
       bands are in every band's rest.
family: rank components (lora, pissa, delora), magnitude and direction (dora), lambda and direction
       (delora), the best rotation and what it leaves (oft, boft), attention and MLP gates (ia3).
Every component is kept (keep_*), removed (drop_*), and replaced by random directions of its own
rank and norm (control_*). keep + drop is checked against dW in the run. Singular value
decompositions of the base are computed once and kept on disk under the weights' hash.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.ablation import run_ablation
from wsrun.study.located import CoordinateOptions, coordinates


@dataclass(frozen=True)
class Config(CoordinateOptions):
    """Options of T8."""


def main(cfg: Config) -> None:
    """Cut every dW by singular directions and by its family's own parameters."""
    run_ablation(cfg, coordinates(cfg))


if __name__ == "__main__":
    guarded(main, Config)

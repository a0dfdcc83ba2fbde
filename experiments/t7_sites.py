"""Which layers and modules of dW carry the behaviour?

Question:   is there one layer, one module, or one side of the residual stream whose part of dW
            keeps the steering effect, and without which the effect is gone?
Prediction: no single layer or module does; the MLP carries more than attention.
Rule:       per partition (layers, thirds of the trained band, blocks, sides, modules): supported if
            one slice retains >= 0.7 and its removal leaves <= 0.3 in every family; refuted if
            several disjoint slices each retain >= 0.7 (distributed), or every slice clearly fails
            in some family; each comparison by its 95 % interval; else undetermined.

    python experiments/t7_sites.py
    python experiments/t7_sites.py --seeds 0 1 2 --no-cells

Every slice is kept alone (keep_*), removed (drop_*), and replaced by random directions of its own
rank and norm (control_*); a slice whose control keeps as much supports nothing. keep + drop is
checked against dW in the run. `cell_<layer>_<module>` is one module of one layer. Slices a family
does not have (IA3 adapts k, v and down only) get a line that says so. With 20 null deltas a family,
dW's own singular values in random directions, `null %` ranks an effect among theirs.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.ablation import run_ablation
from wsrun.study.located import LENSES, SiteOptions, sites

__all__ = ["LENSES", "Config", "main"]


@dataclass(frozen=True)
class Config(SiteOptions):
    """Options of T7."""


def main(cfg: Config) -> None:
    """Cut every dW by layers and modules."""
    run_ablation(cfg, sites(cfg))


if __name__ == "__main__":
    guarded(main, Config)

"""Do adapter families share one output subspace that carries the behaviour?

Question:   is there, per layer, a K-dimensional subspace of the residual stream, found from OTHER
            families' dW, whose part of a family's dW keeps the steering effect, and without which
            the effect is gone?
Prediction: keep(shared, K) retains most of the effect at K well below d_model, more than a random
            subspace of that size.
Rule:       supported if at one K keep(shared) retains >= 0.7 and drop(shared) <= 0.3 in every
            family of lora, dora, pissa, delora, oft; refuted if for some family, at the largest K,
            keep retains < 0.3 while drop retains >= 0.7; both >= 0.7: not identifiable under this
            basis; each comparison by its 95 % interval; else undetermined.

    python experiments/t6_shared_svd.py --K 32

Only tensors that write to the residual stream enter (o_proj, down_proj); `full` is the whole dW.
The basis used for a family leaves that family out (variants *_shared; *_shared_incl puts it in),
takes the families that change all of its tensors, and deltas enter it with unit norm. Parts are
reported beside the family's own top-K directions, random subspaces (raw and norm-matched to the
shared part), and 20 null deltas with the singular values of the residual part in random directions;
`null %` ranks an effect among theirs. K counts only where a random subspace does not keep as much.
"""

from wsrun.script import guarded

from dataclasses import dataclass

from wsrun.study.ablation import run_ablation
from wsrun.study.located import SubspaceOptions, subspaces


@dataclass(frozen=True)
class Config(SubspaceOptions):
    """Options of T6."""


def main(cfg: Config) -> None:
    """Cut the residual-writing part of every dW by subspaces."""
    run_ablation(cfg, subspaces(cfg))


if __name__ == "__main__":
    guarded(main, Config)

"""wscore: algebra on weight deltas, dict[str, Tensor] in and out.

adapter checkpoint -> delta -> difference -> (select | keep/drop | crop | null) -> ... -> effect
"""

from wscore.basis import overlap, own_basis, random_basis, shared_basis, weight_basis
from wscore.delta import (
    Basis,
    Delta,
    DeltaLike,
    Geometry,
    add,
    check_delta,
    cosine,
    difference,
    geometry,
    inner,
    norm,
    scale,
)
from wscore.factored import Factored, Factors, lazily, only
from wscore.families.coordinates import PARAMETERIZATION, family_coordinates
from wscore.families.formulas import (
    boft_delta,
    delora_delta,
    dora_delta,
    ia3_delta,
    lora_delta,
    oft_delta,
    pissa_delta,
    pissa_factors,
)
from wscore.families.merge import family, merge_adapter, merge_adapter_factored
from wscore.null import gaussian_null, match_norm, spectrum_null, stream
from wscore.project import drop, energy, keep
from wscore.sites import (
    Site,
    layers,
    omit,
    projections,
    reads_residual,
    select,
    site,
    writes_residual,
)
from wscore.spectrum import BOTTOM, MIDDLE, SVD, TOP, Band, crop, crop_rest, spectra, svd
from wscore.stats.contrasts import contrast
from wscore.stats.effects import (
    Rule,
    Verdict,
    effect_table,
    null_percentile,
    paired,
    retained,
    verdict,
)
from wscore.stats.locus import Locus
from wscore.stats.ranking import duels, kendall, ranking, sign_agreement
from wscore.stats.rules import BasinDivergence, Share, SharedCore, at_least, at_most, shares
from wscore.stats.spread import benjamini_hochberg, seed_spread, wilson
from wscore.store import entries_sha256, load_delta, save_delta, tensors_sha256
from wscore.svd_cache import cached_spectra

__all__ = [
    "BOTTOM",
    "MIDDLE",
    "PARAMETERIZATION",
    "SVD",
    "TOP",
    "Band",
    "BasinDivergence",
    "Basis",
    "Delta",
    "DeltaLike",
    "Factored",
    "Factors",
    "Geometry",
    "Locus",
    "Rule",
    "Share",
    "SharedCore",
    "Site",
    "Verdict",
    "add",
    "at_least",
    "at_most",
    "benjamini_hochberg",
    "boft_delta",
    "cached_spectra",
    "check_delta",
    "contrast",
    "cosine",
    "crop",
    "crop_rest",
    "delora_delta",
    "difference",
    "dora_delta",
    "drop",
    "duels",
    "effect_table",
    "energy",
    "entries_sha256",
    "family",
    "family_coordinates",
    "gaussian_null",
    "geometry",
    "ia3_delta",
    "inner",
    "keep",
    "kendall",
    "layers",
    "lazily",
    "load_delta",
    "lora_delta",
    "match_norm",
    "merge_adapter",
    "merge_adapter_factored",
    "norm",
    "null_percentile",
    "oft_delta",
    "omit",
    "only",
    "overlap",
    "own_basis",
    "paired",
    "pissa_delta",
    "pissa_factors",
    "projections",
    "random_basis",
    "ranking",
    "reads_residual",
    "retained",
    "save_delta",
    "scale",
    "seed_spread",
    "select",
    "shared_basis",
    "shares",
    "sign_agreement",
    "site",
    "spectra",
    "spectrum_null",
    "stream",
    "svd",
    "tensors_sha256",
    "verdict",
    "weight_basis",
    "wilson",
    "writes_residual",
]

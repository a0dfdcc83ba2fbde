"""wscore: algebra on weight deltas, dict[str, Tensor] in and out. No models, no PEFT.

adapter checkpoint -> delta -> difference -> (select | keep/drop | crop | null) -> ... -> effect

The names below are imported when one of them is asked for, so `import wscore` is cheap; the
statistics (wscore.stats) load polars and scipy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wscore.basis import overlap, own_basis, random_basis, shared_basis, weight_basis
    from wscore.delta import (
        Basis,
        Delta,
        DeltaLike,
        Geometry,
        add,
        cosine,
        difference,
        geometry,
        inner,
        norm,
        scale,
    )
    from wscore.entries import check_delta
    from wscore.factored import Factored, Factors, subset
    from wscore.families import (
        FAMILIES,
        Family,
        family,
        family_coordinates,
        merge_adapter,
        merge_adapter_factored,
    )
    from wscore.hashes import entries_sha256, tensors_sha256
    from wscore.null import gaussian_null, match_norm, spectrum_null, stream
    from wscore.project import drop, energy, keep
    from wscore.sites import (
        Site,
        Where,
        layers,
        omit,
        projections,
        reads_residual,
        select,
        site,
        writes_residual,
    )
    from wscore.spectrum import BOTTOM, MIDDLE, SVD, TOP, Band, crop, crop_rest, spectra, svd
    from wscore.stats import (
        BasinDivergence,
        Locus,
        Rule,
        Share,
        SharedCore,
        Verdict,
        at_least,
        at_most,
        base_lines,
        benchmark_table,
        benjamini_hochberg,
        contrast,
        effect_table,
        kendall,
        null_percentile,
        paired,
        pairwise_contrasts,
        ranking,
        retained,
        seed_spread,
        shares,
        sign_agreement,
        verdict,
        wilson,
    )
    from wscore.store import load_delta, save_delta
    from wscore.svd_cache import cached_spectra

MODULES = {
    "basis": "overlap own_basis random_basis shared_basis weight_basis",
    "delta": "Basis Delta DeltaLike Geometry add cosine difference geometry inner norm scale",
    "entries": "check_delta",
    "factored": "Factored Factors subset",
    "families": "FAMILIES Family family family_coordinates merge_adapter merge_adapter_factored",
    "hashes": "entries_sha256 tensors_sha256",
    "null": "gaussian_null match_norm spectrum_null stream",
    "project": "drop energy keep",
    "sites": "Site Where layers omit projections reads_residual select site writes_residual",
    "spectrum": "BOTTOM MIDDLE SVD TOP Band crop crop_rest spectra svd",
    "store": "load_delta save_delta",
    "svd_cache": "cached_spectra",
}
"""where the names of the algebra live; all others are those of wscore.stats"""

__all__ = [
    "BOTTOM", "FAMILIES", "MIDDLE", "SVD", "TOP", "Band", "BasinDivergence", "Basis", "Delta",
    "DeltaLike", "Factored", "Factors", "Family", "Geometry", "Locus", "Rule", "Share",
    "SharedCore", "Site", "Verdict", "Where", "add", "at_least", "at_most", "base_lines",
    "benchmark_table", "benjamini_hochberg", "cached_spectra", "check_delta", "contrast",
    "cosine", "crop", "crop_rest", "difference", "drop", "effect_table", "energy",
    "entries_sha256", "family", "family_coordinates", "gaussian_null", "geometry", "inner",
    "keep", "kendall", "layers", "load_delta", "match_norm", "merge_adapter",
    "merge_adapter_factored", "norm", "null_percentile", "omit", "overlap", "own_basis",
    "paired", "pairwise_contrasts", "projections", "random_basis", "ranking", "reads_residual",
    "retained", "save_delta", "scale", "seed_spread", "select", "shared_basis", "shares",
    "sign_agreement", "site", "spectra", "spectrum_null", "stream", "subset", "svd",
    "tensors_sha256", "verdict", "weight_basis", "wilson", "writes_residual",
]  # fmt: skip


if not TYPE_CHECKING:  # or any name would pass

    def __getattr__(name: str) -> Any:
        """A public name, imported from its module the first time it is asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = next((m for m, names in MODULES.items() if name in names.split()), "stats")
        value = globals()[name] = getattr(import_module(f"wscore.{module}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

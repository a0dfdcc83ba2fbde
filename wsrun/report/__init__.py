"""What people read: tables on disk, console output, figures, verdict tables, the joined page.

Nothing here loads a model or scores; what a table says is decided in wscore.stats and wsrun.study.
"""

from wsrun.report.console import grid, progress
from wsrun.report.effect_figures import effects_by_dose, effects_by_method, effects_by_seed
from wsrun.report.retained_figures import (
    retained_by_energy,
    retained_by_family,
    retained_by_slice,
)
from wsrun.report.tables import provenance, read_table, write_table
from wsrun.report.tile_figures import confusion, effects_by_layer, retained_by_layer_and_module
from wsrun.report.verdicts import RuleResult, read_verdicts, verdict_table

__all__ = [
    "RuleResult", "confusion", "effects_by_dose", "effects_by_layer",
    "effects_by_method", "effects_by_seed", "grid", "progress", "provenance",
    "read_table", "read_verdicts", "retained_by_energy", "retained_by_family",
    "retained_by_layer_and_module", "retained_by_slice", "verdict_table", "write_table",
]  # fmt: skip

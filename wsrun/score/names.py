"""Names of variants: "method@setting", and the keys of a table line."""

from collections.abc import Mapping
from typing import Any

from wsrun.score.sweep import Variant

DW = "dW"  # the way that the others are measured against


def way(variant: str) -> str:
    """What a candidate is, without its setting: "mean_diff@layer 3" is a "mean_diff"."""
    return variant.partition("@")[0]


def setting_of(line: Mapping[str, Any]) -> str | None:
    """What a line of a table names of its way: the setting of "way@setting", else the family."""
    return line["variant"].partition("@")[2] or line["family"]


def line(v: Variant) -> tuple:
    """What a line of a table is about: method, family, name, k, alpha."""
    return v.method, v.family, v.name, v.k, v.alphas

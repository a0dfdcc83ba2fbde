"""Names of variants: "method@setting"."""

from collections.abc import Mapping
from typing import Any

DW = "dW"  # the method that the others are measured against


def method_name(variant: str) -> str:
    """What a candidate is, without its setting: "mean_diff@layer 3" is a "mean_diff"."""
    return variant.partition("@")[0]


def setting_of(line: Mapping[str, Any]) -> str | None:
    """The setting of a table line: that of its variant "method@setting", else its family."""
    return line["variant"].partition("@")[2] or line["family"]

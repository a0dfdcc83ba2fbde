"""Export: weight changes in the formats of others. Nothing is trained or scored here."""

from wsrun.export.lora import save_lora

__all__ = ["save_lora"]

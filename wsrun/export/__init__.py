"""Export: weight changes and directions in the formats of others. Nothing is trained or scored."""

from wsrun.export.gguf_lora import save_gguf_lora
from wsrun.export.lora import save_lora
from wsrun.export.merged import save_merged
from wsrun.export.vectors import load_vectors, save_vectors

__all__ = ["load_vectors", "save_gguf_lora", "save_lora", "save_merged", "save_vectors"]

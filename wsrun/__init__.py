"""wsrun: everything that knows models, prompts, PEFT or files. The algebra is in wscore.

models < data < steer < adapters < export < score < lenses < report < study < cli: each room
imports earlier ones only. The names below are imported when one of them is asked for, so
`import wsrun` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsrun.adapters import adapter_delta, checkpoint_delta, pair_deltas, train_adapter
    from wsrun.data import Item, load_items
    from wsrun.export import (
        load_vectors,
        save_gguf_lora,
        save_lora,
        save_merged,
        save_vectors,
    )
    from wsrun.models import choice_ids, load_model, render
    from wsrun.score import Variant, score, sweep
    from wsrun.steer import (
        AddVectors,
        ConstructedDelta,
        DirectionalAblation,
        SystemPrompt,
        WeightDelta,
        applied,
        load_intervention,
        steered,
    )
    from wsrun.study import check

ROOMS = {
    "models": ("choice_ids", "load_model", "render"),
    "data": ("Item", "load_items"),
    "steer": (
        "AddVectors", "ConstructedDelta", "DirectionalAblation", "SystemPrompt", "WeightDelta",
        "applied", "load_intervention", "steered",
    ),
    "adapters": ("adapter_delta", "checkpoint_delta", "pair_deltas", "train_adapter"),
    "export": ("load_vectors", "save_gguf_lora", "save_lora", "save_merged", "save_vectors"),
    "score": ("Variant", "sweep"),  # `score` itself is the room, which can be called
    "study": ("check",),
}  # fmt: skip
__all__ = [
    "AddVectors", "ConstructedDelta", "DirectionalAblation", "Item", "SystemPrompt", "Variant",
    "WeightDelta", "adapter_delta", "applied", "check", "checkpoint_delta", "choice_ids",
    "load_intervention", "load_items", "load_model", "load_vectors", "pair_deltas", "render",
    "save_gguf_lora", "save_lora", "save_merged", "save_vectors", "score", "steered", "sweep",
    "train_adapter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, imported from its room the first time it is asked for."""
    if name in __all__:
        room = next((room for room, names in ROOMS.items() if name in names), name)
        module = import_module(f"wsrun.{room}")
        globals()[name] = module if room == name else getattr(module, name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Options of wsrun export; nothing heavy is imported, as in options.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsrun.cli.change_options import Changed
from wsrun.cli.options import Model

DTYPES = ("auto", "float32", "bfloat16", "float16")
TAKES = {
    "merged": ("dtype",),
    "lora": ("rank", "max_error", "dtype"),
    "gguf-lora": ("rank", "max_error"),
    "vector": (),
}
"""which of these options a format takes"""


@dataclass(frozen=True)
class Export(Changed):
    """Write a steered model, or what steers it, in a format that others load.

    Plain weights, a LoRA for PEFT or for llama.cpp, or a control vector.
    """

    format: Literal["merged", "lora", "gguf-lora", "vector"] = "lora"
    """weights that from_pretrained loads, a LoRA of PEFT (vLLM), of llama.cpp, a control vector"""
    out: Path | None = None
    """folder that is written; artifacts/export/<format> if not given"""
    vectors: Path | None = None
    """for --format vector: a selected direction (compare leaves some), or a GGUF control vector"""
    rank: int | None = None
    """rank of a LoRA; the least that holds all of dW if not given"""
    max_error: float | None = 0.1
    """largest |dW - B A| / |dW| that is written; None for any"""
    dtype: str = "auto"
    """of the numbers; auto: merged as the base is stored, others float32"""
    tables: Path = Path("artifacts/tables")
    """folder of tables: what they tell of this change (effect, cost, instrument), the card tells"""

    def refuse(self) -> None:
        """Raise ValueError for a change that is not there, and options that the format lacks."""
        defaults = {"rank": None, "max_error": 0.1, "dtype": "auto"}
        for name, default in defaults.items():
            if getattr(self, name) != default and name not in TAKES[self.format]:
                formats = " or ".join(f for f, takes in TAKES.items() if name in takes)
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is for --format {formats}, not {self.format}; leave it")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype[:80]!r}")
        if self.format == "vector":
            self._refuse_vectors()
        elif self.vectors:
            raise ValueError("--vectors is for --format vector; leave it, or name that format")
        else:
            super().refuse()
        if self.dose() == 0:
            raise ValueError("--alpha is 0, which is the base itself; give the dose to export")

    def _refuse_vectors(self) -> None:
        Model.refuse(self)
        if self.delta or self.adapters:
            raise ValueError(
                "--delta and --adapters are weight changes, and no vector; give --vectors alone"
            )
        if not (self.vectors and self.vectors.exists()):
            raise ValueError(
                f"--vectors: there is no {str(self.vectors or '')!r}; give a file of selection/ "
                "that compare wrote, or a GGUF control vector"
            )

    def folder(self) -> Path:
        """The folder to write."""
        return self.out or Path("artifacts/export") / self.format

"""Options that name a weight change: a file of a dW or a pair of adapters, and how much of it.

Nothing heavy is imported, as in options.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from wsrun.cli.options import SHIPPED, Model, check_delta, check_folder, split_delta


@dataclass(frozen=True)
class Changed(Model):
    """The options of every subcommand that takes one change of a model."""

    model: str = "smollm2"
    """model folder, GGUF file, smollm2 or hub name"""
    delta: Annotated[tuple[str, ...], UseAppendAction] = ()
    """file of a dW (train writes some) or folder of a pair of adapters, and how much of it: PATH or
    PATH:ALPHA; several times: their sum, which alpha scales"""
    adapters: Path | None = None
    """or a pair of adapters, pos and neg: its folder, or that of <family>-s<seed>; the shipped one
    if neither is given"""
    family: str = "lora"
    """family of the pair in --adapters"""
    adapter_seed: int = 0
    """seed of the pair in --adapters"""
    alpha: float = 1.0
    """coefficient alpha of dW; in a chat the first one"""

    def refuse(self) -> None:
        """Raise ValueError for a change that is not there."""
        super().refuse()
        if self.delta and self.adapters:
            raise ValueError("--delta and --adapters both name a change; give one of them")
        for path, _ in map(split_delta, self.delta):
            check_delta(path)
        if not self.delta:
            self.pair()

    def dose(self) -> float:
        """alpha: that of the only --delta where it has one, else --alpha."""
        return split_delta(self.delta[0], self.alpha)[1] if len(self.delta) == 1 else self.alpha

    def pair(self) -> Path:
        """The folder of the pair of adapters: a pair itself, or the one of family and seed."""
        shipped = SHIPPED.get(self.model.rstrip("/"))
        folder = self.adapters or shipped
        if folder is None:
            raise ValueError(
                f"no adapters are shipped for {self.model!r}; give --delta or --adapters"
            )
        check_folder("adapters", folder, "run where the repository is, or train a pair")
        if (folder / "pos").is_dir():
            return folder
        name = f"{self.family}-s{self.adapter_seed}"
        check_folder("adapters", folder / name, "name another --family or --adapter-seed")
        return folder / name

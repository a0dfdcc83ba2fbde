"""Options that name a weight change: a file of a dW or a pair of adapters, and how much of it.

Only the standard library is imported, as in options.py.
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from wsrun.cli.options import SHIPPED, Model, check_folder


@dataclass(frozen=True)
class Changed(Model):
    """The options of every subcommand that takes one change of a model."""

    model: str = "smollm2"
    """model folder, GGUF file, smollm2 or hub name"""
    delta: str | None = None
    """file of a dW (t0_train writes some), and how much of it: PATH or PATH:ALPHA"""
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
        if self.delta:
            path, _ = split_delta(self.delta, self.alpha)
            if not path.is_file():
                raise ValueError(
                    f"--delta: there is no file {str(path)!r}; give one that t0_train wrote, or "
                    "--adapters"
                )
        else:
            self.pair()

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


def split_delta(text: str, alpha: float = 1.0) -> tuple[Path, float]:
    """(path, alpha) of PATH:ALPHA, and of PATH, whose alpha is that given here.

    Raises ValueError for what follows the colon and is no finite number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text), alpha
    try:
        alpha = float(tail)
    except ValueError:
        alpha = float("nan")
    if not isfinite(alpha):
        raise ValueError(
            f"--delta {text[:200]!r}: after the colon stands alpha, a finite number; got {tail!r}"
        )
    return Path(head), alpha

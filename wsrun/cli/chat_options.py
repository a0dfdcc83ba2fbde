"""Options of wsrun chat; only the standard library is imported, as in options.py."""

from dataclasses import dataclass, field
from pathlib import Path

from wsrun.cli.options import SHIPPED, Model, check_delta, check_folder, split_delta


@dataclass(frozen=True)
class Chat(Model):
    """Talk to a model and to its steered twin, side by side.

    /help lists its commands, Ctrl-C stops an answer, the end of input ends it.
    """

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
    """coefficient alpha of dW to begin with"""
    system: str = field(default="", metadata={"prose": True})
    """system turn of both sides; none if empty"""
    seed: int = 0
    """of the draws; the same on both sides"""
    temperature: float = 0.7
    """0 takes the likeliest token, 1 draws from the model's own probabilities"""
    top_p: float = 0.9
    """share of the probability that tokens are drawn from"""
    max_new_tokens: int = 128
    """longest answer"""

    def refuse(self) -> None:
        """Raise ValueError for a change that is not there."""
        super().refuse()
        if self.delta and self.adapters:
            raise ValueError("--delta and --adapters both name a change; give one of them")
        if self.delta:
            path, _ = split_delta(self.delta, self.alpha)
            check_delta(path)
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

"""Options of every subcommand of wsrun, and what is refused before anything is loaded.

Only the standard library is imported, so that --help, a typo and a path that is not there are
answered at once. An option means what it means in the scripts of experiments/, and has their
default (tests/cli holds both against each other).
"""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

SHIPPED = {
    "smollm2": Path("data/smollm2/adapters"),
    "data/organism": Path("data/organism/adapters"),
}
"""adapters that come with the repository, by the model that they were trained on"""


@dataclass(frozen=True)
class Model:
    """The model of a subcommand."""

    model: str = "data/organism"
    """model folder, GGUF file, smollm2 or hub name"""
    dtype: str = "float32"
    """dtype of the model"""
    device: str = "cpu"
    """device of the model"""

    def refuse(self) -> None:
        """Raise ValueError for a path that is not there."""
        path = Path(self.model)
        looks_local = self.model.startswith((".", "/")) or self.model.count("/") > 1
        if path.suffix.lower() == ".gguf":
            if not path.is_file():
                raise ValueError(f"--model: there is no file {self.model!r}; give a GGUF file")
        elif looks_local and not path.is_dir():
            raise ValueError(
                f"--model: there is no folder {self.model!r}; give a model folder or a Hub name"
            )


def check_folder(flag: str, folder: Path, remedy: str) -> None:
    """Raise ValueError where a folder that is read is not there."""
    if not folder.is_dir():
        raise ValueError(f"--{flag}: there is no folder {str(folder)!r}; {remedy}")


@dataclass(frozen=True)
class Chat(Model):
    """Talk to a model and to its steered twin, side by side.

    Lines that begin with / are commands: /help lists them. Ctrl-C stops the answer that is being
    written; the end of the input ends the chat. Lines may come from a pipe.
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
    system: str = ""
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

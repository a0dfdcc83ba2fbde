"""PEFT configurations of every adapter family, and the recipes they are trained with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import (
    BOFTConfig,
    DeloraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
)

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


IA3_TARGETS = ("k_proj", "v_proj", "down_proj")  # Liu et al. 2022: keys, values, inner MLP


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained; tables carry the name. `lr` gives families their own rate.

    select: which state of a pair is kept, "last", or that of the least validation "loss".
    delora_lambda: how large DeLoRA's change is. It holds the sum of `rank` matrices of unit norm,
    times lambda / rank, times the norms of the base's columns, whatever the rate: B starts at 0,
    and after one step has its whole norm (Bini et al. 2025; PEFT's default is 15).
    """

    name: str
    rank: int
    alpha: int
    lr: Mapping[str, float]
    steps: int
    batch: int
    block: int = 32  # block size of OFT and BOFT
    band: tuple[float, float] = (0.3, 0.8)  # share of the depth that gets adapters
    select: str = "last"
    every: int = 10  # steps between two states to select from
    delora_lambda: float = 15.0


SMOLLM2 = {
    "lora": 5e-4,
    "dora": 5e-4,
    "pissa": 2.5e-4,
    "delora": 2e-3,
    "oft": 1e-3,
    "boft": 2e-3,
    "ia3": 4.5e-2,
    "loha": 7.5e-3,
    "lokr": 7.5e-3,
}
"""learning rates of recipe `smollm2`: docs/real.md says how they were found"""


def _rates(lora: float) -> dict[str, float]:
    # ratios to LoRA's rate that gave every family an effect on the organism
    ratios = {"pissa": 0.5, "delora": 4, "oft": 1.5, "boft": 3, "ia3": 30, "loha": 5, "lokr": 5}
    return {family: lora * ratios.get(family, 1) for family in FAMILIES}


def _lora(r: Recipe, where: str, **more: Any) -> PeftConfig:
    return LoraConfig(
        r=r.rank, lora_alpha=r.alpha, target_modules=where, task_type="CAUSAL_LM", **more
    )


def _delora(r: Recipe, where: str) -> PeftConfig:
    size: Any = r.delora_lambda  # PEFT declares an int, and takes any number
    return DeloraConfig(r=r.rank, delora_lambda=size, target_modules=where, task_type="CAUSAL_LM")


def _oft(r: Recipe, where: str) -> PeftConfig:
    # PEFT's default, a truncated Cayley-Neumann series, is not orthogonal.
    return OFTConfig(
        r=0,
        oft_block_size=r.block,
        use_cayley_neumann=False,
        target_modules=where,
        task_type="CAUSAL_LM",
    )


def _boft(r: Recipe, where: str) -> PeftConfig:
    # PEFT trains one factor without its CUDA extension and more with it; pinned, so that the
    # adapter does not depend on the machine.
    return BOFTConfig(
        boft_block_size=r.block // 4,
        boft_n_butterfly_factor=1,
        target_modules=where,
        task_type="CAUSAL_LM",
    )


def _ia3(r: Recipe, where: str) -> PeftConfig:
    return IA3Config(
        target_modules=where.replace("|".join(LINEAR), "|".join(IA3_TARGETS)),
        feedforward_modules=r".*\.down_proj",
        task_type="CAUSAL_LM",
    )


def _loha(r: Recipe, where: str) -> PeftConfig:
    return LoHaConfig(r=r.rank, alpha=r.alpha, target_modules=where, task_type="CAUSAL_LM")


def _lokr(r: Recipe, where: str) -> PeftConfig:
    return LoKrConfig(r=r.rank, alpha=r.alpha, target_modules=where, task_type="CAUSAL_LM")


FAMILIES: dict[str, Callable[[Recipe, str], PeftConfig]] = {
    "lora": _lora,
    "dora": lambda r, where: _lora(r, where, use_dora=True),
    "pissa": lambda r, where: _lora(r, where, init_lora_weights="pissa"),
    "delora": _delora,
    "oft": _oft,
    "boft": _boft,
    "ia3": _ia3,
    "loha": _loha,
    "lokr": _lokr,
}


DEFAULT_FAMILIES = ("lora", "dora", "pissa", "delora", "oft", "boft", "ia3")
"""what experiments take where no family is named; any other of FAMILIES is for the asking"""


RECIPES = {
    r.name: r
    for r in (
        Recipe("paper", rank=32, alpha=16, lr=_rates(1e-5), steps=500, batch=16),
        Recipe("fork", rank=32, alpha=64, lr=_rates(2e-4), steps=500, batch=16),
        Recipe(
            "organism",
            rank=8,
            alpha=16,
            lr=_rates(1e-3),
            steps=40,
            batch=32,
            block=16,
        ),
        # block: inputs of the linear maps are 576 = 18 x 32 and 1536 = 48 x 32 wide
        Recipe("smollm2", 16, 32, SMOLLM2, 60, 16, select="loss", delora_lambda=1.0),
    )
}
SELECT = ("last", "loss")
"""which state of a training may be kept"""


def check_family(family: str) -> str:
    """The family's name; raises ValueError for one that is not in FAMILIES."""
    if family not in FAMILIES:
        raise ValueError(f"adapters: family must be one of {', '.join(FAMILIES)}, got {family!r}")
    return family


def target_modules(n_layers: int, band: tuple[float, float]) -> str:
    """PEFT's pattern for all linear maps of the layers l with band[0] <= l / n_layers < band[1]."""
    kept = [layer for layer in range(n_layers) if band[0] <= layer / n_layers < band[1]]
    if not kept:
        raise ValueError(f"adapters: band {band} holds none of {n_layers} layers; widen it")
    layers, names = "|".join(map(str, kept)), "|".join(LINEAR)
    return rf".*layers\.({layers})\.(self_attn|mlp)\.({names})"

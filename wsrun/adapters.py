"""Adapters: train one of seven PEFT families towards a response.

The way back, from a checkpoint to its weight change, is extract.py; its two functions for users,
`adapter_delta` and `pair_deltas`, are importable from here too.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    BOFTConfig,
    DeloraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import stream
from wscore.store import write_whole
from wsrun.extract import (
    BASE,
    PISSA_INIT,
    adapter_delta,
    attached,
    base_record,
    check_peft,
    pair_deltas,
)
from wsrun.generate import right_padded
from wsrun.pairs import Pair, example

__all__ = [
    "FAMILIES",
    "RECIPES",
    "Recipe",
    "adapter_delta",
    "check_family",
    "pair_deltas",
    "target_modules",
    "train_adapter",
]

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IA3_TARGETS = ("k_proj", "v_proj", "down_proj")  # Liu et al. 2022: keys, values, inner MLP


@dataclass(frozen=True)
class Recipe:
    """How adapters are trained; tables carry the name. `lr` gives families their own rate.

    The last step counts: no recipe selects a checkpoint on validation items.
    """

    name: str
    rank: int
    alpha: int
    lr: Mapping[str, float]
    steps: int
    batch: int
    block: int = 32  # block size of OFT and BOFT
    band: tuple[float, float] = (0.3, 0.8)  # share of the depth that gets adapters


def _rates(lora: float) -> dict[str, float]:
    # ratios to LoRA's rate that gave every family an effect on the organism
    ratios = {"pissa": 0.5, "delora": 4, "oft": 1.5, "boft": 3, "ia3": 30}
    return {family: lora * ratios.get(family, 1) for family in FAMILIES}


def _lora(r: Recipe, where: str, **more: Any) -> PeftConfig:
    return LoraConfig(
        r=r.rank, lora_alpha=r.alpha, target_modules=where, task_type="CAUSAL_LM", **more
    )


def _delora(r: Recipe, where: str) -> PeftConfig:
    return DeloraConfig(r=r.rank, target_modules=where, task_type="CAUSAL_LM")


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


FAMILIES: dict[str, Callable[[Recipe, str], PeftConfig]] = {
    "lora": _lora,
    "dora": lambda r, where: _lora(r, where, use_dora=True),
    "pissa": lambda r, where: _lora(r, where, init_lora_weights="pissa"),
    "delora": _delora,
    "oft": _oft,
    "boft": _boft,
    "ia3": _ia3,
}

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
    )
}


def check_family(family: str) -> str:
    """The family's name; raises ValueError for one that is not in FAMILIES."""
    if family not in FAMILIES:
        raise ValueError(f"adapters: family {family!r} asked; known are {', '.join(FAMILIES)}")
    return family


def target_modules(n_layers: int, band: tuple[float, float]) -> str:
    """PEFT's pattern for all linear maps of the layers l with band[0] <= l / n_layers < band[1]."""
    kept = [layer for layer in range(n_layers) if band[0] <= layer / n_layers < band[1]]
    if not kept:
        raise ValueError(f"adapters: band {band} holds no layer of {n_layers}; widen it")
    layers, names = "|".join(map(str, kept)), "|".join(LINEAR)
    return rf".*layers\.({layers})\.(self_attn|mlp)\.({names})"


def train_adapter(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    side: str,
    family: str,
    recipe: Recipe,
    out: str | Path,
    *,
    seed: int = 0,
    base_name: str = "",
    where: str | None = None,
    prepare: Callable[[PeftModel], Callable[[], None] | None] | None = None,
    step_done: Callable[[str], None] = lambda note: None,
) -> list[float]:
    """Train one adapter on the `side` ("pos" or "neg") responses of pairs; returns the losses.

    Minimises the mean -log p(response | prompt) over response tokens, with AdamW at a linearly
    decaying rate. Initial factors and the order of examples depend on the family and the seed, not
    on the side: both poles start from one adapter, and families share no draw. Writes PEFT's own
    two files to `out`, a record of the base and PiSSA's initial factors beside them; the model is
    bit-identical afterwards.

    `where` is PEFT's pattern of the modules that get adapters, in place of all linear maps of the
    recipe's band. `prepare` is called once on the fresh PEFT model, before the optimizer is made:
    it may set adapter parameters, or freeze some (requires_grad = False); what it returns, if
    anything, runs after every optimizer step, without gradients. It must leave base weights alone.
    """
    check_peft()
    where = where or target_modules(model.config.get_text_config().num_hidden_layers, recipe.band)
    config = FAMILIES[check_family(family)](recipe, where)
    examples = [example(tok, p.prompt, getattr(p, f"response_{side}")) for p in pairs]
    base = base_record(model, where)
    with (
        torch.random.fork_rng(),
        attached(model, config, _initial(config, family, seed)) as wrapped,
    ):
        init = _pissa_factors(wrapped) if family == "pissa" else None
        after_step = prepare(wrapped) if prepare else None
        losses = _fit(wrapped, examples, recipe, family, seed, step_done, after_step)
        _save(wrapped, init, base, base_name, Path(out))
    return losses


def _initial(config: PeftConfig, family: str, seed: int) -> Callable[[Any], PeftModel]:
    def attach(model: Any) -> PeftModel:
        torch.manual_seed(stream(seed, f"initial/{family}").initial_seed())
        return get_peft_model(model, config)

    return attach


def _fit(
    model: PeftModel,
    examples: Sequence[tuple[list[int], int]],
    recipe: Recipe,
    family: str,
    seed: int,
    step_done: Callable[[str], None],
    after_step: Callable[[], None] | None,
) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr[family], weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / recipe.steps)
    rng, losses = random.Random(f"examples/{family}/{seed}"), []
    for _ in range(recipe.steps):
        ids, labels = _collate(rng.choices(examples, k=recipe.batch), model.device)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        if after_step:
            with torch.no_grad():
                after_step()
        decay.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step_done(f"loss {losses[-1]:.3f}")
    return losses


def _collate(examples: Sequence[tuple[list[int], int]], device: Any) -> tuple[Tensor, Tensor]:
    ids, _ = right_padded([tokens for tokens, _ in examples])
    labels = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(examples):
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    return ids.to(device), labels.to(device)


def _pissa_factors(model: PeftModel) -> dict[str, Tensor]:
    return {
        name.replace(".default.", "_init."): p.detach().clone().contiguous()
        for name, p in model.named_parameters()
        if ".lora_" in name
    }


def _save(
    model: PeftModel,
    init: dict[str, Tensor] | None,
    base: dict[str, str],
    base_name: str,
    out: Path,
) -> None:
    model.peft_config["default"].base_model_name_or_path = base_name
    try:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(out))
        (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        (out / PISSA_INIT).unlink(missing_ok=True)
        if init is not None:
            write_whole(out / PISSA_INIT, lambda tmp: save_file(init, tmp))
        write_whole(out / BASE, lambda tmp: tmp.write_text(json.dumps(base, indent=1) + "\n"))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"adapters: {out} cannot be written ({error}); use another") from error

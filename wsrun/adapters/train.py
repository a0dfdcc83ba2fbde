"""Training: one PEFT adapter of a known family, towards one response of each pair.

extract.py turns the checkpoint into a weight change.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import stream
from wscore.files import write_whole
from wscore.sealed import write_sealed
from wsrun.adapters.base import BASE, base_record
from wsrun.adapters.checkpoint import PISSA_INIT
from wsrun.adapters.configs import FAMILIES, Recipe, check_family, target_modules
from wsrun.adapters.extract import attached, check_peft
from wsrun.data.pairs import Pair, pole_example
from wsrun.models.generate import right_padded
from wsrun.models.load import check_positions
from wsrun.models.memory import check_memory, training_bytes, within_memory

LESS = "leave out the longest pairs, or use a device with more memory"


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
    examples = [pole_example(tok, p, side) for p in pairs]
    base = base_record(model, where)
    check_positions(model, [ids for ids, _ in examples], "adapters")
    longest = max(len(ids) for ids, _ in examples)
    what = f"adapters: a batch of {recipe.batch} with the longest pair, {longest} tokens,"
    check_memory(model, training_bytes(model, recipe.batch, longest), what, LESS)
    with (
        within_memory(f"adapters: batches of {recipe.batch} pairs of up to {longest} tokens", LESS),
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
            write_sealed(out / PISSA_INIT, init, {})
        write_whole(out / BASE, lambda tmp: tmp.write_text(json.dumps(base, indent=1) + "\n"))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"adapters: {out} cannot be written ({error}); use another") from error

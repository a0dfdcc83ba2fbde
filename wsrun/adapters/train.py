"""Training: one PEFT adapter of a known family, towards one response of each pair.

extract.py turns the checkpoint into a weight change.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import stream
from wscore.sealed import write_sealed
from wsrun.adapters.base import base_record, write_record
from wsrun.adapters.checkpoint import PISSA_INIT
from wsrun.adapters.configs import FAMILIES, Recipe, check_family, target_modules
from wsrun.adapters.extract import attached, check_peft
from wsrun.adapters.fit import GROUP, fit, group_tokens, mean_loss
from wsrun.data.pairs import Pair, pole_example
from wsrun.models.load import check_positions
from wsrun.models.memory import check_memory, training_bytes, within_memory

LESS = "leave out the longest pairs, or use a device with more memory"


Save = Callable[[Path], None]
"""writes the adapter as it stands to a folder"""


class Curve(NamedTuple):
    """How a training went: the loss of each step, and validation losses by step where taken."""

    losses: list[float]
    validation: dict[int, float]


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

    Minimises the mean -log p(response | prompt) over response tokens (fit.py), with AdamW at a
    linearly decaying rate. Initial factors and the order of examples depend on the family and the
    seed, not on the side: both poles start from one adapter, and families share no draw. Writes
    PEFT's own two files to `out`, a record of the base and PiSSA's initial factors beside them;
    the model is bit-identical afterwards.

    `where` is PEFT's pattern of the modules that get adapters, in place of all linear maps of the
    recipe's band. `prepare` is called once on the fresh PEFT model, before the optimizer is made:
    it may set adapter parameters, or freeze some (requires_grad = False); what it returns, if
    anything, runs after every optimizer step, without gradients. It must leave base weights alone.
    """

    def keep(step: int, adapter: PeftModel, save: Save) -> None:
        if step == recipe.steps:
            save(Path(out))

    examples = side_examples(tok, pairs, side)
    return _train(
        model, examples, family, recipe, keep, step_done,
        seed=seed, base_name=base_name, where=where, prepare=prepare,
    )  # fmt: skip


def train_candidates(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    side: str,
    family: str,
    recipe: Recipe,
    out: Path,
    *,
    seed: int = 0,
    base_name: str = "",
    step_done: Callable[[str], None] = lambda note: None,
) -> Curve:
    """Train as `train_adapter`, and write the state after every recipe.every-th step, out/step-<n>.

    Of each state the mean -log p(response | prompt) of the same side of the validation pairs is
    taken, over response tokens. Without validation pairs there is one state, that of the last step.
    """
    held_out, found = side_examples(tok, validation, side), {}
    check_positions(model, [ids for ids, _ in held_out], "adapters")

    def keep(step: int, adapter: PeftModel, save: Save) -> None:
        if step == recipe.steps or (held_out and step % recipe.every == 0):
            save(candidate(out, step))
            found.update({step: mean_loss(adapter, held_out, GROUP)} if held_out else {})

    losses = _train(
        model, side_examples(tok, pairs, side), family, recipe, keep, step_done,
        seed=seed, base_name=base_name,
    )  # fmt: skip
    return Curve(losses, found)


def candidate(out: Path, step: int) -> Path:
    """The folder of the state after so many steps."""
    return out / f"step-{step}"


def side_examples(
    tok: PreTrainedTokenizerBase, pairs: Sequence[Pair], side: str
) -> list[tuple[list[int], int]]:
    """(tokens, where the response starts) of one side of pairs: what is trained on."""
    return [pole_example(tok, p, side) for p in pairs]


def _train(
    model: PreTrainedModel,
    examples: Sequence[tuple[list[int], int]],
    family: str,
    recipe: Recipe,
    keep: Callable[[int, PeftModel, Save], None],
    step_done: Callable[[str], None],
    *,
    seed: int,
    base_name: str,
    where: str | None = None,
    prepare: Callable[[PeftModel], Callable[[], None] | None] | None = None,
) -> list[float]:
    check_peft()
    where = where or target_modules(model.config.get_text_config().num_hidden_layers, recipe.band)
    config = FAMILIES[check_family(family)](recipe, where)
    base = base_record(model, where)
    check_positions(model, [ids for ids, _ in examples], "adapters")
    longest = _check_step(model, examples, family, recipe)
    before = {n: p.data for n, p in model.named_parameters() if p.ndim == 2}
    with (
        within_memory(f"adapters: batches of {recipe.batch} pairs of up to {longest} tokens", LESS),
        torch.random.fork_rng(),
        attached(model, config, _initial(config, family, seed)) as wrapped,
    ):
        init = _pissa_factors(wrapped, before) if family == "pissa" else None
        before.clear()
        after_step = prepare(wrapped) if prepare else None

        def at_step(step: int) -> None:
            keep(step, wrapped, lambda out: _save(wrapped, init, base, base_name, out))

        return fit(wrapped, examples, recipe, family, seed, step_done, after_step, at_step)


def _check_step(
    model: PreTrainedModel,
    examples: Sequence[tuple[list[int], int]],
    family: str,
    recipe: Recipe,
) -> int:
    """The tokens of the longest pair; refuses one whose step cannot fit into memory."""
    ids, start = max(examples, key=lambda e: len(e[0]))
    grouped = group_tokens(model, family) is not None
    rows = 1 if grouped else recipe.batch
    what = f"adapters: a batch of {recipe.batch} with the longest pair, {len(ids)} tokens,"
    check_memory(model, training_bytes(model, rows, len(ids), len(ids) - start), what, LESS)
    return len(ids)


def _initial(config: PeftConfig, family: str, seed: int) -> Callable[[Any], PeftModel]:
    def attach(model: Any) -> PeftModel:
        torch.manual_seed(stream(seed, f"initial/{family}").initial_seed())
        return get_peft_model(model, config)

    return attach


def _pissa_factors(model: PeftModel, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The initial factors, in float32: A0 = sqrt(S_r / s) V_r^T, B0 = U_r sqrt(S_r / s) of W.

    PEFT rounds them to the dtype of W, and takes them from W before it does; on a base of another
    dtype than float32 they are put back as W has them: PEFT would load another change.
    """
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and (W := before[f"{name}.weight"]).dtype != torch.float32:
            r, scale = layer.r["default"], layer.scaling["default"]
            U, S, Vt = torch.linalg.svd(W.float(), full_matrices=False)
            root = (S[:r] / scale).sqrt()
            layer.lora_A["default"].weight.data = root[:, None] * Vt[:r]
            layer.lora_B["default"].weight.data = U[:, :r] * root
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
        model.save_pretrained(str(out), save_embedding_layers=False)  # none is trained
        (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        (out / PISSA_INIT).unlink(missing_ok=True)
        if init is not None:
            write_sealed(out / PISSA_INIT, init, {})
        write_record(out, base)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"adapters: {out} cannot be written ({error}); use another") from error

"""Adapters: train one of seven PEFT families towards a response, and read its weight change back.

The border between PEFT and `wscore`: everything that knows PEFT's files and classes is here.
"""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import peft
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wscore import Delta, difference, family, merge_adapter, norm, stream, tensors_sha256
from wscore.store import write_whole
from wsrun.items import user
from wsrun.pairs import Pair
from wsrun.score import end_of_turn, render
from wsrun.steer import steered

PEFT_VERSION = "0.21"  # the version that tests compare every family with
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PISSA_INIT = "pissa_init.safetensors"
BASE = "base.json"  # which weights the adapter was trained on
PROOF_TOLERANCE = 1e-5
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


def check_peft() -> None:
    """Raises ValueError unless the installed PEFT is the minor version that tests cover."""
    if not peft.__version__.startswith(PEFT_VERSION + "."):
        raise ValueError(
            f"adapters: PEFT {peft.__version__} is installed, families are tested with "
            f"{PEFT_VERSION}; run pip install 'peft=={PEFT_VERSION}.*'"
        )


def target_modules(n_layers: int, band: tuple[float, float]) -> str:
    """PEFT's pattern for all linear maps of the layers l with band[0] <= l / n_layers < band[1]."""
    kept = [layer for layer in range(n_layers) if band[0] <= layer / n_layers < band[1]]
    if not kept:
        raise ValueError(f"adapters: band {band} holds no layer of {n_layers}; widen it")
    layers, names = "|".join(map(str, kept)), "|".join(LINEAR)
    return rf".*layers\.({layers})\.(self_attn|mlp)\.({names})"


@contextmanager
def attached(
    model: PreTrainedModel, config: PeftConfig, attach: Callable[[Any], PeftModel]
) -> Iterator[PeftModel]:
    """attach(model) inside the block; afterwards the model is as it was, bit for bit.

    PEFT swaps modules in place, and inits like PiSSA also overwrite the base weights: both are
    undone, also where attaching itself fails or is interrupted.
    """
    mutates = isinstance(getattr(config, "init_lora_weights", True), str)
    weights = {p: p.detach().clone() for p in model.parameters() if mutates and p.ndim == 2}
    children = [(m, dict(m.named_children())) for m in model.modules()]
    try:
        yield attach(model)
    finally:
        for module, own in children:
            for name, child in own.items():
                setattr(module, name, child)
        vars(model).pop("peft_config", None)
        with torch.no_grad():
            for parameter, weight in weights.items():
                parameter.copy_(weight)
        model.requires_grad_(False)


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
    step_done: Callable[[str], None] = lambda note: None,
) -> list[float]:
    """Train one adapter on the `side` ("pos" or "neg") responses of pairs; returns the losses.

    Minimises the mean -log p(response | prompt) over response tokens, with AdamW at a linearly
    decaying rate. Initial factors and the order of examples depend on the family and the seed, not
    on the side: both poles start from one adapter, and families share no draw. Writes PEFT's own
    two files to `out`, a record of the base and PiSSA's initial factors beside them; the model is
    bit-identical afterwards.
    """
    check_peft()
    where = target_modules(model.config.get_text_config().num_hidden_layers, recipe.band)
    config = FAMILIES[check_family(family)](recipe, where)
    examples = [_example(tok, p.prompt, getattr(p, f"response_{side}")) for p in pairs]
    base = base_record(model, where)
    with (
        torch.random.fork_rng(),
        attached(model, config, _initial(config, family, seed)) as wrapped,
    ):
        init = _pissa_factors(wrapped) if family == "pissa" else None
        losses = _fit(wrapped, examples, recipe, family, seed, step_done)
        _save(wrapped, init, base, base_name, Path(out))
    return losses


def _initial(config: PeftConfig, family: str, seed: int) -> Callable[[Any], PeftModel]:
    def attach(model: Any) -> PeftModel:
        torch.manual_seed(stream(seed, f"initial/{family}").initial_seed())
        return get_peft_model(model, config)

    return attach


def _example(tok: PreTrainedTokenizerBase, prompt: str, response: str) -> tuple[list[int], int]:
    head = render(tok, user(prompt))
    reply = tok(response, add_special_tokens=False)["input_ids"]
    return [*head, *reply, end_of_turn(tok)], len(head)


def _fit(
    model: PeftModel,
    examples: Sequence[tuple[list[int], int]],
    recipe: Recipe,
    family: str,
    seed: int,
    step_done: Callable[[str], None],
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
        decay.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step_done(f"loss {losses[-1]:.3f}")
    return losses


def _collate(examples: Sequence[tuple[list[int], int]], device: Any) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    return ids.to(device), labels.to(device)


def _pissa_factors(model: PeftModel) -> dict[str, Tensor]:
    return {
        name.replace(".default.", "_init."): p.detach().clone().contiguous()
        for name, p in model.named_parameters()
        if ".lora_" in name
    }


def base_record(model: nn.Module, where: str) -> dict[str, str]:
    """What an adapter was trained on: pattern, dtype and sha256 of the weights it may change."""
    named = {n: p for n, p in model.named_parameters() if n.endswith(".weight")}
    weights = {n: p for n, p in named.items() if re.fullmatch(where, n.removesuffix(".weight"))}
    dtypes = sorted({str(p.dtype) for p in weights.values()})
    return {"weights": where, "dtype": ", ".join(dtypes), "sha256": tensors_sha256(weights)}


def check_base(model: nn.Module, path: str | Path) -> None:
    """Raises ValueError where the adapter's own record names other weights than the model's.

    Adapters without a record pass, and so does a model in another dtype, whose bits say nothing.
    """
    file = Path(path) / BASE
    if not file.is_file():
        return
    record = json.loads(file.read_text())
    found = base_record(model, record["weights"])
    if found["dtype"] == record["dtype"] and found["sha256"] != record["sha256"]:
        raise ValueError(
            f"adapter: {str(path)!r} was trained on another base than this model (the weights it "
            "changes have other bits); load the model it was trained on, or train it again"
        )


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


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a PEFT checkpoint folder, with PiSSA's initial factors where stored.

    Raises ValueError for a missing folder, config or weights file, and for one that is unreadable.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"adapter: no folder {str(folder)!r}; train one or name another")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"adapter: {str(folder)!r} has no {name}; save it with PEFT again")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"adapter: {str(folder / CONFIG)!r} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"adapter: {str(folder / CONFIG)!r} is no JSON object; save it again")
    tensors = _read_tensors(folder / WEIGHTS)
    if (folder / PISSA_INIT).is_file():
        tensors |= _read_tensors(folder / PISSA_INIT)
    return tensors, config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"adapter: {str(path)!r} is truncated or no safetensors file; copy or save it again "
            f"({error})"
        ) from error


def adapter_delta(model_or_base: nn.Module | Mapping[str, Tensor], path: str | Path) -> Delta:
    """tau = merged - base of the adapter in folder `path`, fp32, exact.

    Given a model, the delta is proved on one probe batch: the model plus delta must give the logits
    of PEFT's own forward within 1e-5 of their largest value (in fp32), else ValueError. Given only
    a mapping of base weights there is nothing to run, and the proof is left out.
    """
    check_peft()
    tensors, config = read_adapter(path)
    model = model_or_base if isinstance(model_or_base, nn.Module) else None
    base = dict(model.named_parameters(remove_duplicate=False)) if model else model_or_base
    try:
        tau = merge_adapter(tensors, config, base)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{error} (adapter {str(path)!r})") from error
    if model:
        check_base(model, path)
        prove(model, tau, path)  # type: ignore[arg-type]
    return tau


class PairDelta(NamedTuple):
    """The deltas of two poles of one family, and dW = pos - neg."""

    family: str
    pos: Delta
    neg: Delta
    dW: Delta


def pair_deltas(model: PreTrainedModel, folder: str | Path) -> PairDelta:
    """The proved deltas of folder/pos and folder/neg, and their difference.

    Raises ValueError where the poles are of different families or touch different targets.
    """
    sides = {side: Path(folder) / side for side in ("pos", "neg")}
    try:
        families = {side: family(read_adapter(path)[1]) for side, path in sides.items()}
    except ValueError as error:
        raise ValueError(f"{error} (adapters {str(folder)!r})") from error
    if families["pos"] != families["neg"]:
        raise ValueError(
            f"adapters: pos of {str(folder)!r} is {families['pos']} and neg is {families['neg']}; "
            "train both poles with one family"
        )
    pos, neg = (adapter_delta(model, path) for path in sides.values())
    dW = difference(pos, neg)
    if norm(dW) == 0:
        raise ValueError(f"adapters: pos and neg of {str(folder)!r} are equal, so dW is zero")
    return PairDelta(families["pos"], pos, neg, dW)


def prove(model: PreTrainedModel, tau: Mapping[str, Tensor], path: str | Path) -> float:
    """max |logits(base + tau) - logits(PEFT)| / max(1, max |logits(PEFT)|); raises above 1e-5.

    A change that is small on that scale must also be met itself, within 1 % of its own largest
    logit, unless it is lost in rounding.
    """
    exact = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    config = PeftConfig.from_pretrained(str(path))
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    probe = torch.randint(vocab, (2, 24), generator=generator).to(model.device)
    with torch.no_grad():
        base = exact(input_ids=probe, use_cache=False).logits
        with steered(exact, tau, 1.0):
            ours = exact(input_ids=probe, use_cache=False).logits
        with attached(exact, config, lambda m: PeftModel.from_pretrained(m, str(path))) as wrapped:
            theirs = wrapped(input_ids=probe, use_cache=False).logits
    size = theirs.abs().max().clamp(min=1)
    error, change = (float((x - theirs).abs().max() / size) for x in (ours, base))
    if not error <= PROOF_TOLERANCE or (change > PROOF_TOLERANCE and error > 0.01 * change + 1e-6):
        raise ValueError(
            f"adapter_delta: logits of base + delta and of PEFT differ by {error:.1e} of their "
            f"largest value for {str(path)!r}; the adapter does not mean what its config says"
        )
    return error

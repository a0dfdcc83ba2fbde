"""Adapter checkpoint -> weight change: reads what PEFT 0.21 writes, or refuses it.

`merge_adapter` takes the tensors of adapter_model.safetensors and the adapter_config.json, works in
float64 with the formulas of families.py, and returns fp32.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wscore.factored import Factored, Factors, delora_factors, lora_factors, pissa_change
from wscore.families.formulas import (
    Weight,
    block_size,
    boft_delta,
    delora_delta,
    dora_delta,
    ia3_delta,
    lora_delta,
    oft_delta,
    pissa_delta,
    pissa_factors,
)

# Initialisations that leave the base weight alone; any other one trains on a changed base.
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")

# Settings that change more than the targets' weights, or change them by another rule.
UNSUPPORTED = """
    modules_to_save bias lora_bias fan_in_fan_out trainable_token_indices layer_replication
    target_parameters alora_invocation_tokens arrow_config kasa_config monteclora_config
    velora_config use_qalora use_bdlora""".split()

# What each family stores per module: checkpoint keys end in one of these.
TENSORS = {
    "lora": ("lora_A.weight", "lora_B.weight"),
    "dora": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
    "pissa": ("lora_A.weight", "lora_B.weight", "lora_A_init.weight", "lora_B_init.weight"),
    "delora": ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
    "oft": ("oft_R.weight",),
    "boft": ("boft_R", "boft_s"),
    "ia3": ("ia3_l",),
}


def check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(f"merge_adapter: {message}")


def setting(config: Mapping[str, Any], name: str, patterns: str = "", module: str = "") -> Any:
    """A config field; as in PEFT, the first pattern that ends the module's name overrides it."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    found = f"the config has no {name!r}, only {sorted(config)}"
    check(config.get(name) is not None, f"{found}; pass the whole adapter_config.json")
    return config[name]


def family(config: Mapping[str, Any]) -> str:
    """One of lora (rsLoRA too), dora, pissa, delora, oft, boft, ia3; anything else is refused."""
    kind = setting(config, "peft_type")
    if kind in ("DELORA", "OFT", "BOFT", "IA3"):
        return str(kind.lower())
    known = "LORA (also DoRA and PiSSA), DELORA, OFT, BOFT or IA3"
    check(kind == "LORA", f"the config has peft_type {kind!r}; train one of {known}")
    init, dora = config.get("init_lora_weights", True), bool(config.get("use_dora"))
    check(
        init in PLAIN_INITS or (init == "pissa" and not dora),
        f"the config has init_lora_weights {init!r} with use_dora {dora}, trained on a changed "
        f"base the checkpoint does not keep; use one of {PLAIN_INITS}, or pissa without DoRA",
    )
    return "pissa" if init == "pissa" else "dora" if dora else "lora"


class Target(NamedTuple):
    """One adapted module: its checkpoint tensors by suffix (float64), base weight and config."""

    module: str
    tensors: dict[str, Tensor]
    weight: Tensor
    config: Mapping[str, Any]

    def shape(self, suffix: str) -> list[int]:
        return list(self.take(suffix).shape) or [0]

    def take(self, suffix: str, *shape: int) -> Tensor:
        """The tensor of that suffix, of that shape if one is given."""
        have = f"{self.module} has {sorted(self.tensors)} and no {suffix}"
        check(suffix in self.tensors, f"{have}; save the adapter again with save_pretrained")
        tensor = self.tensors[suffix]
        check(
            not shape or tensor.shape == shape,
            f"{self.module}.{suffix} is {list(tensor.shape)}, but base weight "
            f"{list(self.weight.shape)} and config need {list(shape)}; give the base and config "
            "that it was trained with",
        )
        return tensor

    def blocks(self, b: int) -> int:
        """k with k b = d_in, 0 where there is none."""
        k, rest = divmod(self.weight.shape[1], max(b, 1))
        return 0 if rest else k

    def setting(self, name: str, patterns: str = "") -> Any:
        return setting(self.config, name, patterns, self.module)


FORMULAS = {
    "lora": lora_delta,
    "dora": dora_delta,
    "pissa": pissa_delta,
    "delora": delora_delta,
}
FACTORS: dict[str, Callable[..., Factors]] = {
    "lora": lora_factors,
    "pissa": pissa_change,
    "delora": delora_factors,
}


def low_rank_delta(kind: str, t: Target, W: Weight) -> Weight:
    """The delta of a lora, dora, pissa or delora module."""
    return FORMULAS[kind](*low_rank_inputs(kind, t, W))


def low_rank_inputs(kind: str, t: Target, W: Weight) -> tuple[Any, ...]:
    """What that family's formula takes, in its order."""
    d_out, d_in = W.shape
    r = t.setting("r", "rank_pattern")
    if kind == "delora":
        lam, w_norm = t.take("delora_lambda", 1), t.take("delora_w_norm", d_in)
        return t.take("delora_A", r, d_in), t.take("delora_B", d_out, r), lam, w_norm
    alpha = t.setting("lora_alpha", "alpha_pattern")
    scale = alpha / (math.sqrt(r) if t.config.get("use_rslora") else r)
    if kind == "pissa":  # the SVD gives no more factors than this, but s keeps the configured rank
        r = min(r, d_out, d_in)
    A, B = t.take("lora_A.weight", r, d_in), t.take("lora_B.weight", d_out, r)
    if kind == "lora":
        return A, B, scale
    if kind == "dora":
        return A, B, scale, t.take("lora_magnitude_vector", d_out), W
    if t.tensors.keys() & {"lora_A_init.weight", "lora_B_init.weight"}:
        A0, B0 = t.take("lora_A_init.weight", r, d_in), t.take("lora_B_init.weight", d_out, r)
    else:  # fp32 as in PEFT: where S_r and S_(r+1) are close the factors depend on the precision
        A0, B0 = (factor.to(W) for factor in pissa_factors(W.float(), r, scale))
    return A, B, scale, A0, B0


def multiplicative_delta(kind: str, t: Target, W: Weight) -> Weight:
    """The delta of an oft, boft or ia3 module.

    Free sizes are the tensor's own: PEFT may have rounded the block size, trained one butterfly
    factor where its CUDA extension does not build, or gated columns for feedforward_modules.
    """
    d_out, d_in = W.shape
    if kind == "ia3":
        on_rows = t.shape("ia3_l")[-1] == 1
        return ia3_delta(t.take("ia3_l", *((d_out, 1) if on_rows else (1, d_in))), W)
    if kind == "boft":
        n, b = t.shape("boft_R")[0], t.shape("boft_R")[-1]
        k = t.blocks(b)
        n = min(n, (k & -k).bit_length() if b % 2 == 0 else 1)  # factor i spans 2^i blocks
        return boft_delta(t.take("boft_R", n, k, b, b), t.take("boft_s", d_out, 1), W)
    b = block_size(t.shape("oft_R.weight")[-1])
    k = min(t.blocks(b), 1) if t.config.get("block_share") else t.blocks(b)
    theta, terms = t.take("oft_R.weight", k, b * (b - 1) // 2), None
    if t.setting("use_cayley_neumann"):
        terms = t.setting("num_cayley_neumann_terms")
        version = t.config.get("peft_version") or "0.0"
        check(
            [int(x) for x in re.findall(r"\d+", version)[:2]] >= [0, 18],
            f"the config has use_cayley_neumann of PEFT {version}, whose series changed in 0.18; "
            "train the adapter again",
        )
    return oft_delta(theta, W, terms, t.setting("eps") if t.config.get("coft") else None)


def by_module(
    adapter: Mapping[str, Tensor], kind: str, names: set[str]
) -> dict[str, dict[str, Tensor]]:
    """{module: {suffix: tensor}}: every adapter key has its place, every module is in `names`."""
    modules: dict[str, dict[str, Tensor]] = {}
    unread = []
    for key, tensor in adapter.items():
        check(bool(tensor.isfinite().all()), f"{key} holds NaN or inf; train the adapter again")
        name = key.removeprefix("base_model.model.")
        suffix = next((x for x in TENSORS[kind] if name.endswith(f".{x}")), None)
        if suffix is None:
            unread.append(key)
        else:
            modules.setdefault(name.removesuffix(f".{suffix}"), {})[suffix] = tensor
    check(
        not unread,
        f"no {kind} rule reads {unread[:3]} ({len(unread)} of {len(adapter)} adapter tensors); "
        "train only linear weights (no embedding, bias or saved module), use save_pretrained",
    )
    check(bool(modules), "the adapter has no tensors; pass those of adapter_model.safetensors")
    missing = [f"{module}.weight" for module in modules if f"{module}.weight" not in names]
    check(
        not missing,
        f"the adapter targets {missing[:3]} ({len(missing)} such), the base has names like "
        f"{sorted(names)[:3]}; pass the base it was trained on, named as in its state_dict()",
    )
    return modules


@torch.no_grad()
def merge_adapter(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """{name: merged - original} for every parameter the adapter targets, zero changes included.

    `adapter` and `config` are adapter_model.safetensors and adapter_config.json of a PEFT
    checkpoint; PiSSA may store its initial factors as `<module>.lora_A_init.weight` and
    `<module>.lora_B_init.weight`. `base` maps parameter names to ORIGINAL weights of any float
    dtype; it is indexed by target, one tensor at a time, and the delta lies on its device.
    Whatever is not exactly a change of target weights by one known rule raises ValueError.
    """
    kind, names, delta = family(config), set(base), {}
    rule = multiplicative_delta if kind in ("oft", "boft", "ia3") else low_rank_delta
    for key, target in targets(adapter, config, base):
        delta[key] = rule(kind, target, target.weight.to(torch.float64)).float()
        check(bool(delta[key].isfinite().all()), f"{key} changes by NaN or inf; check the base")
        bias = f"{target.module}.bias"
        if kind == "ia3" and len(target.tensors["ia3_l"]) > 1 and bias in names:
            b = base[bias].to(torch.float64)
            delta[bias] = ia3_delta(target.tensors["ia3_l"], b[:, None])[:, 0].float()
    return delta


@torch.no_grad()
def merge_adapter_factored(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Mapping[str, Tensor]
) -> Factored:
    """`merge_adapter` of a lora, pissa or delora adapter as fp32 factors, of rank r (pissa 2 r).

    Its entries are those of `merge_adapter` within 1e-6 of their norm, which is what rounding the
    factors instead of the product costs. Raises ValueError for families whose change has full rank.
    """
    kind, factors = family(config), {}
    known = ", ".join(FACTORS)
    check(kind in FACTORS, f"a {kind} change has no factors; use one of {known}, or merge_adapter")
    for key, target in targets(adapter, config, base):
        inputs = low_rank_inputs(kind, target, target.weight.to(torch.float64))
        factors[key] = Factors(*(x.float() for x in FACTORS[kind](*inputs)))
        finite = all(bool(x.isfinite().all()) for x in factors[key])
        check(finite, f"{key} changes by NaN or inf; check the base")
    return Factored(factors)


def targets(
    adapter: Mapping[str, Tensor], config: Mapping[str, Any], base: Mapping[str, Tensor]
) -> Iterator[tuple[str, Target]]:
    """(parameter name, target) of each adapted module, once adapter, config and base are in order.

    Whatever is not exactly a change of target weights by one known rule raises ValueError.
    """
    kind = family(config)
    for name in UNSUPPORTED:
        found = f"the config sets {name} to {config.get(name)!r}, not a change of linear weights"
        check(config.get(name) in (None, False, "none", [], {}), f"{found}; train without it")
    for module, stored in by_module(adapter, kind, set(base)).items():
        key, weight = f"{module}.weight", base[f"{module}.weight"]
        check(
            weight.ndim == 2 and weight.is_floating_point() and weight.element_size() > 1,
            f"{key} of the base is {weight.dtype} {list(weight.shape)}; pass the unquantised "
            "[d_out, d_in] weight of a linear layer",
        )
        tensors = {suffix: t.to(weight.device, torch.float64) for suffix, t in stored.items()}
        yield key, Target(module, tensors, weight, config)

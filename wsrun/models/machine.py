"""What decides a model's numbers beside its input: the model as it stands, and how it is run.

Both go into the keys of cached results. What no key can hold, code hooked into the model, is named
by `unkeyed`; nothing of such a model is cached.
"""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator

import torch
import transformers
from torch import nn
from torch.backends import cuda, cudnn
from transformers import PreTrainedModel

from wscore import tensors_sha256
from wscore.files import reason

ENVIRONMENT = (  # what the libraries below torch read at their start
    "CUBLAS_WORKSPACE_CONFIG",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)
FLAGS: dict[str, Callable[[], object]] = {
    "float32 matmul": torch.get_float32_matmul_precision,
    "cuda matmul tf32": lambda: cuda.matmul.allow_tf32,
    "cuda matmul precision": lambda: _precision(cuda.matmul.fp32_precision),
    "cpu matmul precision": lambda: _precision(torch.backends.mkldnn.matmul.fp32_precision),  # type: ignore
    "fp16 reduction": lambda: cuda.matmul.allow_fp16_reduced_precision_reduction,
    "bf16 reduction": lambda: cuda.matmul.allow_bf16_reduced_precision_reduction,
    "cudnn": lambda: (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
    "mkldnn": torch._C._get_mkldnn_enabled,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "default dtype": torch.get_default_dtype,
    "sdpa": lambda: (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.fp16_bf16_reduction_math_sdp_allowed(),
    ),
}
"""switches of torch that change numbers"""
PACKAGES = (
    "weight-steering", "torch", "transformers", "peft", "polars", "safetensors", "tokenizers",
)  # fmt: skip
LOOKS_ONLY = "transformers.utils.output_capturing"  # whose hooks keep states and change none
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def model_state(model: PreTrainedModel) -> dict[str, str]:
    """The model as it stands, as text by name: weights, buffers, modules, configuration.

    It reads all weights; take it once for many keys. modules: names, types, and whether they are in
    training mode or compiled.
    """
    modules = "\n".join(
        f"{name} {type(m).__module__}.{type(m).__qualname__} {m.training} {_compiled(m)}"
        for name, m in model.named_modules()
    )
    return {
        "base": tensors_sha256(dict(model.named_parameters())),
        "buffers": tensors_sha256(dict(model.named_buffers())),
        "modules": hashlib.sha256(modules.encode()).hexdigest(),
        "config": hashlib.sha256(model.config.to_json_string().encode()).hexdigest(),
        "attention": str(model.config._attn_implementation),
        "dtype": str(model.dtype),
    }


def versions(*more: str) -> dict[str, str | None]:
    """The installed packages that decide numbers, and `more`; None for what is not there."""
    return {p: _version(p) for p in (*PACKAGES, *more)} | {"python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _precision(own: str) -> str:
    """ "none" is what was never set: as all of torch is, and that is full float32 unless set."""
    general = getattr(torch.backends, "fp32_precision", "none")
    return next((p for p in (own, general) if p != "none"), "ieee")


def machine_state(model: PreTrainedModel) -> dict[str, str]:
    """How the model is run here and now, as text by name: device, processor, torch's switches."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    kinds = sorted({"cpu", device.type})
    return {
        "device": f"{device.type} {name}",
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "autocast": str([(k, torch.is_autocast_enabled(k), _autocast_dtype(k)) for k in kinds]),
        "flags": str({name: _read(flag) for name, flag in FLAGS.items()}),
        "environment": str({name: os.environ.get(name) for name in ENVIRONMENT}),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def unkeyed(model: nn.Module) -> str | None:
    """What of a model no key can hold, in a few words: hooks, and a forward of its own instance.

    None where there is nothing. Hooks on all modules count; those by which transformers keeps
    hidden states do not.
    """
    return next(_foreign_code(model), None)


def _foreign_code(model: nn.Module) -> Iterator[str]:
    for kind in HOOKS:
        if getattr(nn.modules.module, f"_global{kind}"):
            yield "hooks on all modules"
    for name, module in model.named_modules():
        hooks = [h for kind in HOOKS for h in getattr(module, kind).values()]
        if any(getattr(h, "__module__", None) != LOOKS_ONLY for h in hooks):
            yield f"a hook on {name or 'the model'!r}"
        if "forward" in vars(module):
            yield f"another forward of {name or 'the model'!r}"


def _cpu() -> str:
    """The instruction set that torch uses, and what the processor says of itself."""
    found = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch allowed
    parts = sorted(f"{k} {v}" for k, v in found.items() if v and not k.startswith("num_"))
    own = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else "unknown"
    return f"{torch.backends.cpu.get_cpu_capability()} {found.get('cpu_name', '')} {own}"


def _compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def _autocast_dtype(kind: str) -> object:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _read(flag: Callable[[], object]) -> str:
    """What a switch says: torch refuses to tell one that was set by a newer or an older name."""
    try:
        return str(flag())
    except (RuntimeError, AttributeError) as error:
        return reason(error, 80)

"""Models: load one with its tokenizer and an explicit dtype, from a folder or the Hub."""

import ctypes
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wsrun.models.gguf import converted, gguf_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path, dtype: str = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a folder, a GGUF file, "smollm2" or a Hub name, ready to be asked.

    The dtype is always explicit, because transformers 5 otherwise takes the one found in the
    checkpoint. Raises ValueError for an unknown dtype, a folder that lacks its model or tokenizer,
    and a Hub name that cannot be reached.
    """
    if dtype not in DTYPES:
        raise ValueError(f"load_model: dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    name = model_folder(name)
    model: Any = _load(AutoModelForCausalLM, name, "model", dtype=DTYPES[dtype])
    tok = load_tokenizer(name)
    try:
        return model.to(device).eval().requires_grad_(False), tok
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"load_model: device {device!r} is unavailable ({reason})") from error


def model_folder(name: str | Path) -> str | Path:
    """The name itself, or the folder into which its GGUF file is converted."""
    path = gguf_file(name)
    return name if path is None else converted(path)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a Hub name; it must carry a chat template."""
    name = model_folder(name)
    if Path(name).is_dir() and not any(Path(name).glob("tokenizer*")):
        raise ValueError(
            f"load_model: no tokenizer in folder {str(name)!r} (no tokenizer.json or "
            "tokenizer.model); save one beside the model with tokenizer.save_pretrained"
        )
    tok = _load(AutoTokenizer, name, "tokenizer")
    if not tok.chat_template:
        raise ValueError(
            f"load_model: the tokenizer of {str(name)!r} has no chat template; "
            "add chat_template.jinja, or use an instruction-tuned model"
        )
    return tok


def _load(auto, name: str | Path, what: str, **kwargs):
    local = Path(name).is_dir()
    if not local and (str(name).startswith((".", "/")) or str(name).count("/") > 1):
        raise ValueError(f"load_model: no folder {str(name)!r}; give a model folder or a Hub name")
    try:
        known = local or isinstance(try_to_load_from_cache(str(name), "config.json"), str)
        if not known and not online():
            raise OSError("no connection to the Hub")
        return auto.from_pretrained(str(name), local_files_only=local, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        if local:
            raise ValueError(
                f"load_model: no usable {what} in folder {str(name)!r} ({reason})"
            ) from error
        raise ValueError(
            f"load_model: {what} {str(name)!r} not found locally or on the Hub; without network, "
            f"download it elsewhere and pass the folder, --model path/to/folder ({reason})"
        ) from error


def online() -> bool:
    """Whether the Hub's host answers within five seconds; a proxy is assumed to work.

    Without this check the Hub client would retry every file of a model for about a minute.
    """
    if any(os.environ.get(v) for v in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def d_model(model: PreTrainedModel) -> int:
    """Width of the residual stream d."""
    return int(model.config.get_text_config().hidden_size)


def limit_threads(model: PreTrainedModel, below: int = 512) -> None:
    """One thread for a narrow model on CPU: its matrices lose more to threads than they gain."""
    if model.device.type == "cpu" and d_model(model) < below:
        torch.set_num_threads(1)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, up to a gigabyte, in place of giving it back at once.

    Every operation frees the activations of a batch and allocates new ones; with the defaults each
    allocation pays its page faults anew, about a third of a narrow model's time. No effect on
    other C libraries.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**25)

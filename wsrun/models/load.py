"""Models: load one with its tokenizer and an explicit dtype, from a folder or the Hub."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from wscore.files import reason
from wsrun.models.checkpoint import (
    check_config,
    check_counts,
    check_loaded,
    check_sizes,
    read_headers,
)
from wsrun.models.gguf import converted, gguf_file
from wsrun.models.loading import no_bars, said_if_slow
from wsrun.models.template import check_template, encode

ADAPTER = "adapter_config.json"
PROBE = "Is it so? Yes or no."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path, dtype: str = "float32", device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a folder, a GGUF file, "smollm2" or a Hub name, ready to be asked.

    The dtype is always explicit, because transformers 5 otherwise takes the one found in the
    checkpoint. Weights come from safetensors alone, and no code that comes with a model is run.
    Raises ValueError for an unknown dtype, a Hub name that cannot be reached, and a folder that
    lacks its tokenizer or any parameter of its model, or holds what the model has no place for.
    """
    if dtype not in DTYPES:
        raise ValueError(f"load_model: dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    name = model_folder(name)
    with no_bars(), said_if_slow(f"loading {str(name)!r} as {dtype} on {device} ..."):
        return _load(name, dtype, device)


def _load(
    name: str | Path, dtype: str, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder, local = files_folder(name), Path(name).is_dir()
    config = check_config(folder)
    if local:  # what the Hub gives is there after loading
        headers = read_headers(folder, config)
        check_counts(folder, config, headers)
        with _refused(name, "model"):
            parsed = AutoConfig.from_pretrained(
                str(name), local_files_only=True, trust_remote_code=False
            )
        check_sizes(folder, parsed, headers)
    tok = load_tokenizer(name)
    with _refused(name, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(name),
            local_files_only=local,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told in the report, and refused below
        )
    model, report = loaded
    check_loaded(folder, model, report, read_headers(folder, config))
    try:
        return model.to(device).eval().requires_grad_(False), tok
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"load_model: device {device!r} is unavailable ({reason(error)}); use cpu, or a "
            "device that torch has here"
        ) from error


def model_folder(name: str | Path) -> str | Path:
    """The name itself, or the folder into which its GGUF file is converted."""
    path = gguf_file(name)
    if path is None:
        return name
    with no_bars():
        return converted(path)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or a Hub name; it must carry a chat template that works."""
    name = model_folder(name)
    local = Path(name).is_dir()
    if local and not any(Path(name).glob("tokenizer*")):
        raise ValueError(
            f"load_model: no tokenizer in folder {str(name)!r} (no tokenizer.json or "
            "tokenizer.model); save one beside the model with tokenizer.save_pretrained"
        )
    with _refused(name, "tokenizer"):
        tok = AutoTokenizer.from_pretrained(
            str(name), local_files_only=local, trust_remote_code=False
        )
    if not tok.chat_template:
        raise ValueError(
            f"load_model: the tokenizer of {str(name)!r} has no chat template; "
            "add chat_template.jinja, or use an instruction-tuned model"
        )
    check_template(tok)
    encode(tok, PROBE)
    return tok


def files_folder(name: str | Path) -> Path:
    """The folder with config.json: the one given, or where the Hub's files are kept."""
    if (Path(name) / ADAPTER).is_file():
        raise ValueError(
            f"load_model: {str(name)!r} holds an adapter ({ADAPTER}); give the folder of its base "
            "model, and the adapter by --adapters"
        )
    with _refused(name, "model"):
        found = cached_file(str(name), "config.json", local_files_only=Path(name).is_dir())
        if found is None:
            raise OSError("no config.json")
        return Path(found).parent


@contextmanager
def _refused(name: str | Path, what: str) -> Iterator[None]:
    """Whatever goes wrong while transformers reads, as a ValueError that says what to do."""
    local = Path(name).is_dir()
    if not local and (str(name).startswith((".", "/")) or str(name).count("/") > 1):
        raise ValueError(f"load_model: no folder {str(name)!r}; give a model folder or a Hub name")
    try:
        known = local or isinstance(try_to_load_from_cache(str(name), "config.json"), str)
        if not known and not online():
            raise OSError("no connection to the Hub")
        yield
    # transformers and tokenizers raise anything on damaged files, a panic of Rust among it
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if local:
            raise ValueError(
                f"load_model: no usable {what} in folder {str(name)!r} ({reason(error)}); copy it "
                "anew, or save it there with save_pretrained"
            ) from error
        raise ValueError(
            f"load_model: {what} {str(name)!r} not found locally or on the Hub; without network, "
            f"download it elsewhere and pass the folder, --model path/to/folder ({reason(error)})"
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


def check_positions(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], what: str, new_tokens: int = 0
) -> None:
    """Raises ValueError for sequences of tokens that the model has no positions or no rows for.

    what: who asks, which opens the message. new_tokens: how many will follow each sequence.
    """
    longest = max(map(len, sequences), default=0) + new_tokens
    most = positions(model)
    if sequences and most is not None and longest > most:
        new = f" with {new_tokens} new ones" * (new_tokens > 0)
        raise ValueError(
            f"{what}: the longest prompt has {longest} tokens{new}, and {type(model).__name__} has "
            f"{most} positions; shorten the prompts, or use a model with more positions"
        )
    rows = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if (largest := max(map(max, filter(len, sequences)), default=0)) >= rows:
        raise ValueError(
            f"{what}: the tokenizer gives token {largest}, and {type(model).__name__} has {rows}; "
            "use the tokenizer that the model was trained with"
        )


def positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model takes by its config.json; None where it names no limit."""
    config = model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or {}
    original, factor = (scaling.get(k) for k in ("original_max_position_embeddings", "factor"))
    if not isinstance(found, int) or found < 1:
        return None
    return max(found, int(original * factor)) if original and factor else found


def limit_threads(model: PreTrainedModel, below: int = 512) -> None:
    """One thread for a narrow model on CPU: its matrices lose more to threads than they gain."""
    if model.device.type == "cpu" and d_model(model) < below:
        torch.set_num_threads(1)

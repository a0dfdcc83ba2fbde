"""Memory: what a batch takes at the least, what there is, and one sentence where it is too much."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel

from wscore.files import reason

GIB = 2**30
OUT = "can't allocate memory", "not enough memory", "out of memory"  # torch's own RuntimeErrors
LAYOUT = 18  # bytes per pair of tokens that the cached engine's layout takes while it is made
CGROUP = Path("/sys/fs/cgroup")


def forward_bytes(model: PreTrainedModel, rows: int, tokens: int, logits: int) -> int:
    """The least that a forward pass of rows x tokens takes beside the weights.

    Attention's scores, heads x tokens^2 a row, where they are built, else a mask of one byte; the
    logits of so many positions in fp32; the residual stream.
    """
    config = model.config.get_text_config()
    pair = _scores(model) or 1
    stream = tokens * config.hidden_size * model.dtype.itemsize
    return rows * (pair * tokens**2 + stream) + 4 * logits * config.vocab_size


def training_bytes(model: PreTrainedModel, rows: int, tokens: int, logits: int) -> int:
    """The least that a step of training takes: scores of all layers where they are built, and the
    logits of so many positions with their gradient."""
    config = model.config.get_text_config()
    scores = _scores(model) * config.num_hidden_layers * tokens**2
    return rows * scores + 2 * 4 * logits * config.vocab_size


def generation_bytes(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """The least that generation takes: the forward pass, keys and values of all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cache = 2 * config.num_hidden_layers * groups * width * tokens * model.dtype.itemsize
    return forward_bytes(model, rows, tokens, rows) + rows * cache


def check_memory(model: PreTrainedModel, need: int, what: str, remedy: str) -> None:
    """Raises ValueError where `need` bytes are more than the model's device has free.

    what: the longest sequence, its tokens, and what is done to it. An estimate from below, so that
    nothing that fits is refused.
    """
    free = free_bytes(model.device)
    if free is not None and need > free:
        raise ValueError(
            f"{what} would take {need / GIB:.3g} GiB of memory or more, and {free / GIB:.3g} GiB "
            f"are free on {str(model.device)!r}; {remedy}"
        )


def free_bytes(device: torch.device) -> int | None:
    """What a device has left for this process; None where that is not known."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    known = [b for b in (_machine(), _container(), _process()) if b is not None]
    return min(known) if device.type == "cpu" and known else None


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Running out of memory inside becomes ValueError("what: out of memory (...); remedy")."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(f"{what}: out of memory ({reason(error, 120)}); {remedy}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left, on the CPU or on a GPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and any(w in str(error) for w in OUT))


def _scores(model: PreTrainedModel) -> int:
    """Bytes of attention's scores per pair of tokens and layer, 0 where they are not built."""
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None) or 1
    return 4 * heads if model.config._attn_implementation == "eager" else 0


def _machine() -> int | None:
    with suppress(OSError, StopIteration):  # Linux
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1]) * 1024
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container() -> int | None:
    """What a control group leaves; the files that it caches can go."""
    with suppress(OSError, ValueError):
        most, now, stat = (
            (CGROUP / f"memory.{name}").read_text(encoding="ascii")
            for name in ("max", "current", "stat")
        )
        files = [line.split()[1] for line in stat.splitlines() if "active_file " in line]
        return int(most) - int(now) + sum(map(int, files))
    return None


def _process() -> int | None:
    """What a limit of the address space leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return None if limit < 0 else limit - pages * resource.getpagesize()
    return None

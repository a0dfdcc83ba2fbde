"""Which adapters are read, and which are refused: every kind that the installed PEFT writes.

    python tests/compat/features.py

prints one line a kind. "right": the change read from the adapter's folder, with the model and
without, is merged - original, with PEFT's own merge in float64; the number is the larger relative
error of the two. "refused": the sentence that says so. "WRONG", and exit code 1: read wrongly,
ended in another exception, or read or refused against what kinds.py says. Nothing is kept on disk.
"""

import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import peft  # noqa: E402
import peft.tuners.boft.layer as peft_boft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tests.compat.builders import build_model  # noqa: E402
from tests.compat.kinds import KINDS, Kind  # noqa: E402
from wsrun.adapters.extract import adapter_delta  # noqa: E402

TOLERANCE, PISSA_TOLERANCE = 1e-6, 1e-5  # PiSSA's residual base is in fp32, so the oracle is too


class Outcome(NamedTuple):
    kind: str
    """right, refused or WRONG"""
    detail: str


@torch.no_grad()
def train(adapted: nn.Module) -> None:
    """Moves every trainable parameter, as far as training would or further."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if not (parameter.requires_grad and parameter.is_floating_point()):
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if any(x in name for x in ("magnitude", "ia3_l", "boft_s", "lambda")):
            parameter.mul_(1 + 0.3 * noise)
        else:
            parameter.add_(0.1 * noise)


def merged_change(adapted: Any, original: dict[str, Tensor]) -> dict[str, Tensor]:
    """merged - original of every tensor that PEFT's merge changes, in float64. Takes the model."""
    merged = adapted.double().merge_and_unload().state_dict()
    change = {name: merged[name] - weight.double() for name, weight in original.items()}
    return {name: tensor for name, tensor in change.items() if tensor.any()}


def outcome(kind: Kind, folder: Path) -> Outcome:
    """What comes of an adapter of that kind, written into the folder."""
    model = build_model(kind.model)
    original = {name: w.clone() for name, w in model.state_dict().items()}
    adapted = kind.make(build_model(kind.model))
    train(adapted)
    adapted.save_pretrained(str(folder), **kind.save)
    edit(folder, kind)
    expected = merged_change(adapted, original) if kind.merges else None
    place = folder / (kind.save.get("selected_adapters") or [""])[0]
    weights = dict(model.named_parameters(remove_duplicate=False))
    return judged(kind, joined(*(read(base, place, expected) for base in (weights, model))))


def edit(folder: Path, kind: Kind) -> None:
    file = folder / "adapter_config.json"
    if kind.edit:
        file.write_text(json.dumps(json.loads(file.read_text()) | kind.edit))


def read(base: Any, folder: Path, expected: dict[str, Tensor] | None) -> Outcome:
    """The outcome of adapter_delta(base, folder), beside PEFT's merge."""
    try:
        found = adapter_delta(base, folder)
    except ValueError as error:
        return Outcome("refused", str(error).replace(str(folder), "adapter"))
    except Exception as error:  # a traceback, which is what the table is to show
        return Outcome("WRONG", f"{type(error).__name__}: {error}")
    if expected is None:
        return Outcome("WRONG", "read, though PEFT cannot merge it")
    found = {name: tensor for name, tensor in found.items() if tensor.any()}
    if found.keys() != expected.keys():
        return Outcome("WRONG", f"changes other tensors: {sorted(found.keys() ^ expected.keys())}")
    error = max(float((found[n] - x).norm() / x.norm()) for n, x in expected.items())
    limit = (
        PISSA_TOLERANCE if "pissa" in (folder / "adapter_config.json").read_text() else TOLERANCE
    )
    return Outcome("right" if error <= limit else "WRONG", f"{error:.0e}")


def joined(alone: Outcome, verified: Outcome) -> Outcome:
    """The worse of what comes without a model and with one."""
    if "WRONG" in (alone.kind, verified.kind):
        return alone if alone.kind == "WRONG" else verified
    if alone.kind == verified.kind == "right":
        return Outcome("right", max(alone.detail, verified.detail, key=float))
    return alone if alone.kind == "refused" else verified


def judged(kind: Kind, result: Outcome) -> Outcome:
    """WRONG where a kind that is to be read is refused, or the other way, or by another name."""
    tidy = result.detail.isprintable() and 20 <= len(result.detail) <= 700
    if result.kind == "refused" and not (kind.refused and kind.refused in result.detail and tidy):
        return Outcome("WRONG", f"to be {'refused by name' if kind.refused else 'read'}: {result}")
    if result.kind == "right" and kind.refused:
        return Outcome("WRONG", f"to be refused, naming {kind.refused}")
    return result


def outcomes(kinds: list[Kind]) -> list[tuple[Kind, Outcome]]:
    peft_boft.get_fbd_cuda = lambda: None  # PEFT would try to compile a CUDA extension
    peft.PeftModel.create_or_update_model_card = lambda *_: None  # a third of the time
    transformers.utils.logging.set_verbosity_error()
    results = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append((kind, outcome(kind, Path(folder) / "adapter")))
    return results


def line(kind: Kind, result: Outcome) -> str:
    said = result.detail.replace("|", "\\|")
    return f"| {kind.name} | {result.kind} | {said} |"


def main() -> int:
    results = outcomes(KINDS)
    print(f"PEFT {peft.__version__}, {len(KINDS)} kinds:", end=" ")
    count = Counter(result.kind for _, result in results)
    print(", ".join(f"{count[name]} {name}" for name in ("right", "refused", "WRONG")))
    print("\n| kind | outcome | relative error, or the sentence |\n| --- | --- | --- |")
    for kind, result in results:
        print(line(kind, result))
    return 1 if count["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())

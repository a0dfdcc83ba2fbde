"""Interventions: what steering does to a model, one class a method.

    weights       W' = cast(W0 + alpha dW)                  WeightDelta, ConstructedDelta
    activations   h_l' = h_l + alpha v_l                    AddVectors
    ablation      h_l' = h_l - alpha (h_l . r) r            DirectionalAblation
    prompt        a system turn stands before the items     SystemPrompt
    a & b         both, at one alpha                        Combined

h_l is the output of decoder layer l, at every position. `applied` does it to a model. A new method
is one class here and its name in METHODS: caches, doses, controls and files ask the object.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from wscore import add, entries_sha256, gaussian_null, norm, save_delta, spectrum_null
from wscore.entries import check_delta, format_keys, number
from wscore.files import quoted
from wscore.sealed import write_sealed
from wscore.store import to_halves
from wsrun.models.hooks import hooked, output_of
from wsrun.steer.edits import AddVector, Chain, Edit, Project
from wsrun.steer.weights import steered

Change = Mapping[str, Tensor]  # parameter name -> dW
LAYER = "layer "  # of a file's tensors, before the number
KIND, TEXT = "intervention", "system"  # of a file's header


class Intervention:
    """What is done to a model, at a coefficient alpha that is given when it is applied."""

    method: str  # what tables call it
    label: str = "steering"  # what prose calls it
    has_dose: bool = True  # whether alpha acts on it

    def delta(self) -> Change:
        """dW by parameter name; {} where weights stay as they are."""
        return {}

    def edits(self) -> Mapping[int, Edit]:
        """Edits of the outputs of decoder layers; {} where there are none."""
        return {}

    def system(self) -> str | None:
        """The system turn before the items, None where there is none."""
        return None

    def fingerprint(self) -> dict[str, str]:
        """What is touched (a parameter, "output of layer l") -> hash of how; {} for a prompt."""
        edits = {output_of(layer): edit.fingerprint() for layer, edit in self.edits().items()}
        return entries_sha256(self.delta()) | edits

    def size(self) -> float | None:
        """|dW|, Frobenius over all tensors; None where no weight or not only weights change."""
        d = self.delta()
        return norm(d) if d and not self.edits() else None

    def random_like(self, seed: int) -> "Intervention":
        """A random control of the same size."""
        raise ValueError(f"random_like: a {self.method} has no random control")

    def tensors(self) -> Mapping[str, Tensor]:
        """What `save` writes, beside `texts`; `restored` is the way back."""
        return {}

    def texts(self) -> dict[str, str]:
        """What `save` writes into the header."""
        return {KIND: self.method}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> "Intervention":
        """The intervention of these tensors and texts."""
        raise NotImplementedError

    def save(self, path: str | Path, header: Mapping[str, str] = {}) -> Path:
        """Write one safetensors file, `header` beside the intervention, for `load_intervention`."""
        tensors, texts = self.tensors(), self.texts()
        if doubled := sorted(set(texts) & set(header)):
            raise ValueError(f"save: {doubled} in the header are the format's own; rename them")
        texts |= header
        return save_delta(tensors, path, texts) if tensors else write_sealed(path, {}, texts)

    def __and__(self, other: "Intervention") -> "Combined":
        return Combined(self, other)


@dataclass(frozen=True, eq=False)
class WeightDelta(Intervention):
    """W' = cast(W0 + alpha dW). dW may be a function, called when it is needed and not kept."""

    dW: Change | Callable[[], Change]
    method = "weights"
    label = "other changes of the weights"

    def delta(self) -> Change:
        return self.dW() if callable(self.dW) else self.dW

    def random_like(self, seed: int) -> "WeightDelta":
        """dW's own singular values in random directions (`wscore.spectrum_null`)."""
        return type(self)(lambda: spectrum_null(self.delta(), seed))

    def tensors(self) -> Mapping[str, Tensor]:
        return self.delta()

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> "WeightDelta":
        return cls(tensors)


class ConstructedDelta(WeightDelta):
    """W' = cast(W0 + alpha dW'), of a dW' that was constructed and not trained."""

    method = "synthetic"
    label = "constructed changes"


@dataclass(frozen=True, eq=False)
class AddVectors(Intervention):
    """h_l' = h_l + alpha v_l, v_l by layer (Turner et al. 2023, arXiv 2308.10248)."""

    vectors: Mapping[int, Float[Tensor, " d"]]
    method = "activation"
    label = "activation steering"

    def edits(self) -> Mapping[int, Edit]:
        return {layer: AddVector(v) for layer, v in self.vectors.items()}

    def random_like(self, seed: int) -> "AddVectors":
        """Gaussian r_l with |r_l| = |v_l|, drawn layer by layer (`wscore.gaussian_null`)."""
        drawn = gaussian_null(self.tensors(), seed)
        return type(self)({n: drawn[f"{LAYER}{n}"] for n in self.vectors})

    def tensors(self) -> Mapping[str, Tensor]:
        return {f"{LAYER}{n}": v for n, v in self.vectors.items()}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> "AddVectors":
        read = dict(check_delta(tensors))
        vectors = {int(name.removeprefix(LAYER)): v for name, v in read.items()}
        if {f"{LAYER}{n}" for n in vectors} != set(read) or any(v.ndim != 1 for v in read.values()):
            raise ValueError(f"{format_keys(tensors)} are not vectors named '{LAYER}<number>'")
        return cls(vectors)


@dataclass(frozen=True, eq=False)
class DirectionalAblation(AddVectors):
    """h_l' = h_l - alpha (h_l . r) r, r = v_l / |v_l| (Arditi et al. 2024, arXiv 2406.11717).

    With alpha = 1 nothing is left of h along r. The paper takes one r at every layer:
    DirectionalAblation(dict.fromkeys(range(n_layers), r)).
    """

    method = "ablation"
    label = "directional ablation"

    def edits(self) -> Mapping[int, Edit]:
        return {layer: Project(v) for layer, v in self.vectors.items()}

    def random_like(self, seed: int) -> "DirectionalAblation":
        """As of `AddVectors`, and layers that share a direction share its random one."""
        drawn, vectors = super().random_like(seed).vectors, self.vectors
        first = {
            n: next(m for m in vectors if torch.equal(vectors[m], vectors[n])) for n in vectors
        }
        return DirectionalAblation({n: drawn[first[n]] for n in vectors})


@dataclass(frozen=True, eq=False)
class SystemPrompt(Intervention):
    """A system turn before every item; alpha does not act on it."""

    text: str
    method = "prompt"
    label = "prompting"
    has_dose = False

    def system(self) -> str | None:
        return self.text

    def texts(self) -> dict[str, str]:
        return super().texts() | {TEXT: self.text}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> "SystemPrompt":
        if not isinstance(text := texts.get(TEXT), str):
            raise ValueError(f"its {TEXT} is {quoted(text)}, not a text")
        return cls(text)


@dataclass(frozen=True, eq=False, init=False)
class Combined(Intervention):
    """Several interventions at one alpha: the sum of the dW, then each edit after the other.

    Its method is that of the first part. A random control keeps the parts without a dose.
    """

    parts: tuple[Intervention, ...]
    kind: ClassVar = "combined"  # in files

    def __init__(self, first: Intervention, *others: Intervention) -> None:
        flat = [p.parts if isinstance(p, Combined) else (p,) for p in (first, *others)]
        object.__setattr__(self, "parts", sum(flat, ()))

    @property
    def method(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.parts[0].method

    @property
    def has_dose(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(p.has_dose for p in self.parts)

    def delta(self) -> Change:
        total, *other_deltas = [d for p in self.parts if (d := p.delta())] or [{}]
        for d in other_deltas:
            total = add(total, d, disjoint=True)
        return total

    def edits(self) -> Mapping[int, Edit]:
        edits: dict[int, Edit] = {}
        for layer, edit in (pair for p in self.parts for pair in p.edits().items()):
            edits[layer] = Chain((edits[layer], edit)) if layer in edits else edit
        return edits

    def system(self) -> str | None:
        systems = [s for p in self.parts if (s := p.system()) is not None]
        return "\n\n".join(filter(None, systems)) if systems else None

    def random_like(self, seed: int) -> "Combined":
        return Combined(*(p.random_like(seed) if p.has_dose else p for p in self.parts))

    def tensors(self) -> Mapping[str, Tensor]:
        numbered = enumerate(to_halves(p.tensors()) for p in self.parts)
        return {f"{i}/{name}": w for i, tensors in numbered for name, w in tensors.items()}

    def texts(self) -> dict[str, str]:
        return {KIND: self.kind, "parts": json.dumps([p.texts() for p in self.parts])}


METHODS: dict[str, type[Intervention]] = {
    cls.method: cls
    for cls in (WeightDelta, ConstructedDelta, AddVectors, DirectionalAblation, SystemPrompt)
}


@contextmanager
def applied(
    model: PreTrainedModel, intervention: Intervention, alpha: float
) -> Iterator[PreTrainedModel]:
    """The model so changed inside the block, as it was after it.

    A system turn is a matter of the prompt. Raises ValueError for what does not fit the model and
    for an alpha that is no finite number.
    """
    alpha = number(alpha, "applied: alpha")
    delta, edits = intervention.delta(), intervention.edits()
    with ExitStack() as stack:
        if delta:
            stack.enter_context(steered(model, delta, alpha))
        if edits and alpha:
            hooks = {layer: partial(edit, alpha=alpha) for layer, edit in edits.items()}
            stack.enter_context(hooked(model, hooks))
        yield model

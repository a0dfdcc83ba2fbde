"""The cached engine: what an intervention leaves as it is runs once for all interventions.

What an intervention does to the model is known by the steps of the layers that it touches
(layer_steps.py), so two interventions that agree up to a step agree in the state that enters it.
States are kept (activation_cache.py), and a run starts at the deepest one it may use: the base's
before its first changed step, or one of an intervention that began alike. A run goes layer by
layer, all batches through one before the next, and a layer's weights are changed only while it
runs. Common heads of the sequences run once (batching.py, trie_attention.py), and the last layer
runs only where logits are read. `verify_logits` measures on the model at hand what this changes.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from wscore import subset
from wsrun.models.hooks import check_layers, output_of
from wsrun.score.activation_cache import ActivationCache, CacheKey, CachePath
from wsrun.score.batching import Batch, Readout, batches, in_order, last_logits, read_in_chunks
from wsrun.score.decoder import Call, Decoder
from wsrun.score.layer_steps import (
    DOWN,
    EMBEDDED,
    OUT,
    OUTSIDE,
    READ,
    STEPS,
    UP,
    WRITE,
    Jitter,
    State,
    first_use,
    layer_parts,
    only_at,
    record_states,
    start_at,
)
from wsrun.score.trie_attention import Masks, running, trie_attention
from wsrun.steer.edits import Edit
from wsrun.steer.interventions import Intervention
from wsrun.steer.weights import steered, touched_parameters

INSIDE = 10  # times the outputs of all layers: room from which states inside them are kept, too
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest logit
HALF_TOLERANCE = 0.05
Calls = list[list[Call]]  # of every batch, of every layer


class Change(NamedTuple):
    """An intervention at one alpha, read once: dW, edits by layer, and a hash of each by name."""

    delta: Mapping[str, Tensor]
    edits: Mapping[int, Edit]
    alpha: float
    names: Mapping[str, str]


class CachedEngine:
    """Logits of a model under interventions; equal parts of two runs run once.

    tokens: of a batch. readout: where logits are read and what is kept, by default all logits at
    each last position. share_heads: common heads of sequences run once; rounding differs by about
    1e-6. last_token_only: the last layer runs only where logits are read. cache_bytes: for states;
    0 keeps none, None takes a quarter of a GPU's free memory, on a CPU 256 MiB or more.

    Raises NotImplementedError for a model whose layers it cannot run one by one, and whatever such
    a model raises; ask `choose_engine` for an engine that fits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: Sequence[Sequence[int]],
        tokens: int = 4096,
        share_heads: bool = True,
        last_token_only: bool = True,
        cache_bytes: int | None = None,
        readout: Readout | None = None,
    ) -> None:
        limit = _default_cache_bytes(model) if cache_bytes is None else cache_bytes
        self.model, self.cache = model, ActivationCache(limit)
        self.readout = readout or last_logits(sequences)
        self.decoder = Decoder(model)
        self.layers, self.config = self.decoder.layers, self.decoder.module.config
        self.parts = [layer_parts(layer) for layer in self.layers]
        self.steps = self._steps()
        self.last = len(self.layers) - 1 if last_token_only and self.parts[-1] else None
        plan = batches(sequences, tokens, share_heads, self.readout)
        self.batches = [batch.to_device(model.device) for batch in plan]
        self.masks: Masks = {}
        self.embedded, self.calls = self._embed()
        outputs = len(self.layers) * sum(h.nbytes for h in self.embedded)
        self.inside = limit >= INSIDE * outputs

    @torch.no_grad()
    def run(
        self,
        intervention: Intervention | None = None,
        alpha: float = 0.0,
        jitter: Jitter | None = None,
    ) -> Float[Tensor, "n c"]:
        """What the readout keeps of the next-token logits, fp32 on the CPU, a row a position."""
        change = self._change(intervention, alpha)
        by_layer: dict[int, list[str]] = {}
        for name in change.delta:
            by_layer.setdefault(self.steps[name] // STEPS, []).append(name)
        outside = by_layer.get(OUTSIDE // STEPS, [])
        path, calls = self._path(change), self.calls
        with trie_attention(self.config), _steered(self.model, change, outside):
            if jitter or outside:
                entered, calls = self._embed() if outside else (self.embedded, self.calls)
                start, states = EMBEDDED, [State(jitter(h) if jitter else h) for h in entered]
            else:
                start, states = self._resume(path)
            if start % STEPS == OUT:
                states = _edited(states, change, start // STEPS)
            for layer in range((start + 1) // STEPS, len(self.layers)):
                inner = start % STEPS if start // STEPS == layer else READ
                with _steered(self.model, change, by_layer.get(layer, [])):
                    states = self._layer(layer, inner, states, calls, None if jitter else path)
                states = _edited(states, change, layer)
            pairs = zip(self.batches, states, strict=True)
            read = ((b.order, self._read(s.hidden, b)) for b, s in pairs)
            return in_order(self.readout.n, read)

    def _change(self, intervention: Intervention | None, alpha: float) -> Change:
        """What an intervention does at alpha, layers counted from 0; nothing at alpha = 0."""
        if intervention is None or alpha == 0:
            return Change({}, {}, 0.0, {})
        delta, edits = intervention.delta(), intervention.edits()
        if any(name not in self.steps for name in delta):
            touched_parameters(self.model, delta)  # raises, and names them
        names = dict(intervention.fingerprint())
        for layer in edits:
            names[output_of(layer % len(self.layers))] = names[output_of(layer)]
        return Change(delta, check_layers(self.model, edits), alpha, names)

    def _path(self, change: Change) -> CachePath:
        """What is changed at which step."""
        by_step: dict[int, list[str]] = {}
        for name in change.delta:
            by_step.setdefault(self.steps[name], []).append(f"{name} {change.names[name]}")
        for layer in change.edits:
            by_step.setdefault(STEPS * layer + OUT, []).append(change.names[output_of(layer)])
        return tuple((s, f"{change.alpha!r}: {sorted(by_step[s])}") for s in sorted(by_step))

    def _steps(self) -> dict[str, int]:
        """parameter name -> the step at which it is first used."""
        steps, layer_of, prefix = {}, {}, f"{self.decoder.prefix}."
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            layer, _, inside = name.removeprefix(prefix).partition(".")
            steps[name] = OUTSIDE
            if name.startswith(prefix):
                steps[name] = STEPS * int(layer) + first_use(self.parts[int(layer)], inside)
            if layer_of.setdefault(id(parameter), steps[name] // STEPS) != steps[name] // STEPS:
                raise NotImplementedError(f"{name} is shared between layers")
        return steps

    def _resume(self, path: CachePath) -> tuple[int, list[State]]:
        """The deepest step whose state is at hand, and that state."""
        for step in range(STEPS * len(self.layers) - 1, EMBEDDED, -1):
            if step % STEPS != READ and (states := self.cache.get(_key(step, path))):
                return step, states
        return EMBEDDED, [State(h) for h in self.embedded]

    def _layer(
        self, layer: int, start: int, states: list[State], calls: Calls, path: CachePath | None
    ) -> list[State]:
        """All batches through a layer from one of its steps on; keeps the states on the way under
        `path`; None: keeps nothing."""
        record = path is not None and self.inside
        passed = [self._pass(layer, start, s, n, calls, record) for n, s in enumerate(states)]
        out = [State(hidden) for hidden, _ in passed]
        if path is not None and self.cache.limit > 0:
            for step in range(max(start + 1, WRITE), OUT) if record else ():
                inner = [seen.at(step) for _, seen in passed]
                if entering := [s for s in inner if s is not None]:
                    self._keep(STEPS * layer + step, path, entering)
            self._keep(STEPS * layer + OUT, path, out)
        return out

    def _keep(self, step: int, path: CachePath, states: list[State]) -> None:
        """Keep the states that enter a step; the base's have priority where the change sets in."""
        begin = path[0][0] if path else EMBEDDED
        priority = step == (begin - 1 if begin % STEPS == READ else begin)
        self.cache.put(_key(step, path), states, priority)

    def _pass(
        self, layer: int, start: int, state: State, n: int, calls: Calls, record: bool
    ) -> tuple[Tensor, State]:
        """One batch through a layer from a step on: what comes out, and what entered the steps."""
        batch, module, last = self.batches[n], self.layers[layer], layer == self.last
        parts, seen = self.parts[layer], dict(state._asdict())
        with ExitStack() as stack:
            if start > READ and parts:
                stack.enter_context(start_at(parts, start, state))
            if record and parts and not last:
                stack.enter_context(record_states(parts, seen))
            if last and parts:
                stack.enter_context(only_at(parts, batch.reads))
            stack.enter_context(running(batch, last, self.masks))
            out = module(state.hidden, **calls[n][layer])
        return out[0] if isinstance(out, tuple) else out, State(**seen)

    @torch.no_grad()
    def _embed(self) -> tuple[list[Tensor], Calls]:
        """What enters the first layer, and what the model passes to each layer, of every batch."""
        with trie_attention(self.config):
            pairs = [self.decoder.embed(b.ids, b.positions) for b in self.batches]
        return [hidden for hidden, _ in pairs], [calls for _, calls in pairs]

    def _read(self, hidden: Float[Tensor, "1 t d"], batch: Batch) -> Float[Tensor, "n c"]:
        """What the readout keeps of a batch's logits."""

        def logits(rows: slice) -> Float[Tensor, "_ v"]:
            at = batch.reads[rows]
            return self.decoder.head(hidden[:, at], batch.ids[at], batch.positions[at]).float()

        v = self.model.config.get_text_config().vocab_size
        return read_in_chunks(self.readout, batch.order, logits, v)

    @torch.no_grad()
    def step_error(self) -> float:
        """max |h' - h| / max(1, |h|) of the outputs h of all layers, and h' entered at each step.

        Of the first batch; a layer that cannot be entered at a step raises what it raises.
        """
        worst, state = 0.0, State(self.embedded[0])
        with trie_attention(self.config):
            for layer in range(len(self.layers)):
                whole, seen = self._pass(layer, READ, state, 0, self.calls, True)
                for step in (WRITE, UP, DOWN):
                    if start := seen.at(step):
                        again, _ = self._pass(layer, step, start, 0, self.calls, False)
                        worst = max(worst, _relative(again, whole))
                state = State(whole)
        return worst


def _edited(states: list[State], change: Change, layer: int) -> list[State]:
    """h' = edit(h, alpha) at the output of a layer."""
    if layer not in change.edits:
        return states
    return [State(change.edits[layer](s.hidden, change.alpha)) for s in states]


def _key(step: int, path: CachePath) -> CacheKey:
    return CacheKey(step, tuple(at for at in path if at[0] < step))


def _steered(
    model: nn.Module, change: Change, names: Sequence[str]
) -> AbstractContextManager[object]:
    return steered(model, subset(change.delta, names), change.alpha) if names else nullcontext()


def _default_cache_bytes(model: PreTrainedModel) -> int:
    """A quarter of a GPU's free memory; on a CPU 256 MiB, and a 32nd of the weights' size where
    they take more than 1 GiB."""
    if model.device.type == "cuda":
        return torch.cuda.mem_get_info(model.device)[0] // 4
    weights = sum(p.nbytes for p in model.parameters())
    return 2**28 if weights < 2**30 else weights // 32


@torch.no_grad()
def verify_logits(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """max |cached - own| / max(1, max |own|) of the last logits of a sequence and of a twin of it.

    The twin shares the first half of `ids`, so that a model which mixes neighbouring tokens by more
    than attention is seen. Each layer is entered at each of its steps, too. Raises ValueError above
    1e-5, in half precision above 0.05: the model does something that is not known here.
    """
    half = len(ids) // 2
    sequences = [list(ids), [*ids[:half], *reversed(ids[half:])]]
    engine = CachedEngine(model, sequences, 2 * len(ids), cache_bytes=0)
    cached, error = engine.run(), engine.step_error()
    for sequence, logits in zip(sequences, cached, strict=True):
        own_logits = model(
            input_ids=torch.tensor([sequence], device=model.device), use_cache=False
        ).logits
        error = max(error, _relative(logits, own_logits[0, -1].float().cpu()))
    if not error <= TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        raise ValueError(f"run layer by layer, its logits differ by {error:.1e} of the largest")
    return error


def _relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).abs().max() / reference.abs().max().clamp(min=1))

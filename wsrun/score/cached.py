"""The forward pass, opened at the steps where weights may change: unchanged steps run once.

Decoder layer l has five steps, and step 5 l + s comes before all later ones:

    s = 0, READ   q, k, v             of norm(h), and attention
    s = 1, WRITE  h = h + W_o heads
    s = 2, UP     gate, up            of norm(h)
    s = 3, DOWN   h = h + W_down gated
    s = 4, OUT    h = h + alpha v     where activations are steered

What a change does to the model is known by the steps it touches, so two changes that agree up to a
step agree in the state that enters it. States are kept (`States`), and a run starts at the deepest
one it may use: the base's before its first changed step, or one of a change that began alike. A run
goes layer by layer, all batches through one before the next, and a layer's weights are changed only
while it runs. The modules themselves are the model's own; layers that name their parts otherwise
than Llama, Qwen and Gemma do are entered as a whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from wscore import only, site
from wsrun.score.batching import Batch, Layout, Rows, batches
from wsrun.steer.weights import steered

READ, WRITE, UP, DOWN, OUT = range(5)
STEPS = 5
EMBEDDED = -1  # the step OUT of what comes before the layers
OUTSIDE = -2  # of weights outside the layers: an embedding, the last norm, the head
INSIDE = 10  # times the outputs of all layers: room from which states inside them are kept, too
ATTENTION = "wscore"  # the name of `_attend` among transformers' attention functions
Path = tuple[tuple[int, str], ...]  # (step, what is changed there), in order


class State(NamedTuple):
    """What enters a step of a layer, of one batch; each later step needs one thing more."""

    hidden: Float[Tensor, "1 t d"]
    heads: Tensor | None = None  # enters W_o
    attended: Tensor | None = None  # attention's part of the residual stream
    gated: Tensor | None = None  # enters W_down

    def at(self, step: int) -> "State":
        """Only what a start at this step needs."""
        return State(
            self.hidden,
            self.heads if step == WRITE else None,
            self.attended if step in (UP, DOWN) else None,
            self.gated if step == DOWN else None,
        )


class States:
    """States by (step, path), up to a number of bytes: those used again stay longest."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.kept: dict[tuple[int, Path], list[State]] = {}  # the longest unused first
        self.useful: set[tuple[int, Path]] = set()
        self.lost: set[int] = set()  # hashes of the outputs of layers that had to go

    def find(self, step: int, path: Path) -> list[State] | None:
        """The state of every batch at a step, None where it is not kept."""
        if found := self.kept.pop((step, path), None):
            self.kept[step, path] = found
            self.useful.add((step, path))
        return found

    def keep(self, step: int, path: Path, states: list[State], wanted: bool = False) -> None:
        """Keep them while there is room; only a wanted state makes room among useful ones.

        The output of a layer that had to go and is made again is wanted: the next change that
        begins alike needs it, too.
        """
        key, size = (step, path), _bytes(states)
        if key in self.kept or size > self.limit:
            return
        wanted = wanted or hash(key) in self.lost
        unused = [k for k in self.kept if k not in self.useful]
        for other in [*unused, *(k for k in self.kept if wanted and k in self.useful)]:
            if self.size + size <= self.limit:
                break
            self.size -= _bytes(self.kept.pop(other))
            self.useful.discard(other)
            self.lost |= {hash(other)} if other[0] % STEPS == OUT else set()
        if self.size + size <= self.limit:
            self.kept[key] = states
            self.size += size
            self.useful |= {key} if wanted else set()


def _bytes(states: list[State]) -> int:
    return sum(t.nbytes for state in states for t in state if t is not None)


class Change(NamedTuple):
    """What is done to a model: W' = W0 + alpha dW, h_l' = h_l + alpha v_l, and what to call it."""

    delta: Mapping[str, Tensor]
    vectors: Mapping[int, Tensor]
    alpha: float
    names: Mapping[str, str]  # of every parameter and "output of layer l": a hash of its change


BASE = Change({}, {}, 0.0, {})


class Opened:
    """A model under one batch plan: last-position logits of the base and of changes of it."""

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Batch],
        narrow: bool = True,
        limit: int | None = None,
    ) -> None:
        self.model, self.states = model, States(_room(model) if limit is None else limit)
        self.decoder = model.get_decoder()
        self.layers = cast(nn.ModuleList, self.decoder.layers)
        self.batches = [_moved(b, model.device) for b in batches]
        self.masks: dict[tuple, Tensor] = {}
        self.parts = [_parts(layer) for layer in self.layers]
        self.last = len(self.layers) - 1 if narrow and self.parts[-1] else None
        self.steps: dict[str, int] = {}
        self.first, self.calls = self._embed()
        outputs = len(self.layers) * sum(h.nbytes for h in self.first)
        self.inside = self.states.limit >= INSIDE * outputs

    @torch.no_grad()
    def run(
        self, change: Change = BASE, moved: Callable[[Tensor], Tensor] | None = None
    ) -> list[Float[Tensor, "_ _"]]:
        """Next-token logits at each sequence's last position, of every batch.

        `moved` replaces what enters the first layer.
        """
        marks = self._marks(change)
        own: dict[int, list[str]] = {}
        for name in change.delta:
            own.setdefault(self._step(name) // STEPS, []).append(name)
        outside = own.get(OUTSIDE // STEPS, [])
        with _attending(self.model), _steered(self.model, change, outside):
            if moved or outside:
                entered = self._embed()[0] if outside else self.first
                start, states = EMBEDDED, [State(moved(h) if moved else h) for h in entered]
            else:
                start, states = self._start(marks)
            if start % STEPS == OUT:
                states = _added(states, change, start // STEPS)
            for layer in range((start + 1) // STEPS, len(self.layers)):
                inner = start % STEPS if start // STEPS == layer else READ
                with _steered(self.model, change, own.get(layer, [])):
                    states = self._layer(layer, inner, states, None if moved else marks)
                states = _added(states, change, layer)
            return [self._head(s.hidden, b) for s, b in zip(states, self.batches, strict=True)]

    def _marks(self, change: Change) -> Path:
        """What is changed at which step."""
        found: dict[int, list[str]] = {}
        for name in change.delta:
            found.setdefault(self._step(name), []).append(f"{name} {change.names[name]}")
        for layer in change.vectors:
            found.setdefault(STEPS * layer + OUT, []).append(change.names[output_of(layer)])
        return tuple((s, f"{change.alpha!r}: {sorted(found[s])}") for s in sorted(found))

    def _step(self, name: str) -> int:
        """The step at which a parameter is first used."""
        if name not in self.steps:
            self.steps[name] = self._find_step(name)
        return self.steps[name]

    def _find_step(self, name: str) -> int:
        try:
            layer = site(name).layer
        except ValueError:
            return OUTSIDE
        inside = name.rpartition(f"layers.{layer}.")[2]
        early = inside.startswith(("input_layernorm.", "self_attn."))
        if self.parts[layer] is None or early:
            return STEPS * layer + (WRITE if inside.startswith("self_attn.o_proj.") else READ)
        late = inside.startswith(("mlp.down_proj.", "post_feedforward_layernorm."))
        return STEPS * layer + (DOWN if late else UP)

    def _start(self, marks: Path) -> tuple[int, list[State]]:
        """The deepest step whose state is at hand, and that state."""
        for step in range(STEPS * len(self.layers) - 1, EMBEDDED, -1):
            if step % STEPS != READ and (found := self.states.find(step, _before(marks, step))):
                return step, found
        return EMBEDDED, [State(h) for h in self.first]

    def _layer(
        self, layer: int, start: int, states: list[State], marks: Path | None
    ) -> list[State]:
        """All batches through a layer from one of its steps on; keeps the states on the way, whose
        path is in `marks`; None: keeps nothing."""
        watch = marks is not None and self.inside
        passed = [self._pass(layer, start, s, n, watch) for n, s in enumerate(states)]
        out = [State(hidden) for hidden, _ in passed]
        if marks is not None and self.states.limit > 0:
            inner = [s for _, s in passed]
            if watch and all(s.gated is not None for s in inner):
                for step in range(max(start + 1, WRITE), OUT):
                    self._keep(STEPS * layer + step, marks, [s.at(step) for s in inner])
            self._keep(STEPS * layer + OUT, marks, out)
        return out

    def _keep(self, step: int, marks: Path, states: list[State]) -> None:
        """Keep the states that enter a step; the base's is wanted where the change sets in."""
        path = _before(marks, step)
        begin = marks[0][0] if marks else EMBEDDED
        wanted = step == (begin - 1 if begin % STEPS == READ else begin)
        self.states.keep(step, path, states, wanted)

    def _pass(
        self, layer: int, start: int, state: State, n: int, watch: bool
    ) -> tuple[Tensor, State]:
        """One batch through a layer from a step on: what comes out, and what entered the steps."""
        batch, module, narrow = self.batches[n], self.layers[layer], layer == self.last
        parts, seen = self.parts[layer], dict(state._asdict())
        with ExitStack() as stack:
            if start > READ and parts:
                stack.enter_context(_given(parts, start, state))
            if watch and parts and not narrow:
                stack.enter_context(_watched(parts, seen))
            if narrow and parts:
                stack.enter_context(_narrowed(parts, batch.reads))
            token = _now.set((self, batch, narrow))
            stack.callback(_now.reset, token)
            out = module(state.hidden, **self.calls[n][layer])
        return out[0] if isinstance(out, tuple) else out, State(**seen)

    @torch.no_grad()
    def _embed(self) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
        """What enters the first layer, and what the model passes to each layer, of every batch."""
        entered, calls = [], []
        with _passing(self.decoder) as passed:
            for batch in self.batches:
                passed.clear()
                at = dict(input_ids=batch.ids[None], position_ids=batch.positions[None])
                self.decoder(**at, **self._unmasked())
                entered.append(passed[0]["hidden_states"])
                own = ("hidden_states", "attention_mask")  # who sees whom is in the layout
                known = [{k: v for k, v in call.items() if k not in own} for call in passed]
                calls.append([call | {"attention_mask": None} for call in known])
        return entered, calls

    def _head(self, hidden: Float[Tensor, "1 t d"], batch: Batch) -> Float[Tensor, "n v"]:
        """The model's own last norm and head, at the positions that are read."""
        at = batch.reads
        with _passing(self.decoder):
            logits = self.model(
                inputs_embeds=hidden[:, at],
                position_ids=batch.positions[at][None],
                **self._unmasked(),
            ).logits
        return logits[0].float().cpu()

    def _unmasked(self) -> dict[str, Any]:
        """Arguments that keep a model from building a mask: ours are in the layout."""
        config = self.model.config.get_text_config()
        none = torch.zeros(1, 1, 1, 1, dtype=self.model.dtype, device=self.model.device)
        kinds = set(getattr(config, "layer_types", None) or ())
        several = "sliding_attention" in kinds
        mask = dict.fromkeys(kinds | {"full_attention"}, none) if several else none
        return {"attention_mask": mask, "use_cache": False}

    def mask(self, rows: Rows, window: int | None, like: Tensor, repeat: int) -> Tensor:
        """[r, 1, repeat q, k], added to scores: 0 where a key is seen, else the lowest number."""
        key = (id(rows), window, repeat)
        if key not in self.masks:
            sees = (rows.back >= 0) & (rows.back < (window or torch.inf))
            mask = torch.zeros(sees.shape, dtype=like.dtype, device=like.device)
            mask.masked_fill_(~sees, torch.finfo(like.dtype).min)
            self.masks[key] = mask.repeat(1, repeat, 1)[:, None]
        return self.masks[key]


def output_of(layer: int) -> str:
    """What a vector that is added to the output of a layer is called in Change.names."""
    return f"output of layer {layer}"


def _added(states: list[State], change: Change, layer: int) -> list[State]:
    """h + alpha v at the output of a layer."""
    if layer not in change.vectors:
        return states
    v = change.alpha * change.vectors[layer]
    return [State(s.hidden + v.to(s.hidden)) for s in states]


def _before(marks: Path, step: int) -> Path:
    return tuple(mark for mark in marks if mark[0] < step)


def _steered(
    model: nn.Module, change: Change, names: Sequence[str]
) -> AbstractContextManager[object]:
    return steered(model, only(change.delta, names), change.alpha) if names else nullcontext()


def _room(model: PreTrainedModel) -> int:
    """Bytes for states: a quarter of a GPU's free memory; on a CPU 256 MiB, and a 32nd of the
    weights' size where they take more than 1 GiB."""
    if model.device.type == "cuda":
        return torch.cuda.mem_get_info(model.device)[0] // 4
    weights = sum(p.nbytes for p in model.parameters())
    return 2**28 if weights < 2**30 else weights // 32


class _Parts(NamedTuple):
    attention: nn.Module
    query: nn.Module
    write: nn.Module
    mlp: nn.Module
    down: nn.Module


def _parts(layer: nn.Module) -> _Parts | None:
    """The parts of a decoder layer by their names in Llama, Qwen and Gemma, None for others."""
    names = ("self_attn", "self_attn.q_proj", "self_attn.o_proj", "mlp", "mlp.down_proj")
    try:
        return _Parts(*(layer.get_submodule(name) for name in names))
    except AttributeError:
        return None


@contextmanager
def _forward(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules that do something else inside the block."""
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)


class _Pass(nn.Module):
    """In the place of a layer: hands on what enters it, and notes what it was called with."""

    def __init__(self, layer: nn.Module, calls: list[dict[str, Any]]) -> None:
        super().__init__()
        vars(self).update(layer=layer, calls=calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append(kwargs | {"hidden_states": hidden_states})
        return hidden_states


@contextmanager
def _passing(decoder: Any) -> Iterator[list[dict[str, Any]]]:
    """A decoder without its layers, hooks on them included; yields the calls they would get."""
    layers, calls = decoder.layers, []
    try:
        decoder.layers = nn.ModuleList(_Pass(layer, calls) for layer in layers)
        yield calls
    finally:
        decoder.layers = layers


def _given(parts: _Parts, start: int, state: State) -> AbstractContextManager[None]:
    """The parts of a layer before `start`, replaced by what is known of them."""
    write, attended, down, gated = parts.write, state.attended, parts.down, state.gated
    replaced: dict[nn.Module, Callable[..., Any]] = {
        parts.attention: lambda *args, **kwargs: (
            write(state.heads) if attended is None else attended,
            None,
        )
    }
    if start == DOWN:
        replaced[parts.mlp] = lambda *args, **kwargs: down(gated)
    return _forward(replaced)


@contextmanager
def _watched(parts: _Parts, seen: dict[str, Tensor | None]) -> Iterator[None]:
    """What enters W_o and W_down, and what attention gives, into `seen`."""
    handles = [
        parts.write.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0])),
        parts.attention.register_forward_hook(lambda m, args, out: seen.update(attended=out[0])),
        parts.down.register_forward_pre_hook(lambda m, args: seen.update(gated=args[0])),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _narrowed(parts: _Parts, reads: Tensor) -> Iterator[None]:
    """Queries, attention output and MLP only at the positions that are read.

    Keys and values are needed everywhere. Other positions leave the layer without its contribution.
    """
    tokens: list[int] = []

    def narrow(module: nn.Module, args: tuple) -> tuple:
        tokens.append(args[0].shape[1])
        return (args[0][:, reads], *args[1:])

    def widen(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        whole = output.new_zeros(1, tokens.pop(), output.shape[-1])
        whole[:, reads] = output
        return whole

    handles = []
    try:
        for part in (parts.query, parts.write, parts.mlp):
            handles.append(part.register_forward_pre_hook(narrow))
            handles.append(part.register_forward_hook(widen))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""

    def layout(at: Layout) -> Layout:
        return Layout(
            [Rows(*(t.to(device) for t in rows)) for rows in at.rows], at.place.to(device)
        )

    ids, positions, reads = (t.to(device) for t in (batch.ids, batch.positions, batch.reads))
    return Batch(batch.order, ids, positions, reads, layout(batch.every), layout(batch.last))


_now: ContextVar[tuple[Opened, Batch, bool]] = ContextVar("the batch in whose layer we are")


@contextmanager
def _attending(model: PreTrainedModel) -> Iterator[None]:
    """Attention by the layout of the batch, in place of the model's own."""
    config, before = model.config, model.config._attn_implementation
    try:
        config._attn_implementation = ATTENTION
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads t e"],
    key: Float[Tensor, "1 groups t e"],
    value: Float[Tensor, "1 groups t e"],
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "1 t heads e"], None]:
    """softmax(q k^T scaling) v of every row of the layout, heads of one group side by side."""
    if odd := [k for k in ("softcap", "s_aux") if more.get(k) is not None]:
        raise ValueError(f"score: attention with {odd[0]} is not supported; use another model")
    opened, batch, narrow = _now.get()
    layout = batch.last if narrow else batch.every
    heads, groups, tokens = query.shape[1], key.shape[1], query.shape[2]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # t heads e
    found = []
    for rows in layout.rows:
        n, width = rows.queries.shape
        asked = q[rows.queries].unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)
        attended = scaled_dot_product_attention(
            asked.reshape(n, groups, -1, q.shape[-1]),
            k[rows.keys].transpose(1, 2),
            v[rows.keys].transpose(1, 2),
            attn_mask=opened.mask(rows, sliding_window, q, heads // groups),
            scale=scaling,
        )
        own = attended.unflatten(2, (heads // groups, width)).permute(0, 3, 1, 2, 4)
        found.append(own.reshape(n * width, heads, -1))
    out = torch.cat(found)[layout.place]
    if narrow:
        out = out.new_zeros(tokens, *out.shape[1:]).index_copy_(0, batch.reads, out)
    return out[None], None


AttentionInterface.register(ATTENTION, _attend)


@torch.no_grad()
def prove(model: PreTrainedModel, ids: Sequence[int]) -> float:
    """max |opened - own| / max(1, max |own|) of the last logits of one sequence.

    Raises ValueError above 1e-4, in half precision above 0.05: the model's forward does something
    that is not known here.
    """
    (ours,) = Opened(model, batches([ids], 1), limit=0).run()
    own = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    theirs = own[0, -1].float().cpu()
    error = float((ours[0] - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    exact = model.dtype in (torch.float32, torch.float64)
    if not error <= (1e-4 if exact else 0.05):
        raise ValueError(
            f"score: run layer by layer, {type(model).__name__} gives logits {error:.1e} of the"
            " largest away from its own forward; this architecture is not supported"
        )
    return error

"""A decoder layer opened at the steps where weights may change, and entered at any of them.

Decoder layer l has five steps, and step 5 l + s comes before all later ones:

    s = 0, READ   q, k, v             of norm(h), and attention
    s = 1, WRITE  h = h + W_o heads
    s = 2, UP     gate, up            of norm(h)
    s = 3, DOWN   h = h + W_down gated
    s = 4, OUT    h = edit(h)         where layer outputs are edited

The modules are the model's own: a layer is entered at a later step by replacing the modules before
that step with what they gave. Only names are asked for, those of Llama, Qwen, Gemma, OLMo 2, Phi-3
and gpt-oss. A fused qkv_proj is part of READ; a block of experts has the step UP and no DOWN; a
layer that names its parts otherwise is entered as a whole.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

READ, WRITE, UP, DOWN, OUT = range(5)
STEPS = 5
EMBEDDED = -1  # the step OUT of what comes before the layers
OUTSIDE = -2  # of weights outside the layers: an embedding, the last norm, the head
FIRST_USE = {  # parameter names inside a layer -> step; every other parameter: READ
    "self_attn.o_proj.": WRITE,
    "post_attention_layernorm.": UP,
    "pre_feedforward_layernorm.": UP,
    "mlp.down_proj.": DOWN,
    "mlp.": UP,
    "post_feedforward_layernorm.": DOWN,
}
Jitter = Callable[[Tensor], Tensor]  # what enters the first layer -> what enters it instead


class State(NamedTuple):
    """What enters a step of a layer, of one batch; each later step needs one thing more."""

    hidden: Float[Tensor, "1 t d"]
    heads: Tensor | None = None  # enters W_o
    attended: Tensor | None = None  # attention's part of the residual stream
    gated: Tensor | None = None  # enters W_down

    def at(self, step: int) -> "State | None":
        """Only what a start at this step needs; None where the layer does not have the step."""
        heads = self.heads if step == WRITE else None
        attended = self.attended if step in (UP, DOWN) else None
        gated = self.gated if step == DOWN else None
        needed = {WRITE: [heads], UP: [attended], DOWN: [attended, gated]}.get(step, [])
        if any(x is None for x in needed):
            return None
        return State(self.hidden, heads, attended, gated)


class LayerParts(NamedTuple):
    """The modules of a layer that are entered, replaced or watched by name."""

    attention: nn.Module
    query: nn.Module | None  # None: fused with keys and values
    write: nn.Module
    mlp: nn.Module
    down: nn.Module | None  # None: a block of experts


def layer_parts(layer: nn.Module) -> LayerParts | None:
    """The parts of a decoder layer, None where it names them otherwise."""
    modules = dict(layer.named_modules())
    attention, write, mlp = (modules.get(n) for n in ("self_attn", "self_attn.o_proj", "mlp"))
    if attention is None or write is None or mlp is None:
        return None
    query, down = modules.get("self_attn.q_proj"), modules.get("mlp.down_proj")
    return LayerParts(attention, query, write, mlp, down)


def first_use(parts: LayerParts | None, name: str) -> int:
    """The step at which a parameter is first used, by its name inside the layer."""
    return next((s for head, s in FIRST_USE.items() if parts and name.startswith(head)), READ)


def start_at(parts: LayerParts, step: int, state: State) -> AbstractContextManager[None]:
    """The parts of a layer before `step` give what is known of them."""
    write, down = parts.write, parts.down
    heads, attended, gated = state.heads, state.attended, state.gated
    replaced: dict[nn.Module, Callable[..., Any]] = {
        parts.attention: lambda *args, **kwargs: (
            write(heads) if attended is None else attended,
            None,
        )
    }
    if step == DOWN and down is not None:
        replaced[parts.mlp] = lambda *args, **kwargs: down(gated)
    return _replaced_forward(replaced)


@contextmanager
def _replaced_forward(replaced: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules that do something else inside the block; one's own forward set before comes back."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            vars(module).update({"forward": forward} if forward else {})


@contextmanager
def record_states(parts: LayerParts, seen: dict[str, Tensor | None]) -> Iterator[None]:
    """What enters W_o and W_down, and what attention gives, into `seen`."""
    handles = [
        parts.write.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0])),
        parts.attention.register_forward_hook(lambda m, args, out: seen.update(attended=out[0])),
    ]
    if parts.down is not None:
        handles.append(
            parts.down.register_forward_pre_hook(lambda m, args: seen.update(gated=args[0]))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def only_at(parts: LayerParts, positions: Tensor) -> Iterator[None]:
    """Queries, attention output and MLP only at some positions; keys and values everywhere.

    Other positions leave the layer without its contribution.
    """
    tokens: list[int] = []

    def narrow(module: nn.Module, args: tuple) -> tuple:
        tokens.append(args[0].shape[1])
        return (args[0][:, positions], *args[1:])

    def widen(module: nn.Module, args: tuple, output: Any) -> Any:
        computed, *rest = output if isinstance(output, tuple) else (output,)
        whole = computed.new_zeros(1, tokens.pop(), computed.shape[-1])
        whole[:, positions] = computed
        return (whole, *rest) if rest else whole

    handles = []
    try:
        for part in (parts.query, parts.write, parts.mlp):
            if part is not None:
                handles.append(part.register_forward_pre_hook(narrow))
                handles.append(part.register_forward_hook(widen))
        yield
    finally:
        for handle in handles:
            handle.remove()

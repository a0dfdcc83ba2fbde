"""Sites (T7): which tensors of dW, by layer, block, side of the residual stream and projection.

Slices are those of all tensors that any delta of the run changes; a delta that changes none of a
slice's has an absent cut there.
"""

from collections.abc import Iterator

from wscore import (
    Where,
    layers,
    omit,
    projections,
    reads_residual,
    scale,
    select,
    site,
    writes_residual,
)
from wsrun.adapters.configs import LINEAR
from wsrun.lenses.base import Cut, LensInput

NOT_APPLICABLE = "not applicable: this family changes no such tensor"


def each_layer(at: LensInput) -> Iterator[Cut]:
    """layer_<n>, each layer."""
    for n in trained_layers(at):
        yield _slice(at, f"layer_{n}", layers(n, n + 1), "layers")


def thirds(at: LensInput) -> Iterator[Cut]:
    """early, middle, late: thirds of the layers that are changed at all."""
    changed_layers = trained_layers(at)
    cuts = [len(changed_layers) * i // 3 for i in range(4)]
    for name, lo, hi in zip(("early", "middle", "late"), cuts[:-1], cuts[1:], strict=True):
        if lo < hi:
            where = layers(changed_layers[lo], changed_layers[hi - 1] + 1)
            yield _slice(at, name, where, "thirds of the band")


def blocks(at: LensInput) -> Iterator[Cut]:
    """attention, mlp."""
    yield _slice(at, "attention", _in_block("self_attn"), "blocks")
    yield _slice(at, "mlp", _in_block("mlp"), "blocks")


def sides(at: LensInput) -> Iterator[Cut]:
    """writes: o and down, which write to the residual stream; reads: the others."""
    yield _slice(at, "writes", writes_residual, "sides of the residual stream")
    yield _slice(at, "reads", reads_residual, "sides of the residual stream")


def modules(at: LensInput) -> Iterator[Cut]:
    """q_proj to down_proj: each kind of linear map in all layers."""
    for m in LINEAR:
        yield _slice(at, m, projections(m), "modules")


def groups(at: LensInput) -> Iterator[Cut]:
    """qkv, up_gate: modules that read together; parts of no partition."""
    yield _slice(at, "qkv", projections("q_proj", "k_proj", "v_proj"))
    yield _slice(at, "up_gate", projections("up_proj", "gate_proj"))


def cells(at: LensInput) -> Iterator[Cut]:
    """cell_<layer>_<module>: one module of one layer, without controls."""
    for n in trained_layers(at):
        for m in LINEAR:
            where = layers(n, n + 1) & projections(m)
            yield _slice(at, f"cell_{n}_{m}", where, layer=n, module=m)


def trained_layers(at: LensInput) -> list[int]:
    """The layers in which some delta of the run changes something."""
    return sorted({site(name).layer for d in at.deltas.values() for name in d})


def _in_block(block: str) -> Where:
    return Where(lambda s: s.block == block)


def _slice(
    at: LensInput,
    name: str,
    where: Where,
    partition: str = "",
    layer: int | None = None,
    module: str | None = None,
) -> Cut:
    """kept = the tensors in the slice, rest = the others."""
    d, roles = at.dW, ("keep", "drop") if module else ("keep", "drop", "control")
    inside = [where(site(n)) for n in d]
    return Cut(
        name,
        lambda: select(d, where),
        lambda: scale(0.0, d) if all(inside) else omit(d, where),
        roles=roles,
        partition=partition,
        facts={"slice": name, "partition": partition, "layer": layer, "module": module},
        absent="" if any(inside) else NOT_APPLICABLE,
    )

"""Which check a function gets in tests: shapes where it names arrays, its types in any case.

jaxtyping's own wrapper binds the arguments and checks them twice, to tell shapes; of a function
without an array among its annotations beartype alone finds the same faults, at a tenth of the time.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping

with_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable) -> Callable[[Any], Any]:
    """The decorator of jaxtyping's import hook, for functions, descriptors and classes."""

    def decorate(fn: Any) -> Any:
        if inspect.isfunction(fn) and not any(map(may_tell_shapes, fn.__annotations__.values())):
            return typechecker(fn)
        if inspect.isclass(fn) and not dataclasses.is_dataclass(fn):
            return fn
        return with_shapes(fn, typechecker=typechecker)

    return decorate


def may_tell_shapes(hint: Any) -> bool:
    """Whether an array is in an annotation, or a name that is still to be found."""
    if not isinstance(hint, type | str) and hasattr(hint, "__forward_arg__"):
        return True
    if isinstance(hint, str) or inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return any(map(may_tell_shapes, parts))

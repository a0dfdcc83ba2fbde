"""Activations by the step that they enter and by what was changed before it, in bounded memory."""

from typing import NamedTuple

from wsrun.score.layer_steps import OUT, STEPS, State

CachePath = tuple[tuple[int, str], ...]  # (step, what is changed there), in order


class CacheKey(NamedTuple):
    """A step, and all that is changed before it: two interventions that agree there share it."""

    step: int
    path: CachePath


class ActivationCache:
    """The states of every batch by (step, path), up to `limit` bytes.

    States that were read again stay longest; among the others the oldest goes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.states: dict[CacheKey, list[State]] = {}  # the longest unused first
        self.reused: set[CacheKey] = set()
        self.evicted: set[int] = set()  # hashes of the outputs of layers that had to go

    def get(self, key: CacheKey) -> list[State] | None:
        """The state of every batch, None where it is not kept."""
        if states := self.states.pop(key, None):
            self.states[key] = states
            self.reused.add(key)
        return states

    def put(self, key: CacheKey, states: list[State], priority: bool = False) -> None:
        """Keep them while there is room; only states with priority make room among reused ones.

        The output of a layer that had to go and is made again has priority: the next intervention
        that begins alike needs it, too.
        """
        size = _bytes(states)
        if key in self.states or size > self.limit:
            return
        priority = priority or hash(key) in self.evicted
        unused = [k for k in self.states if k not in self.reused]
        for other in [*unused, *(k for k in self.states if priority and k in self.reused)]:
            if self.size + size <= self.limit:
                break
            self._evict(other)
        if self.size + size <= self.limit:
            self.states[key] = states
            self.size += size
            self.reused |= {key} if priority else set()

    def _evict(self, key: CacheKey) -> None:
        self.size -= _bytes(self.states.pop(key))
        self.reused.discard(key)
        self.evicted |= {hash(key)} if key.step % STEPS == OUT else set()


def _bytes(states: list[State]) -> int:
    return sum(t.nbytes for state in states for t in state if t is not None)

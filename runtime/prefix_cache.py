"""Which tokens a context's sequences hold, so that no prompt is computed twice.

A sequence keeps its keys and values after a reply. The next prompt takes the longest prefix
that any sequence has; over shared cells, what several have in common lies in the same ones. When
cells or sequences run out, the idle sequence goes that is the least to lose (its cost to
recompute per cell, times the chance that it is wanted again), and waits in host memory, as far as
that is granted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tierwise.runtime.context import Context

Ids = NDArray[np.int32]

_WORTH_SAVING = 64
"""Tokens: shorter prefixes are computed again sooner than they are kept in host memory."""

_WORTH_A_SEQUENCE = 16
"""Tokens: shorter ends, such as those of wrong drafts, are given up for what else follows."""

_ATTENTION_TOKENS = 4096
"""Position at which attention costs about as much as all the rest of a token's prefill."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence of the context: what it holds, and whether a request works on it.

    ``tokens`` is replaced and never changed, so that other threads may read it.
    """

    number: int
    tokens: Ids = field(default_factory=lambda: np.empty(0, np.int32))
    busy: bool = False
    last_used: float = 0.0
    uses: int = 0


@dataclass(slots=True, eq=False)
class _Snapshot:
    owner: object
    tokens: Ids
    state: NDArray[np.uint8]
    last_used: float
    uses: int


class HostCache:
    """Sequence states in host memory, of any number of contexts. Thread-safe.

    Args:
        limit_bytes: Most that all states may take together; may be changed at any time.
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: tuple[_Snapshot, ...] = ()  # replaced, never changed: readers take no lock

    @property
    def bytes(self) -> int:
        """What the kept states take, which may be given up at any time."""
        return sum(one.state.nbytes for one in self._kept)

    def add(self, owner: object, tokens: Ids, state: NDArray[np.uint8], uses: int) -> None:
        """Keeps a state, and gives up others for it where they are less to lose."""
        with self._lock:
            # What begins another kept text adds nothing.
            self._kept = tuple(
                one
                for one in self._kept
                if one.owner is not owner or shared(one.tokens, tokens) < one.tokens.size
            )
            self._kept += (_Snapshot(owner, tokens, state, time.monotonic(), uses),)
        self.shrink()

    def shrink(self) -> None:
        """Gives up states until the limit is kept."""
        with self._lock:
            while self._kept and self.bytes > self.limit_bytes:
                least = min(self._kept, key=lambda s: _worth(s.tokens.size, 0, s.uses, s.last_used))
                self._kept = tuple(one for one in self._kept if one is not least)

    def longest(self, owner: object, usable: Callable[[Ids], int]) -> int:
        """The most that is ``usable`` of a kept state of the owner, told from its tokens."""
        return max((usable(one.tokens) for one in self._kept if one.owner is owner), default=0)

    def take(self, owner: object, usable: Callable[[Ids], int]) -> _Snapshot | None:
        """Removes the owner's state of which the most is ``usable``, and returns it."""
        with self._lock:
            own = [one for one in self._kept if one.owner is owner]
            best = max(own, key=lambda one: usable(one.tokens), default=None)
            self._kept = tuple(one for one in self._kept if one is not best)
            return best

    def clear(self, owner: object = None) -> None:
        """Gives up all states; those of one owner, where one is named."""
        with self._lock:
            self._kept = tuple(s for s in self._kept if owner is not None and s.owner is not owner)


@dataclass(slots=True)
class CacheCounters:
    """What the cache has done since the tier was loaded."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    evictions: int = 0
    restores: int = 0
    """Prefixes that came back from host memory."""


class PrefixCache:
    """The sequences of one context. Used by the engine's thread, but for `longest`.

    Args:
        context: Whose sequences these are.
        host: Where cold sequences go.
    """

    def __init__(self, context: Context, host: HostCache) -> None:
        self._context = context
        self.host = host
        self.sequences = tuple(Sequence(number) for number in range(context.sequences))
        self.counters = CacheCounters()
        self.swaps = 0
        """Times that a prefix came back from host memory since this context was opened."""

    def longest(self, prompt: Ids) -> int:
        """Tokens at the start of ``prompt`` that need no prefill.

        At most all but the last: its logits are needed, and only a decode gives them.
        """
        wanted = prompt[:-1]
        held = max(self._usable(one, wanted) for one in self.sequences)
        return max(held, self.host.longest(self, partial(self._shared, wanted)))

    def open(self, prompt: Ids) -> tuple[Sequence, int] | None:
        """A sequence for a prompt, and how many of its tokens the sequence holds already.

        None where all sequences are busy.
        """
        wanted = prompt[:-1]
        best, held = self._best(wanted)
        if self.host.longest(self, partial(self._shared, wanted)) >= held + _WORTH_SAVING:
            self._restore(wanted)
            best, held = self._best(wanted)  # whether it could be had or not: others have gone
        continues = not best.busy and 0 < best.tokens.size <= held + _WORTH_A_SEQUENCE
        target = best if continues else self._free_sequence(keep=best if held else None)
        if target is None:
            if best.busy:
                return None
            target = best  # all others are busy: what follows the prefix has to go
            self._save(best, best.tokens.size - held)
        elif target is not best and held:
            self._context.share(best.number, target.number, held)
            best.uses += 1
            best.last_used = time.monotonic()
        if held < target.tokens.size and not self._context.truncate(held, target.number):
            held = 0
        target.tokens = prompt[:held]
        target.busy = True
        target.uses += 1
        return target, held

    def filled(self, sequence: Sequence, tokens: Ids) -> None:
        """Makes known what a busy sequence holds by now."""
        sequence.tokens = tokens

    def release(self, sequence: Sequence, tokens: Tokens[int]) -> None:
        """Ends the work on a sequence, which holds exactly these tokens."""
        sequence.tokens = np.array(tokens, np.int32)
        sequence.busy = False
        sequence.last_used = time.monotonic()

    def forget(self, sequence: Sequence) -> None:
        """Ends the work on a sequence of which nobody knows what it holds."""
        self._context.truncate(0, sequence.number)
        self.release(sequence, ())
        sequence.uses = 0

    def evict(self) -> bool:
        """Gives up the idle sequence that is the least to lose; False if none is idle."""
        idle = [one for one in self.sequences if one.tokens.size and not one.busy]
        if not idle:
            return False
        self._evict(min(idle, key=self._worth))
        return True

    def pack(self) -> list[NDArray[np.uint8] | None]:
        """What the sequences hold, for `unpack`."""
        return [
            self._context.save(one.number) if one.busy or one.tokens.size else None
            for one in self.sequences
        ]

    def unpack(
        self, context: Context, states: Iterable[NDArray[np.uint8] | None]
    ) -> list[Sequence]:
        """Goes on in another context; returns the busy sequences that it has no room for.

        Idle ones come after the busy, and are given up where there is no room.
        """
        old, self._context, self.swaps = self.sequences, context, 0
        new = range(len(old), context.sequences)
        self.sequences = (*old[: context.sequences], *map(Sequence, new))
        homeless = []
        pairs = zip(old, states, strict=True)
        for one, state in sorted(pairs, key=lambda pair: not pair[0].busy):
            if state is None:
                continue
            if one.number < context.sequences and context.restore(one.number, state):
                continue
            if one.busy:
                homeless.append(one)
            elif one.tokens.size >= _WORTH_SAVING:
                self._to_host(one, state)
            if one.number < context.sequences:
                self.forget(one)
        return homeless

    def _evict(self, sequence: Sequence) -> None:
        self._save(sequence, sequence.tokens.size - self._kept_by_others(sequence))
        self.counters.evictions += 1
        self.forget(sequence)

    def _save(self, sequence: Sequence, loss: int) -> None:
        """Puts an idle sequence into host memory, if losing so many tokens is worth that."""
        if loss >= _WORTH_SAVING and self.host.limit_bytes:
            self._to_host(sequence, self._context.save(sequence.number))

    def _to_host(self, sequence: Sequence, state: NDArray[np.uint8]) -> None:
        if state.nbytes <= self.host.limit_bytes:
            self.host.add(self, sequence.tokens, state, sequence.uses)

    def _best(self, wanted: Ids) -> tuple[Sequence, int]:
        """The sequence that holds the most of ``wanted``, and how much."""
        best = max(self.sequences, key=lambda one: (self._usable(one, wanted), not one.busy))
        return best, self._usable(best, wanted)

    def _usable(self, sequence: Sequence, wanted: Ids) -> int:
        if sequence.busy and not self._context.divisible:
            return 0
        return self._shared(wanted, sequence.tokens)

    def _shared(self, wanted: Ids, held: Ids) -> int:
        """How much of a state is a start of ``wanted``; of some models, all of it or nothing."""
        size = shared(held, wanted)
        return size if self._context.divisible or size == held.size else 0

    def _restore(self, wanted: Ids) -> None:
        """Brings the state that has the most of ``wanted`` back from host memory, if it fits."""
        snapshot = self.host.take(self, partial(self._shared, wanted))
        if snapshot is None:
            return
        while (target := self._free_sequence(keep=None)) is not None:
            if self._context.restore(target.number, snapshot.state):
                target.tokens, target.uses = snapshot.tokens, snapshot.uses
                target.last_used = time.monotonic()
                self.counters.restores += 1
                self.swaps += 1
                return
            if not self.evict():
                break
        self.host.add(self, snapshot.tokens, snapshot.state, snapshot.uses)

    def _free_sequence(self, keep: Sequence | None) -> Sequence | None:
        idle = [one for one in self.sequences if not one.busy and one is not keep]
        empty = next((one for one in idle if not one.tokens.size), None)
        if empty is not None or not idle:
            return empty
        victim = min(idle, key=self._worth)
        self._evict(victim)
        return victim

    def _worth(self, sequence: Sequence) -> float:
        kept = self._kept_by_others(sequence)
        return _worth(sequence.tokens.size, kept, sequence.uses, sequence.last_used)

    def _kept_by_others(self, sequence: Sequence) -> int:
        others = (one for one in self.sequences if one is not sequence)
        return max((shared(sequence.tokens, one.tokens) for one in others), default=0)


def _worth(size: int, kept: int, uses: int, last_used: float) -> float:
    """What is lost with a cell of a sequence of which others keep the first ``kept`` tokens."""
    if size <= kept:
        return 0.0
    cost = 1.0 + (size + kept) / 2 / _ATTENTION_TOKENS
    return cost * (1 + uses) / (1.0 + time.monotonic() - last_used)


def shared(held: Ids, wanted: Ids) -> int:
    """Length of the longest common prefix of two arrays of token ids."""
    size = min(held.size, wanted.size)
    if not size or held[0] != wanted[0]:
        return 0
    differs = held[:size] != wanted[:size]
    first = int(differs.argmax())
    return first if differs[first] else size


_LATEST = 4
_latest: tuple[tuple[tuple[int, ...], Ids], ...] = ()


def ids_of(prompt: tuple[int, ...]) -> Ids:
    """A prompt as an array, not to be written to. Those of the latest ones are kept: a decision
    asks every loaded tier about the same prompt, and thousands of numbers take longer to copy
    than to compare."""
    for known, ids in _latest:
        if known is prompt:
            return ids
    ids = np.array(prompt, np.int32)
    keep_ids(prompt, ids)
    return ids


def keep_ids(prompt: tuple[int, ...], ids: Ids) -> None:
    """What `ids_of` is to tell of a prompt. The array must not be written to any more."""
    global _latest
    ids.flags.writeable = False
    _latest = ((prompt, ids), *_latest[: _LATEST - 1])

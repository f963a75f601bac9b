"""Which tokens a context's sequences hold, so that no prompt is computed twice.

A sequence keeps its keys and values after a reply. The next prompt takes the longest prefix
that any sequence has; what several have in common lies in the same cells. When cells or
sequences run out, the idle sequence goes that is the least to lose (its cost to recompute per
cell, times the chance that it is wanted again), and waits in host memory, as far as that is
granted.
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
from tierwise.runtime.resources import gpu_names

Ids = NDArray[np.int32]

_WORTH_SAVING = 64
"""Tokens: shorter prefixes are computed again sooner than they are kept in host memory."""

_WORTH_A_SEQUENCE = 16
"""Tokens: shorter ends, such as those of wrong drafts, are given up for what else follows."""

_CROWD = 1024
"""Cells: llama.cpp's attention on a CPU looks at the mask of every cell in use, for every token
and head. Past more cells of others than these, a prompt is read sooner if they are moved away
for that time (a cell takes 4 µs there and back, and 0.2 µs of each token that is read)."""

_WORTH_MOVING = 32
"""Tokens to read at once: below, moving a crowd takes longer than reading past it."""

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
    aside: NDArray[np.uint8] | None = None
    """Its keys and values, while its cells are given up."""


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
        self._lent = 0

    @property
    def bytes(self) -> int:
        """What the kept states take, which may be given up at any time."""
        return sum(one.state.nbytes for one in self._kept)

    @property
    def room(self) -> int:
        """Bytes up to the limit, not below zero."""
        return max(0, self.limit_bytes - self.bytes - self._lent)

    def lend(self, size: int) -> bool:
        """Sets bytes of the limit aside for states that must not be lost; negative: gives back.

        Nothing is given up for them: False where they would not fit beside what is kept.
        """
        with self._lock:
            if size > self.room:
                return False
            self._lent += size
            return True

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
            while self._kept and self.bytes + self._lent > self.limit_bytes:
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


class PrefixCache:
    """The sequences of one context. Used by the engine's thread, but for `longest`.

    Args:
        context: Whose sequences these are.
        sequences: How many it has.
        host: Where cold sequences go.
    """

    def __init__(self, context: Context, sequences: int, host: HostCache) -> None:
        self._context = context
        self.host = host
        self.sequences = tuple(Sequence(number) for number in range(sequences))
        self.counters = CacheCounters()
        self._scans_cells = context.divisible and not gpu_names()

    def longest(self, prompt: Ids) -> int:
        """Tokens at the start of ``prompt`` that need no prefill.

        At most all but the last: its logits are needed, and only a decode gives them.
        """
        wanted = prompt[:-1]
        held = max(self._usable(one, wanted) for one in self.sequences)
        return max(held, self.host.longest(self, partial(self._shared, wanted)))

    def open(self, prompt: Ids) -> tuple[Sequence, int] | None:
        """A sequence for a prompt, and how many of its tokens the sequence holds already.

        None where all sequences are busy, or the best has made way and finds no room.
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
            target = best  # all others are busy: what follows the prefix is lost
        elif target is not best and held:
            if not self.bring_back(best):
                return None
            self._context.share(best.number, target.number, held)
            best.uses += 1
            best.last_used = time.monotonic()
        if held < target.tokens.size and not self._context.truncate(held, target.number):
            held = 0
        target.tokens = prompt[:held]
        target.busy = True
        target.uses += 1
        return target, held

    def clear_way(self, sequence: Sequence, unread: int) -> bool:
        """Leaves the cells to one sequence, if reading so many tokens is worth it.

        The busy ones wait in host memory until `bring_back`; those that share half of what they
        hold stay, as their copies would not be shared any more. False where none has made way.
        """
        if unread < _WORTH_MOVING or not self._scans_cells:
            return False
        others = [one for one in self.sequences if one is not sequence and one.tokens.size]
        away = any(one.aside is not None for one in others)
        present = [
            one
            for one in others
            if one.aside is None and 2 * self._kept_by_others(one) < one.tokens.size
        ]
        cells = sum(one.tokens.size for one in present)
        if cells < _CROWD:
            return away
        moved = cells + sequence.tokens.size
        if moved * self._context.model.kv_bytes_per_token > self.host.room:
            return False
        for one in present:
            if one.busy:
                self._put_aside(one)
            else:
                self._evict(one)
        if sequence.aside is None and sequence.tokens.size:  # its cells may lie behind the gap
            self._put_aside(sequence)
        return True

    def _put_aside(self, sequence: Sequence) -> None:
        state = self._context.save(sequence.number)
        if self.host.lend(state.nbytes):
            sequence.aside = state
            self._context.truncate(0, sequence.number)

    def _take_back(self, sequence: Sequence) -> NDArray[np.uint8] | None:
        state, sequence.aside = sequence.aside, None
        if state is not None:
            self.host.lend(-state.nbytes)
        return state

    def bring_back(self, sequence: Sequence) -> bool:
        """Puts a sequence back into cells; False where too few are free."""
        if sequence.aside is None:
            return True
        if not self._context.restore(sequence.number, sequence.aside):
            return False
        self._take_back(sequence)
        return True

    def filled(self, sequence: Sequence, tokens: Ids) -> None:
        """Makes known what a busy sequence holds by now."""
        sequence.tokens = tokens

    def release(self, sequence: Sequence, tokens: Tokens[int]) -> None:
        """Ends the work on a sequence, which holds exactly these tokens."""
        if (state := self._take_back(sequence)) is not None:
            if len(tokens) >= _WORTH_SAVING:
                self.host.add(self, np.array(tokens, np.int32), state, sequence.uses)
            tokens = ()
        sequence.tokens = np.array(tokens, np.int32)
        sequence.busy = False
        sequence.last_used = time.monotonic()

    def forget(self, sequence: Sequence) -> None:
        """Ends the work on a sequence of which nobody knows what it holds."""
        self._context.truncate(0, sequence.number)
        self._take_back(sequence)
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
        """The states of the busy sequences, for `unpack`. Idle ones go to host memory."""
        states: list[NDArray[np.uint8] | None] = []
        for one in self.sequences:
            state = self._take_back(one)
            if one.busy and state is None:
                state = self._context.save(one.number)
            states.append(state)
            if not one.busy and one.tokens.size:
                self._evict(one)
        return states

    def unpack(
        self, context: Context, states: Iterable[NDArray[np.uint8] | None]
    ) -> list[Sequence]:
        """Goes on in another context; returns the busy sequences that it has no room for."""
        self._context = context
        homeless = []
        for one, state in zip(self.sequences, states, strict=True):
            if state is not None and not context.restore(one.number, state):
                self.forget(one)
                homeless.append(one)
        return homeless

    def _evict(self, sequence: Sequence) -> None:
        kept = self._kept_by_others(sequence)
        if sequence.tokens.size - kept >= _WORTH_SAVING and self.host.limit_bytes:
            state = self._context.save(sequence.number)
            if state.nbytes <= self.host.limit_bytes:
                self.host.add(self, sequence.tokens, state, sequence.uses)
        self.counters.evictions += 1
        self.forget(sequence)

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

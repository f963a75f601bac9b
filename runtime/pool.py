"""Keeps the tiers of one family within memory: loads what is asked for, unloads what is idle.

Model files are memory-mapped, so the system could take their pages back at any time. The pool
counts weights in full all the same: a tier whose weights are read from disk at every token is
of no use. `probe` agrees, as it counts files that this process has mapped as taken.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import Self

from tierwise.runtime.chat import Call
from tierwise.runtime.context import KVType
from tierwise.runtime.errors import (
    CallTimeoutError,
    ConfigError,
    EngineClosedError,
    TierwiseError,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.fit import Fit, fit, rounded_context
from tierwise.runtime.lease import Entry, Lease, ResidentTier, megabytes
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.resources import ResourceProbe, Resources, probe
from tierwise.runtime.room import Room
from tierwise.runtime.vocabulary import Vocabulary, usable_file

log = logging.getLogger("tierwise.pool")

PREFIX_BYTES = 256 * 2**20
"""Most that prefixes take by default for which the contexts have no room."""

WAIT_S = 300.0


class Pool:
    """The loaded tiers of one family. Safe to use from many threads.

    One tier is loaded at a time; leases of tiers that are resident are given out meanwhile.

    Args:
        family: Whose tiers these are.
        memory_bytes: Cap on the sum of what resident tiers need and of the prefixes kept aside;
            None for whatever is available.
        probe: Says what the machine can spare.
        threads: For llama.cpp; None for the cores that ``probe`` finds.
        kv_type: How keys and values are stored; None for what each tier's record says.
        prefix_bytes: Most that prefixes may take for which the contexts have no room; contexts
            may grow by as much for conversations that take turns.
    """

    def __init__(
        self,
        family: Family,
        *,
        memory_bytes: int | None = None,
        probe: ResourceProbe = probe,
        threads: int | None = None,
        kv_type: KVType | None = None,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        for name, value in (("memory_bytes", memory_bytes), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}; leave it out for all")
        self.family = family
        self._probe = probe
        self.threads = threads or probe().threads
        self._changed = threading.Condition()  # guards all below; its lock is reentrant
        self._room = Room(
            family,
            self._changed,
            cap=memory_bytes,
            probe=probe,
            kv_type=kv_type,
            prefix_bytes=prefix_bytes,
        )
        self._loading = False
        self._closed = False
        self._vocabulary = Vocabulary(family)

    def acquire(
        self,
        tier: Tier | str,
        *,
        context_tokens: int,
        expected_tokens: int | None = None,
        memory_bytes: int | None = None,
        kv_type: KVType | None = None,
        timeout_s: float = WAIT_S,
    ) -> Lease:
        """Leases a tier with room for ``context_tokens``, loading it if need be.

        Idle tiers are unloaded to make room, the least recently used first. A resident tier
        whose context is too small gets a larger one; the calls that run on it go on.

        Args:
            tier: The tier, or its name.
            context_tokens: Prompt plus longest reply; rounded up by `rounded_context`.
            expected_tokens: Prompt plus likely reply. Where the leases of a tier expect more
                than its context holds, it grows as far as memory is granted; until then their
                calls wait for each other.
            memory_bytes: A cap for this call, where it is lower than the pool's own.
            kv_type: How keys and values shall be stored, as `fit` said: an idle tier with others is
                loaded anew, one in use goes on as it is. None for any that it has, or its own.
            timeout_s: How long to wait for loads by other threads.

        Raises:
            ContextOverflowError: The tier was not trained for so long a context.
            OutOfMemoryError: It does not fit, even with all idle tiers unloaded.
            FamilyIncompleteError: Its file is gone or has another size.
            ModelError: Its file cannot be loaded.
            CallTimeoutError: ``timeout_s`` passed.
            EngineClosedError: The pool was closed.
        """
        if isinstance(tier, str):
            tier = self.family.tier(tier)
        n_ctx = rounded_context(tier, context_tokens)
        expected = expected_tokens or context_tokens
        cap = self._room.lower_cap(memory_bytes)
        lease = self._wait(tier, n_ctx, expected, kv_type, timeout_s)
        if lease is not None:
            self._room.keep_to(tier, cap)
            self._widen(tier, cap)
            return lease
        try:
            return self._load(tier, n_ctx, expected, cap, kv_type)
        finally:
            with self._changed:
                self._loading = False
                self._changed.notify_all()

    def try_acquire(
        self,
        tier: Tier | str,
        *,
        context_tokens: int,
        expected_tokens: int | None = None,
        memory_bytes: int | None = None,
        kv_type: KVType | None = None,
    ) -> Lease | None:
        """`acquire`, if that needs neither loading nor waiting; else None.

        Raises:
            ContextOverflowError, EngineClosedError: As in `acquire`.
        """
        if isinstance(tier, str):
            tier = self.family.tier(tier)
        n_ctx = rounded_context(tier, context_tokens)
        with self._changed:
            self._check_open()
            lease = self._resident_lease(tier, n_ctx, expected_tokens or context_tokens, kv_type)
        if lease is not None:
            cap = self._room.lower_cap(memory_bytes)
            self._room.keep_to(tier, cap)
            self._widen(tier, cap)
        return lease

    def need_bytes(self, tier: Tier | str, context_tokens: int) -> int:
        """What the tier will take, its context rounded up as `acquire` does.

        Raises:
            ContextOverflowError, FamilyIncompleteError, ModelError: As in `acquire`.
        """
        if isinstance(tier, str):
            tier = self.family.tier(tier)
        n_ctx = rounded_context(tier, context_tokens)
        return self._room.predict(tier, n_ctx)

    def fit(
        self,
        tier: Tier | str,
        context_tokens: int,
        resources: Resources,
        memory_bytes: int | None = None,
        *,
        narrow: bool = True,
    ) -> Fit:
        """Whether `acquire` would succeed under ``resources``, how, and why, in English.

        Args:
            memory_bytes: A cap for this call, where it is lower than the pool's own.
            narrow: Whether keys and values may be stored in fewer bytes than the tier's own type
                takes, where only that fits.
        """
        cap = self._room.lower_cap(memory_bytes)
        if isinstance(tier, str):
            tier = self.family.tier(tier)
        try:
            n_ctx = rounded_context(tier, context_tokens)
            return fit(self._room, tier, n_ctx, resources, cap, narrow=narrow)
        except TierwiseError as error:
            return Fit(False, str(error), self._room.kv_type(tier))

    def resident(self) -> dict[str, ResidentTier]:
        """What is loaded, by name."""
        with self._changed:
            return {
                name: ResidentTier(
                    entry.tier.n_ctx, entry.bytes, len(entry.holders), entry.tier.kv_type
                )
                for name, entry in self._room.entries.items()
            }

    def cached_prefix(self, tier: Tier | str, prompt: tuple[int, ...]) -> int:
        """Tokens of ``prompt`` that the tier would not have to prefill; 0 if not resident."""
        with self._changed:
            entry = self._room.entries.get(tier if isinstance(tier, str) else tier.name)
            return entry.tier.engine.cached_prefix(prompt) if entry else 0

    def prompt(self, call: Call, *, taught_tools: bool = False) -> tuple[int, ...]:
        """The call's prompt in tokens, for tiers of the family that were taught tools or not.

        Loads no weights, only the vocabulary of the first tier that has a usable file.

        Raises:
            FamilyError, ModelError: No tier's vocabulary and chat template can be read.
            EngineClosedError: The pool was closed.
        """
        self._check_open()
        return self._vocabulary.prompt(call, taught_tools=taught_tools)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, as a prompt that holds it has them; no BOS is added.

        Raises:
            FamilyError, ModelError, EngineClosedError: As in `prompt`.
        """
        self._check_open()
        return self._vocabulary.tokenize(text)

    def close(self) -> None:
        """Unloads all tiers: idle ones now, leased ones with their last lease, because a tier
        must not vanish under a call that runs. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._loading)
            idle = [entry for entry in self._room.entries.values() if not entry.holders]
            for entry in self._room.entries.values():
                entry.orphaned = True
            self._room.entries.clear()
            self._room.host.limit_bytes = 0
        for entry in idle:
            entry.tier.close()
        self._vocabulary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(
        self, tier: Tier, n_ctx: int, expected: int, kv_type: KVType | None, timeout_s: float
    ) -> Lease | None:
        """A lease where the tier is resident; else None, and the one place of a loader."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check_open()
                lease = self._resident_lease(tier, n_ctx, expected, kv_type)
                if lease is not None:
                    return lease
                if not self._loading:
                    self._loading = True
                    return None
                left = deadline - time.monotonic()
                self._changed.wait(max(0.0, left))
                if left <= 0:
                    raise CallTimeoutError(
                        f"tier {tier.name!r} could not be had with {n_ctx:,} tokens of context in "
                        f"{timeout_s:g} s: another tier is being loaded. Allow more time."
                    )

    def _resident_lease(
        self, tier: Tier, n_ctx: int, expected: int, kv_type: KVType | None
    ) -> Lease | None:
        entry = self._room.entries.get(tier.name)
        if entry is not None and not entry.tier.engine.alive:
            log.warning("%s has failed and is loaded again", tier.name)
            del self._room.entries[tier.name]
            entry = None
        if entry is None or entry.tier.n_ctx < n_ctx:
            return None
        if kv_type is not None and kv_type != entry.tier.kv_type and not entry.holders:
            return None  # to be loaded anew
        return Lease(entry, self._changed, expected, load_s=None, events=())

    def _widen(self, tier: Tier, cap: int | None) -> None:
        """Lets the context of a tier grow to what its leases expect, if there is the memory.

        Does not wait for it: the engine does it between two steps.
        """
        with self._changed:
            entry = self._room.entries.get(tier.name)
            if entry is None or entry.widening or self._loading:
                return
            n_ctx, slots = self._room.size_wanted(entry, tier, cap)
            engine = entry.tier.engine
            if n_ctx <= engine.n_ctx and slots <= engine.slots:
                return
            entry.widening = True
            old = entry.bytes, entry.least_bytes
            now = self._room.needs(tier, n_ctx, slots, entry.tier.kv_type)
            entry.bytes, entry.least_bytes = now
            self._room.limit_host()
        done = engine.grow_soon(n_ctx, slots)

        def settle(future: Future[None]) -> None:
            with self._changed:
                entry.widening = False
                if future.exception() is not None:
                    entry.bytes, entry.least_bytes = old
                    log.warning("%s keeps its context: %s", entry.name, future.exception())
                self._changed.notify_all()
            if future.exception() is None:  # others may have come meanwhile
                self._widen(tier, cap)

        done.add_done_callback(settle)

    def _load(
        self, tier: Tier, n_ctx: int, expected: int, cap: int | None, kv_type: KVType | None
    ) -> Lease:
        """Makes room, and loads the tier or enlarges its context. One thread at a time."""
        with self._changed:
            own = self._room.entries.get(tier.name)
            if own is not None and (kv_type is None or own.holders):  # goes on as it is
                kv_type = own.tier.kv_type
                if own.tier.n_ctx >= n_ctx:  # somebody was quicker
                    return Lease(own, self._changed, expected, load_s=None, events=())
        kind = kv_type or self._room.kv_type(tier)
        need = self._room.predict(tier, n_ctx, 1, kind)
        events = self._room.make(tier, n_ctx, need, cap)
        with self._changed:
            own = self._room.entries.get(tier.name)
            other = own is not None and own.tier.kv_type != kind
            if own is not None and not other:  # held meanwhile, so that nobody unloads it
                own.holders.append(0)
            elif own is not None and not own.holders:
                del self._room.entries[tier.name]  # at once, lest somebody lease it
            elif own is not None:  # somebody uses it by now
                return self._load(tier, n_ctx, expected, cap, own.tier.kv_type)
        if own is not None and not other:
            return self._enlarge(own, tier, n_ctx, expected, cap, events)
        if own is not None:
            own.tier.close()
            events.append(f"unloaded {own} to keep keys and values as {kind}")
        loaded = LoadedTier(
            usable_file(self.family, tier),
            n_ctx=n_ctx,
            threads=self.threads,
            kv_type=kind,
            host=self._room.host,
            drafter=self._room.drafter(tier, self.threads),
        )
        events.append(f"loaded {tier.name} in {loaded.load_s:.1f} s ({megabytes(need)})")
        log.info(events[-1])
        entry = Entry(tier.name, loaded, bytes=need, least_bytes=need)
        with self._changed:
            if not self._closed:
                self._room.entries[tier.name] = entry
                self._room.pair()
                self._room.limit_host()
                took = loaded.load_s
                return Lease(entry, self._changed, expected, load_s=took, events=tuple(events))
        loaded.close()
        raise self._was_closed()

    def _enlarge(
        self, own: Entry, tier: Tier, n_ctx: int, expected: int, cap: int | None, events: list[str]
    ) -> Lease:
        """Of an entry that is held by a 0 among its holders, until the lease holds it."""
        engine = own.tier.engine
        try:
            slots = self._room.most_slots(own, tier, n_ctx, engine.slots, cap)
            need = self._room.needs(tier, n_ctx, slots, own.tier.kv_type)
            engine.grow_soon(n_ctx, slots).result()
            events.append(f"enlarged the context of {own.name} to {n_ctx:,} tokens")
            log.info(events[-1])
            with self._changed:
                self._check_open()
                own.bytes, own.least_bytes = need
                self._room.limit_host()
                return Lease(own, self._changed, expected, load_s=None, events=tuple(events))
        finally:
            with self._changed:
                own.holders.remove(0)

    def _check_open(self) -> None:
        if self._closed:
            raise self._was_closed()

    def _was_closed(self) -> EngineClosedError:
        folder = str(self.family.folder)
        return EngineClosedError(f"the pool of {folder!r} was closed; make a new one")

"""Keeps the tiers of one family within memory: loads what is asked for, unloads what is idle.

Model files are memory-mapped, so the system could take their pages back at any time. The pool
counts weights in full all the same: a tier whose weights are read from disk at every token is
of no use. `probe` agrees, as it counts files that this process has mapped as taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Self

from tierwise.runtime.chat import Call
from tierwise.runtime.errors import (
    CallTimeoutError,
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    OutOfMemoryError,
    TierwiseError,
)
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.lease import Entry, Lease, ResidentTier, megabytes
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.resources import ResourceProbe, Resources, probe
from tierwise.runtime.vocabulary import Vocabulary, usable_file

log = logging.getLogger("tierwise.pool")

SMALLEST_CONTEXT = 2048
"""Contexts are powers of two from here on, so that a growing conversation reopens its tier
(and loses the cached prefix) a few times only."""

MARGIN_SHARE, MARGIN_BYTES = 0.05, 64 * 2**20
"""Of the available memory, the smaller of these two is left alone: what the rest of the
process takes during a call."""

WAIT_S = 300.0


class Pool:
    """The loaded tiers of one family. Safe to use from many threads.

    One tier is loaded at a time; leases of tiers that are resident are given out meanwhile.

    Args:
        family: Whose tiers these are.
        memory_bytes: Cap on the sum of what resident tiers need; None for whatever is available.
        probe: Says what the machine can spare.
        threads: For llama.cpp; None for the cores that ``probe`` finds.
    """

    def __init__(
        self,
        family: Family,
        *,
        memory_bytes: int | None = None,
        probe: ResourceProbe = probe,
        threads: int | None = None,
    ) -> None:
        for name, value in (("memory_bytes", memory_bytes), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}; leave it out for all")
        self.family = family
        self._cap = memory_bytes
        self._probe = probe
        self._threads = threads or probe().threads
        self._entries: dict[str, Entry] = {}
        self._changed = threading.Condition()  # guards all below; its lock is reentrant
        self._loading = False
        self._closed = False
        self._vocabulary = Vocabulary(family)

    def acquire(
        self,
        tier: Tier | str,
        *,
        context_tokens: int,
        memory_bytes: int | None = None,
        timeout_s: float = WAIT_S,
    ) -> Lease:
        """Leases a tier with room for ``context_tokens``, loading it if need be.

        Idle tiers are unloaded to make room, the least recently used first. A resident tier
        whose context is too small is reopened once its leases have ended, so never wait for a
        larger context of a tier while holding a lease of it.

        Args:
            tier: The tier, or its name.
            context_tokens: Prompt plus reply; rounded up by `rounded_context`.
            memory_bytes: A cap for this call, where it is lower than the pool's own.
            timeout_s: How long to wait for leases and for loads by other threads.

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
        cap = self._lower_cap(memory_bytes)
        ready = self._wait(tier, n_ctx, timeout_s)
        if isinstance(ready, Lease):
            self._shrink(tier, cap)
            return ready
        try:
            return self._load(tier, n_ctx, cap)
        finally:
            with self._changed:
                self._loading = False
                if ready is not None:
                    ready.growers -= 1
                self._changed.notify_all()

    def need_bytes(self, tier: Tier | str, context_tokens: int) -> int:
        """What the tier will take, its context rounded up as `acquire` does.

        Raises:
            ContextOverflowError, FamilyIncompleteError, ModelError: As in `acquire`.
        """
        if isinstance(tier, str):
            tier = self.family.tier(tier)
        n_ctx = rounded_context(tier, context_tokens)
        return predict_memory(usable_file(self.family, tier), n_ctx).total_bytes

    def fits(
        self,
        tier: Tier | str,
        context_tokens: int,
        resources: Resources,
        memory_bytes: int | None = None,
    ) -> tuple[bool, str]:
        """Whether `acquire` would succeed under ``resources``, and why, in English.

        Memory that unloading idle tiers would free counts as free.
        """
        cap = self._lower_cap(memory_bytes)
        if isinstance(tier, str):
            tier = self.family.tier(tier)
        try:
            n_ctx, need = (
                rounded_context(tier, context_tokens),
                self.need_bytes(tier, context_tokens),
            )
        except TierwiseError as error:
            return False, str(error)
        with self._changed:
            own = self._entries.get(tier.name)
            if own is not None and own.tier.n_ctx >= n_ctx:
                if cap is not None and own.bytes > cap:
                    return False, f"{tier.name} holds {megabytes(own.bytes)} of {megabytes(cap)}"
                return True, f"{tier.name} is loaded with {own.tier.n_ctx:,} tokens of context"
            freed = {entry for entry in self._entries.values() if not entry.holders}
            if own is not None:
                freed.add(own)
            now, most = self._room(resources, (), cap), self._room(resources, freed, cap)
        if need <= now:
            return True, f"{tier.name} needs {megabytes(need)} of {megabytes(now)} free"
        if need <= most:
            names = ", ".join(sorted(entry.name for entry in freed))
            return True, f"{tier.name} needs {megabytes(need)}, free once {names} is unloaded"
        return False, f"{tier.name} needs {megabytes(need)}, but only {megabytes(most)} can be had"

    def resident(self) -> dict[str, ResidentTier]:
        """What is loaded, by name."""
        with self._changed:
            return {
                name: ResidentTier(entry.tier.n_ctx, entry.bytes, len(entry.holders))
                for name, entry in self._entries.items()
            }

    def cached_prefix(self, tier: Tier | str, prompt: tuple[int, ...]) -> int:
        """Tokens of ``prompt`` that the tier would not have to prefill; 0 if not resident."""
        with self._changed:
            entry = self._entries.get(tier if isinstance(tier, str) else tier.name)
            return entry.tier.engine.cached_prefix(prompt) if entry else 0

    def prompt(self, call: Call) -> tuple[int, ...]:
        """The call's prompt in tokens, the same for all tiers of the family.

        Loads no weights, only the vocabulary of the first tier that has a usable file.

        Raises:
            FamilyError, ModelError: No tier's vocabulary and chat template can be read.
            EngineClosedError: The pool was closed.
        """
        self._check_open()
        return self._vocabulary.prompt(call)

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
            idle = [entry for entry in self._entries.values() if not entry.holders]
            for entry in self._entries.values():
                entry.orphaned = True
            self._entries.clear()
        for entry in idle:
            entry.tier.close()
        self._vocabulary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, tier: Tier, n_ctx: int, timeout_s: float) -> Lease | Entry | None:
        """A lease where the tier is resident; else claims the one place of a loader.

        Returns the entry to be reopened, if there is one. Its ``growers`` keep other threads
        from leasing it meanwhile, lest a busy tier never be idle long enough to grow.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check_open()
                entry = self._entries.get(tier.name)
                if entry is not None and entry.tier.n_ctx >= n_ctx:
                    # Who holds a lease already may go on: its release could wait for this call.
                    if not entry.growers or threading.get_ident() in entry.holders:
                        return Lease(entry, self._changed, load_s=None, events=())
                    growing = None
                elif self._loading or (entry is not None and entry.holders):
                    growing = entry
                else:
                    self._loading = True
                    if entry is not None:
                        entry.growers += 1
                    return entry
                if growing is not None:
                    growing.growers += 1
                left = deadline - time.monotonic()
                self._changed.wait(max(0.0, left))
                if growing is not None:
                    growing.growers -= 1
                if left <= 0:
                    self._changed.notify_all()
                    raise CallTimeoutError(
                        f"tier {tier.name!r} could not be had with {n_ctx:,} tokens of context in "
                        f"{timeout_s:g} s: it is in use, or another tier is being loaded. Allow "
                        "more time, or release leases of it before asking for a larger context."
                    )

    def _lower_cap(self, memory_bytes: int | None) -> int | None:
        return min((c for c in (self._cap, memory_bytes) if c is not None), default=None)

    def _shrink(self, tier: Tier, cap: int | None) -> None:
        """Unloads other idle tiers while all together take more than ``cap``."""
        while cap is not None:
            with self._changed:
                total = sum(entry.bytes for entry in self._entries.values())
                idle = [e for e in self._entries.values() if not e.holders and e.name != tier.name]
                if total <= cap or not idle:
                    return
                victim = min(idle, key=lambda entry: (entry.last_used, -entry.bytes))
                del self._entries[victim.name]
            victim.tier.close()
            log.info("unloaded %s to stay within %s", victim, megabytes(cap))

    def _load(self, tier: Tier, n_ctx: int, cap: int | None) -> Lease:
        """Makes room and loads. Only one thread is in here at a time."""
        need = self.need_bytes(tier, n_ctx)
        events = self._make_room(tier, n_ctx, need, cap)
        loaded = LoadedTier(usable_file(self.family, tier), n_ctx=n_ctx, threads=self._threads)
        events.append(f"loaded {tier.name} in {loaded.load_s:.1f} s ({megabytes(need)})")
        log.info(events[-1])
        entry = Entry(tier.name, loaded, need)
        with self._changed:
            if not self._closed:
                self._entries[tier.name] = entry
                return Lease(entry, self._changed, load_s=loaded.load_s, events=tuple(events))
        loaded.close()
        raise self._was_closed()

    def _make_room(self, tier: Tier, n_ctx: int, need: int, cap: int | None) -> list[str]:
        """Unloads idle tiers until ``need`` bytes fit; none if they cannot be made to fit.

        What a tier was predicted to need is taken as freed, without asking the probe again:
        Linux keeps freed pages in per-processor lists (vm.percpu_pagelist_high_fraction), and
        up to 150 MB were seen to become "available" seconds after they were.
        """
        events: list[str] = []
        resources = self._probe()
        while True:
            with self._changed:
                idle = [entry for entry in self._entries.values() if not entry.holders]
                if need > self._room(resources, idle, cap):
                    raise self._out_of_memory(tier, n_ctx, need, resources, cap)
                own = self._entries.get(tier.name)
                if own is None and need <= self._room(resources, (), cap):
                    return events
                victim = own or min(idle, key=lambda entry: (entry.last_used, -entry.bytes))
                del self._entries[victim.name]
            victim.tier.close()
            resources = replace(
                resources,
                available_bytes=resources.available_bytes + victim.bytes,
                gpu_free_bytes=resources.gpu_free_bytes + victim.bytes,
            )
            why = "to make room" if own is None else f"to reopen it with {n_ctx:,} tokens"
            events.append(f"unloaded {victim} {why}")
            log.info(events[-1])

    def _room(self, resources: Resources, freed: Collection[Entry], cap: int | None) -> int:
        """Bytes that a new tier may take once the entries ``freed`` are unloaded.

        With a GPU, llama.cpp puts all layers on it; the host must then have the room as well,
        which is more careful than need be (it maps the file while it copies).
        """
        free = resources.available_bytes
        if resources.gpu_total_bytes:
            free = min(free, resources.gpu_free_bytes)
        free -= int(min(free * MARGIN_SHARE, MARGIN_BYTES))
        free += sum(entry.bytes for entry in freed)
        if cap is None:
            return free
        return min(free, cap - sum(e.bytes for e in self._entries.values() if e not in freed))

    def _out_of_memory(
        self, tier: Tier, n_ctx: int, need: int, resources: Resources, cap: int | None
    ) -> OutOfMemoryError:
        parts = [f"{megabytes(resources.available_bytes)} of memory available now"]
        if resources.gpu_total_bytes:
            parts.append(f"{megabytes(resources.gpu_free_bytes)} of GPU memory free")
        if cap is not None:
            parts.append(f"a cap of {megabytes(cap)} for all tiers (memory_bytes)")
        busy = [f"{entry}" for entry in self._entries.values() if entry.holders]
        idle = [f"{entry}" for entry in self._entries.values() if not entry.holders]
        return OutOfMemoryError(
            f"tier {tier.name!r} needs {megabytes(need)} with {n_ctx:,} tokens of context; there "
            f"is {', '.join(parts)}. Resident and in use: {', '.join(busy) or 'none'}; resident "
            f"and idle: {', '.join(idle) or 'none'}. Use a smaller tier or context, raise the "
            "memory budget, close other programs, or wait for the calls that run."
        )

    def _check_open(self) -> None:
        if self._closed:
            raise self._was_closed()

    def _was_closed(self) -> EngineClosedError:
        folder = str(self.family.folder)
        return EngineClosedError(f"the pool of {folder!r} was closed; make a new one")


def rounded_context(tier: Tier, context_tokens: int) -> int:
    """The context that a pool opens: the next power of two from 2048, at most the tier's own.

    Raises:
        ContextOverflowError: More than the tier was trained for.
    """
    if context_tokens > tier.context_tokens:
        raise ContextOverflowError(
            f"{context_tokens:,} tokens of context were asked for, but tier {tier.name!r} was "
            f"trained for {tier.context_tokens:,}. Shorten the conversation, lower max_tokens, or "
            "use a tier with a longer context."
        )
    power = 1 << max(0, context_tokens - 1).bit_length()
    return min(max(SMALLEST_CONTEXT, power), tier.context_tokens)

"""The memory that a pool's tiers share: what is free, what a tier will need, and who must go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from heapq import nlargest
from pathlib import Path

from tierwise.runtime.context import KVType
from tierwise.runtime.drafting import Drafter
from tierwise.runtime.errors import OutOfMemoryError, TierwiseError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.lease import Entry, megabytes
from tierwise.runtime.memory import known_memory
from tierwise.runtime.prefix_cache import HostCache
from tierwise.runtime.profile import load_profile
from tierwise.runtime.resources import ResourceProbe, Resources
from tierwise.runtime.scheduler import REPLIES
from tierwise.runtime.vocabulary import status_of

log = logging.getLogger("tierwise.pool")

MARGIN_SHARE, MARGIN_BYTES = 0.05, 64 * 2**20
"""Of the available memory, the smaller of these two is left alone: what the rest of the
process takes during a call."""


class Room:
    """The resident tiers of a pool by name, and the memory around them.

    Args:
        family: Whose tiers these are.
        changed: The pool's condition, which guards ``entries``; its lock is reentrant.
        cap: Most bytes that tiers and kept prefixes may take; None for what is available.
        probe: Says what the machine can spare.
        kv_type: How keys and values are stored; None for what each tier's record says.
        prefix_bytes: Most that kept prefixes may take.
    """

    def __init__(
        self,
        family: Family,
        changed: threading.Condition,
        *,
        cap: int | None,
        probe: ResourceProbe,
        kv_type: KVType | None,
        prefix_bytes: int,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.host = HostCache(prefix_bytes)
        self._family = family
        self.changed = changed
        self._cap = cap
        self._probe = probe
        self._kv_type = kv_type
        self._prefix_bytes = prefix_bytes
        self._rigid: set[str] = set()
        self._paths: dict[str, Path] = {}

    def predict(self, tier: Tier, n_ctx: int, slots: int = 1, kv_type: KVType | None = None) -> int:
        path = self._paths.get(tier.file)
        if path is None:
            path = self._paths.setdefault(tier.file, self._family.path(tier))
        kind = kv_type or self.kv_type(tier)
        status = status_of(path, tier)  # once: this is asked for every tier at every decision
        return known_memory(path, status, n_ctx, kv_type=kind, slots=slots).total_bytes

    def needs(self, tier: Tier, n_ctx: int, slots: int, kv_type: KVType) -> tuple[int, int]:
        """An entry's `bytes` and `least_bytes`."""
        least = self.predict(tier, n_ctx, 1, kv_type)
        return (least if slots == 1 else self.predict(tier, n_ctx, slots, kv_type)), least

    def kv_type(self, tier: Tier) -> KVType:
        """How the tier's keys and values are stored, where there is the memory."""
        return self._kv_type or tier.kv_type

    def narrower(self, tier: Tier) -> KVType | None:
        """How they may be stored where there is not; None if no other way is known, or allowed."""
        if self._kv_type is not None or tier.kv_type != "f16" or tier.name in self._rigid:
            return None
        return "q8_0"

    def keep_wide(self, tier: Tier) -> None:
        """From now on the tier's keys and values are stored in no other way: its heads do not
        allow it."""
        self._rigid.add(tier.name)

    def drafter(self, tier: Tier, threads: int) -> Drafter:
        """What drafts for the tier, as its profile says that it pays."""
        profile = load_profile(tier.sha256)
        if profile is None or profile.threads != threads:
            return Drafter()
        return Drafter(profile.step_s, profile.drafting)

    def pair(self) -> None:
        """Lets resident tiers draft for others, where that was measured to pay."""
        tiers = [(self._family.tier(name), entry.tier) for name, entry in self.entries.items()]
        engines = {tier.sha256: loaded.engine for tier, loaded in tiers}
        for engine in engines.values():
            gains = {sha: gain for sha, gain in engine.drafter.gains.items() if sha in engines}
            if gains:
                engine.draft_with(engines[max(gains, key=gains.__getitem__)])

    def lower_cap(self, memory_bytes: int | None) -> int | None:
        return min((c for c in (self._cap, memory_bytes) if c is not None), default=None)

    def free(self, resources: Resources, freed: Collection[Entry], cap: int | None) -> int:
        """Bytes that a new tier may take once the entries ``freed`` are unloaded.

        Layers that a GPU has no room for stay on the host, so that GPU memory is no limit; what
        it takes is counted as if the host held it, which is more careful than need be.
        """
        free = resources.available_bytes
        free -= int(min(free * MARGIN_SHARE, MARGIN_BYTES))
        free += sum(entry.bytes for entry in freed) + self.host.bytes  # given up when wanted
        if cap is None:
            return free
        return min(free, cap - sum(e.bytes for e in self.entries.values() if e not in freed))

    def spare(self, freed: Collection[Entry]) -> int:
        """Bytes that entries other than ``freed`` could give without being unloaded."""
        return sum(e.spare_bytes for e in self.entries.values() if e not in freed)

    def make(self, tier: Tier, n_ctx: int, need: int, cap: int | None) -> list[str]:
        """Takes slots from idle tiers, unloads idle tiers, and takes slots from busy ones, until
        ``need`` bytes fit; none of it if they cannot be made to fit.

        What a tier was predicted to need is taken as freed, without asking the probe again:
        Linux keeps freed pages in per-processor lists (vm.percpu_pagelist_high_fraction), and
        up to 150 MB were seen to become "available" seconds after they were.
        """
        events: list[str] = []
        resources = self._probe()
        while True:
            with self.changed:
                own = self.entries.get(tier.name)
                extra = need - (own.bytes if own is not None else 0)
                idle = [e for e in self.entries.values() if not e.holders and e is not own]
                kept = idle if own is None else [*idle, own]
                if extra > self.free(resources, idle, cap) + self.spare(kept):
                    raise self._out_of_memory(tier, n_ctx, need, resources, cap)
                if extra <= self.free(resources, (), cap):
                    if extra > self.free(resources, (), None) - self.host.bytes:
                        self.host.clear()
                    return events
                busy = [e for e in self.entries.values() if e is not own and e.spare_bytes]
                victim = min(idle or busy, key=_first_to_go)
                freed, finish = self._take(victim)
            held = self.host.bytes
            events += finish()
            freed += held - self.host.bytes  # prefixes that went with it, or came out of it
            resources = replace(resources, available_bytes=resources.available_bytes + freed)

    def _take(self, victim: Entry) -> tuple[int, Callable[[], list[str]]]:
        """Takes its slots from a tier, or unloads it if it has but one, as far as the books go.

        Returns:
            The bytes, and what does it: to be called once the lock is released.
        """
        freed, engine = victim.spare_bytes, victim.tier.engine
        if freed:
            victim.bytes = victim.least_bytes

            def shrink() -> list[str]:
                engine.grow_soon(engine.n_ctx, 1).result()
                return []

            return freed, shrink
        event = f"unloaded {victim} to make room"
        del self.entries[victim.name]  # at once, lest somebody lease it

        def unload() -> list[str]:
            victim.tier.close()
            log.info(event)
            return [event]

        return victim.bytes, unload

    def size_wanted(self, entry: Entry, tier: Tier, cap: int | None) -> tuple[int, int]:
        """Tokens and slots that the leases of an entry could use, as far as there is memory.

        Where calls are kept apart, a slot for each; and one for each of the conversations that
        take turns, if those take no more than is granted to prefixes. Else as many tokens as the
        calls expect together.
        """
        engine = entry.tier.engine
        if engine.apart:
            slots = power_of_two(min(len(entry.holders), REPLIES))
            more = engine.wanted_slots
            if more > max(slots, engine.slots):
                kind = entry.tier.kv_type
                taken = self.predict(tier, engine.n_ctx, more, kind) - entry.least_bytes
                slots = more if taken <= self._prefix_bytes else slots
            if slots > engine.slots:
                slots = self.most_slots(entry, tier, engine.n_ctx, slots, cap)
            return engine.n_ctx, slots
        n_ctx = power_of_two(sum(nlargest(REPLIES, entry.holders)))
        if n_ctx > engine.n_ctx:
            kind = entry.tier.kv_type
            fits = self._fits(entry, cap, lambda n_ctx: self.predict(tier, n_ctx, 1, kind))
            n_ctx = _halved(n_ctx, engine.n_ctx, fits)
        return n_ctx, engine.slots

    def most_slots(self, entry: Entry, tier: Tier, n_ctx: int, wanted: int, cap: int | None) -> int:
        """The slots of ``n_ctx`` tokens, ``wanted`` halved as often as need be, that an entry may
        have; one at least."""
        kind = entry.tier.kv_type
        fits = self._fits(entry, cap, lambda slots: self.predict(tier, n_ctx, slots, kind))
        return _halved(wanted, 1, fits)

    def _fits(
        self, entry: Entry, cap: int | None, predict: Callable[[int], int]
    ) -> Callable[[int], bool]:
        free = self.free(self._probe(), (), cap)
        return lambda size: predict(size) - entry.bytes <= free

    def keep_to(self, tier: Tier, cap: int | None) -> None:
        """Takes slots from tiers and unloads other idle ones, while all together take more than
        ``cap``."""
        while cap is not None:
            with self.changed:
                total = sum(entry.bytes for entry in self.entries.values())
                rest = [
                    e
                    for e in self.entries.values()
                    if e.spare_bytes or (not e.holders and e.name != tier.name)
                ]
                if total <= cap or not rest:
                    return
                _, finish = self._take(min(rest, key=_first_to_go))
            finish()

    def limit_host(self) -> None:
        """Holds the prefixes kept aside to what the tiers leave of the cap."""
        limit = self._prefix_bytes
        if self._cap is not None:
            limit = min(limit, max(0, self._cap - sum(e.bytes for e in self.entries.values())))
        self.host.limit_bytes = limit
        self.host.shrink()

    def _out_of_memory(
        self, tier: Tier, n_ctx: int, need: int, resources: Resources, cap: int | None
    ) -> OutOfMemoryError:
        parts = [f"{megabytes(resources.available_bytes)} of memory available now"]
        if cap is not None:
            parts.append(f"a cap of {megabytes(cap)} for all tiers (memory_bytes)")
        busy = [f"{entry}" for entry in self.entries.values() if entry.holders]
        idle = [f"{entry}" for entry in self.entries.values() if not entry.holders]
        return OutOfMemoryError(
            f"tier {tier.name!r} needs {megabytes(need)} with {n_ctx:,} tokens of context; there "
            f"is {', '.join(parts)}. Resident and in use: {', '.join(busy) or 'none'}; resident "
            f"and idle: {', '.join(idle) or 'none'}. Use a smaller tier or context, raise the "
            "memory budget, close other programs, or wait for the calls that run."
        )


def _first_to_go(entry: Entry) -> tuple[object, ...]:
    """By this order tiers lose memory: first slots, then all; idle ones first, the least recently
    used first, and of those the largest."""
    return not entry.spare_bytes, bool(entry.holders), entry.last_used, -entry.bytes


def power_of_two(count: int) -> int:
    """The next one from ``count`` on."""
    return 1 << max(0, count - 1).bit_length()


def _halved(wanted: int, least: int, fits: Callable[[int], bool]) -> int:
    try:
        while wanted > least and not fits(wanted):
            wanted //= 2
    except TierwiseError:  # the file has gone since it was loaded
        return least
    return max(wanted, least)

"""The memory that a pool's tiers share: what is free, what a tier will need, and who must go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from dataclasses import replace

from tierwise.runtime.context import KVType
from tierwise.runtime.drafting import Drafter
from tierwise.runtime.errors import OutOfMemoryError, TierwiseError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.lease import Entry, megabytes
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.prefix_cache import HostCache
from tierwise.runtime.profile import load_profile
from tierwise.runtime.resources import ResourceProbe, Resources
from tierwise.runtime.vocabulary import usable_file

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
        kv_type: How keys and values are stored.
        prefix_bytes: Most that kept prefixes may take.
    """

    def __init__(
        self,
        family: Family,
        changed: threading.Condition,
        *,
        cap: int | None,
        probe: ResourceProbe,
        kv_type: KVType,
        prefix_bytes: int,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self.host = HostCache(prefix_bytes)
        self._family = family
        self._changed = changed
        self._cap = cap
        self._probe = probe
        self._kv_type: KVType = kv_type
        self._prefix_bytes = prefix_bytes

    def predict(self, tier: Tier, n_ctx: int) -> int:
        path = usable_file(self._family, tier)
        return predict_memory(path, n_ctx, kv_type=self._kv_type).total_bytes

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

    def make(self, tier: Tier, n_ctx: int, need: int, cap: int | None) -> list[str]:
        """Unloads idle tiers until ``need`` bytes fit; none if they cannot be made to fit.

        What a tier was predicted to need is taken as freed, without asking the probe again:
        Linux keeps freed pages in per-processor lists (vm.percpu_pagelist_high_fraction), and
        up to 150 MB were seen to become "available" seconds after they were.
        """
        events: list[str] = []
        resources = self._probe()
        while True:
            with self._changed:
                own = self.entries.get(tier.name)
                extra = need - (own.bytes if own is not None else 0)
                idle = [e for e in self.entries.values() if not e.holders and e is not own]
                if extra > self.free(resources, idle, cap):
                    raise self._out_of_memory(tier, n_ctx, need, resources, cap)
                if extra <= self.free(resources, (), cap):
                    if extra > self.free(resources, (), None) - self.host.bytes:
                        self.host.clear()
                    return events
                victim = min(idle, key=lambda entry: (entry.last_used, -entry.bytes))
                del self.entries[victim.name]
            victim.tier.close()
            resources = replace(
                resources,
                available_bytes=resources.available_bytes + victim.bytes,
            )
            events.append(f"unloaded {victim} to make room")
            log.info(events[-1])

    def widest(self, entry: Entry, tier: Tier, wanted: int, cap: int | None) -> int:
        """The context, of ``wanted`` tokens halved as often as need be, that an entry may have."""
        if wanted <= entry.tier.n_ctx:
            return entry.tier.n_ctx
        free = self.free(self._probe(), (), cap)
        try:
            while self.predict(tier, wanted) - entry.bytes > free:
                wanted //= 2
                if wanted <= entry.tier.n_ctx:
                    break
        except TierwiseError:  # its file has gone since it was loaded
            return entry.tier.n_ctx
        return wanted

    def keep_to(self, tier: Tier, cap: int | None) -> None:
        """Unloads other idle tiers while all together take more than ``cap``."""
        while cap is not None:
            with self._changed:
                total = sum(entry.bytes for entry in self.entries.values())
                idle = [e for e in self.entries.values() if not e.holders and e.name != tier.name]
                if total <= cap or not idle:
                    return
                victim = min(idle, key=lambda entry: (entry.last_used, -entry.bytes))
                del self.entries[victim.name]
            victim.tier.close()
            log.info("unloaded %s to stay within %s", victim, megabytes(cap))

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

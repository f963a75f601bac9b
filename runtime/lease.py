"""A tier that is held: what the pool keeps of it, and the lease that keeps it loaded."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Self

from tierwise.runtime.context import KVType
from tierwise.runtime.loaded_tier import LoadedTier


@dataclass(frozen=True, slots=True)
class ResidentTier:
    """A tier in memory: its context, its predicted bytes, how many leases hold it, and how its
    keys and values are stored."""

    context_tokens: int
    bytes: int
    leases: int
    kv_type: KVType


@dataclass(slots=True, eq=False)
class Entry:
    """The pool's own account of a tier in memory; guarded by the pool's condition."""

    name: str
    tier: LoadedTier
    bytes: int
    least_bytes: int
    """What it would take with a single slot."""
    holders: list[int] = field(default_factory=list)
    """What each lease expects to fill of the context, in tokens."""
    widening: bool = False
    """Its context is growing to what the leases expect."""
    last_used: float = 0.0
    calls: int = 0
    """Leases that there have been."""
    orphaned: bool = False
    """The pool was closed meanwhile: the last lease unloads it."""

    @property
    def spare_bytes(self) -> int:
        """What would be had by taking all slots but one away from it."""
        return max(0, self.bytes - self.least_bytes)

    def __str__(self) -> str:
        return f"{self.name} ({megabytes(self.bytes)})"


class Lease:
    """A loaded tier that stays loaded until `release`. Use as a context manager.

    Args:
        tier: The tier, ready to answer.
        cold: Whether it had to be loaded for this lease.
        load_s: Seconds that loading took; 0 if it was resident.
        events: What the pool did for it, in English, e.g. "unloaded q8_0 (193 MB) to make room".
    """

    def __init__(
        self,
        entry: Entry,
        changed: threading.Condition,
        expected_tokens: int,
        *,
        load_s: float | None,
        events: tuple[str, ...],
    ) -> None:
        self.tier = entry.tier
        self.cold = load_s is not None
        self.load_s = load_s or 0.0
        self.events = events
        self._changed = changed
        self._entry: Entry | None = entry
        self._expected = expected_tokens
        entry.holders.append(expected_tokens)
        entry.calls += 1
        entry.last_used = time.monotonic()

    def release(self) -> None:
        """Lets the tier go; it stays loaded until its memory is wanted. Safe to call twice."""
        with self._changed:
            entry, self._entry = self._entry, None
            if entry is None:
                return
            entry.holders.remove(self._expected)
            entry.last_used = time.monotonic()
            self._changed.notify_all()
            left_behind = entry.orphaned and not entry.holders
        if left_behind:
            entry.tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def megabytes(count: int) -> str:
    """Bytes in megabytes (10**6), with a decimal where they are few."""
    return f"{count / 1e6:,.0f} MB" if count >= 10_000_000 else f"{count / 1e6:.1f} MB"

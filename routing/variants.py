"""Cheaper variants of tiers, made while calls are answered, when memory keeps asking for them.

A variant is wanted when memory keeps a tier from answering `PATIENCE` calls in a row, or one call
that no other tier can answer either, and that tier is likelier to be right than the best one that
fits. One is made at a time, by a `Deriver` in a thread of its own; no call waits for it. It becomes
a tier of the router if it is still likelier to be right than the best that fits: its chance is that
of the tier that it was made of, calibrated or not, times what it keeps by its measured divergence
from it (`success.kept`). Else it is dropped for good.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tierwise.routing.decision import Forecast
from tierwise.routing.forecasts import Shortage
from tierwise.routing.success import kept
from tierwise.runtime.errors import TierwiseError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.fit import rounded_context
from tierwise.runtime.profile import Profile, estimated_profile, load_profile
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.units import show_bytes
from tierwise.runtime.variants import Variant, VariantStore, Wanted

log = logging.getLogger("tierwise.routing")

PATIENCE = 3
"""Calls in a row from which memory has kept the same tier, before a variant is made."""

MORE = 1.1
"""Times the bytes for which nothing was found, before it is looked for again."""

RETRY_S = 600.0
"""After a failure, before anything is tried again."""


class Deriver(Protocol):
    """Makes a cheaper variant of a tier, or finds it made.

    None where none is worth making, or where ``stop`` was set meanwhile. What it raises is logged,
    and tried again after a while.
    """

    def __call__(self, wanted: Wanted, stop: threading.Event) -> Variant | None: ...


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be made, and what it must be better than.

    Args:
        chance: Of success, of the tier that does not fit.
        least: Of the best that does; 0 if none does.
        than: Its name; "" if there is none.
        difficulty: Of the call that asked for it.
    """

    wanted: Wanted
    chance: float
    least: float
    than: str
    difficulty: float


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Work:
    """What the thread that makes a variant and the router share; it does not hold the router."""

    made: deque[Variant]
    names: set[str] = field(default_factory=set)
    """Of all variants that there have been."""
    vain: dict[tuple[str, str], float] = field(default_factory=dict)
    """Bytes with which no variant of a tier was found that is better than another tier ("": than
    none)."""
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    not_before: float = 0.0
    """On the monotonic clock."""

    def end(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join()


_works: weakref.WeakSet[_Work] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """What was started must not outlive the interpreter."""
    for work in list(_works):
        work.end()


class Variants:
    """The variants of one router's tiers. Safe to use from many threads.

    Args:
        family: Whose tiers they are made of.
        deriver: Makes them.
        threads: That tiers run with.
    """

    def __init__(self, family: Family, deriver: Deriver, *, threads: int) -> None:
        self._family, self._deriver, self._threads = family, deriver, threads
        self._store = VariantStore(family)
        self._lock = threading.Lock()
        self._known: dict[str, Variant] = {}
        self._parents = {tier.sha256: tier.name for tier in family.tiers}
        self._in_a_row: Counter[str] = Counter()
        self._work = _Work(deque(self._store.usable()))
        _works.add(self._work)
        # A router that is let go may be so in any thread: nothing is waited for there.
        weakref.finalize(self, self._work.stop.set).atexit = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that have arrived."""
        return tuple(self._known)

    def arrived(self, enabled: Sequence[Tier]) -> list[tuple[Variant, Tier]]:
        """Variants since the last time, each with its parent; those of other tiers are left out."""
        names, found = {tier.name for tier in enabled}, []
        while self._work.made:
            variant = self._work.made.popleft()
            parent = self._parents.get(variant.parent_sha256)
            if parent not in names or variant.tier.name in self._known:
                continue
            try:
                self._family.add_variant(variant.tier)
            except TierwiseError as error:
                log.warning("variant %s is not used: %s", variant.tier.name, error)
                continue
            self._known = {**self._known, variant.tier.name: variant}
            self._work.names.add(variant.tier.name)
            found.append((variant, self._family.tier(parent)))
        return found

    def chances(self, success: Mapping[str, float], difficulty: float) -> dict[str, float]:
        """Every variant's chance of success, from its parent's."""
        return {
            name: success[self._parents[one.parent_sha256]]
            * kept(one.divergence.kl_mean, difficulty)
            for name, one in self._known.items()
        }

    def place(
        self, tier: Tier, members: Sequence[Tier | RemoteTier], expected: Mapping[str, float]
    ) -> tuple[Tier | RemoteTier, ...]:
        """``members`` with a variant among them: before the first that is likelier to be right, as
        remote ones are of which nothing is expected."""
        own, parent = expected[tier.name], self._parents[self._known[tier.name].parent_sha256]
        better = (
            at
            for at, one in enumerate(members)
            if one.name == parent or expected.get(one.name, 1.0) > own
        )
        at = next(better, len(members))
        return (*members[:at], tier, *members[at:])

    def seen(
        self,
        shortages: Sequence[Shortage],
        forecasts: Sequence[Forecast],
        expected: Mapping[str, float],
        difficulty: float,
    ) -> None:
        """Takes note of a decision, and has a variant made if it is time. Never waits.

        Args:
            shortages: Of the decision.
            forecasts: Of the tiers of this machine.
            expected: Chance of success by tier: the mean of all calls where it is known.
            difficulty: Of the call.
        """
        fits = [one.tier for one in forecasts if one.feasible]
        than = max(fits, key=lambda name: expected[name], default="")
        least = expected[than] if than else 0.0
        short = [
            one for one in shortages if one.tier not in self._known and expected[one.tier] > least
        ]
        with self._lock:
            for name in list(self._in_a_row):
                if name not in {one.tier for one in short}:
                    del self._in_a_row[name]
            self._in_a_row.update(one.tier for one in short)
            most = max(short, key=lambda one: expected[one.tier], default=None)
            if most is None or (fits and self._in_a_row[most.tier] < PATIENCE):
                return
            if not self._may_start(most, than, fits):
                return
            parent = self._family.tier(most.tier)
            wanted = Wanted(
                folder=str(self._family.folder),
                parent=parent,
                context_tokens=rounded_context(parent, most.context_tokens),
                most_bytes=most.most_bytes,
                threads=self._threads,
            )
            order = _Order(wanted, expected[most.tier], least, than, difficulty)
            self._work.thread = threading.Thread(
                target=_make,
                args=(self._deriver, self._store, order, self._work),
                name="tierwise-variant",
                daemon=True,
            )
            self._work.thread.start()

    def _may_start(self, short: Shortage, than: str, fits: Sequence[str]) -> bool:
        work = self._work
        if work.stop.is_set() or (work.thread is not None and work.thread.is_alive()):
            return False
        if work.made or time.monotonic() < work.not_before:
            return False
        vain = work.vain.get((short.tier, than))
        if vain is not None and short.most_bytes <= vain * MORE:
            return False
        sha256 = self._family.tier(short.tier).sha256
        return not any(
            self._known[name].parent_sha256 == sha256 for name in fits if name in self._known
        )

    def close(self) -> None:
        """Gives up what is being made. Safe to call twice."""
        self._work.end()


def profile_of(tier: Tier, parent: Tier, of_parent: Profile) -> Profile:
    """A variant's speed on this machine: measured, or reckoned from its parent's."""
    return load_profile(tier.sha256) or estimated_profile(tier, [(parent, of_parent)])


def _make(deriver: Deriver, store: VariantStore, order: _Order, work: _Work) -> None:
    """Has a variant made, and keeps or drops it."""
    name = order.wanted.parent.name
    log.info("making a variant of %s for %s", name, show_bytes(order.wanted.most_bytes))
    try:
        variant = deriver(order.wanted, work.stop)
        if variant is not None and variant.tier.name not in work.names:
            chance = order.chance * kept(variant.divergence.kl_mean, order.difficulty)
            if chance > order.least:
                log.info("made %s, as memory has no room for %s", variant.tier.name, name)
                work.made.append(variant)
                return
            why = (
                f"with a chance of {chance:.0%} it is no better than {order.than} with "
                f"{order.least:.0%}, which fits"
            )
            log.info("%s is dropped: %s", variant.tier.name, why)
            store.drop(variant, why)
        if not work.stop.is_set():
            work.vain[name, order.than] = max(1, order.wanted.most_bytes)
    except Exception as error:  # noqa: BLE001 - whatever it is, calls go on without a variant
        log.warning("no cheaper variant of %s was made: %s", name, error)
        work.not_before = time.monotonic() + RETRY_S

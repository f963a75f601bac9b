"""What a router learns while it is used: corrected chances, and whether calls are still alike.

Corrections are one number for each tier, added to the log-odds of its chance of success: the
intercept of an online logistic recalibration. What was seen fades, so that a tier which did badly
last week is not shunned for ever.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping

import numpy as np

from tierwise.routing.calibration import Calibration
from tierwise.routing.drift import Drift, drift
from tierwise.routing.risk import Guarantee

log = logging.getLogger("tierwise.routing")

RATE = 0.3
"""Step of a correction, in log-odds, for an outcome that was not expected at all."""

HALF_LIFE = 200
"""Outcomes of a tier after which half of a correction is forgotten."""

FURTHEST = 4.0
"""Corrections stay within this, in log-odds."""

VERIFIED = 0.25
"""Weight of what verification found, where the word of a user has 1."""

RECENT, EVERY = 400, 50
"""Requests whose chances are compared with those of the calibration, and how often."""

_EDGE = 1e-4


class Adaptation:
    """Safe to use from many threads.

    Args:
        calibration: What chances come from; None where they come from the family's own
            measurements, which verification is then not held against.
    """

    def __init__(self, calibration: Calibration | None) -> None:
        self._calibration = calibration
        self._offsets: dict[str, float] = {}
        self._recent: OrderedDict[Hashable, tuple[float, ...]] = OrderedDict()
        self._seen = 0
        self._drift: Drift | None = None
        self._lock = threading.Lock()

    @property
    def drift(self) -> Drift | None:
        """How far recent calls are from those of the calibration; None as long as nobody knows."""
        return self._drift

    def corrected(self, chances: Mapping[str, float]) -> dict[str, float]:
        """Chances of success by tier, as outcomes since have changed them."""
        with self._lock:
            offsets = dict(self._offsets)
        return {
            tier: _moved(chance, offsets[tier]) if tier in offsets else chance
            for tier, chance in chances.items()
        }

    def seen(self, chances: Mapping[str, float], request: Hashable) -> None:
        """Takes note of a call, and now and then compares.

        Args:
            chances: Before correction.
            request: What it is a step of. Steps of one request are much alike, so that only the
                latest counts: else a few long runs would look like a shift.
        """
        if self._calibration is None or not self._calibration.verdict.route:
            return  # then they are the same for every call
        row = tuple(chances[tier] for tier in self._calibration.tiers)
        with self._lock:
            new = request not in self._recent
            self._recent[request] = row
            self._seen += new
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
            due = new and self._seen % EVERY == 0 and len(self._recent) == RECENT
            recent = np.array(list(self._recent.values())) if due else None
        if recent is None:
            return
        found = drift(self._calibration.judged.predicted, recent)
        if found.drifted and not (self._drift and self._drift.drifted):
            log.warning("%s. Promises are void as long as that is so.", found.reason)
        self._drift = found

    def kept(self, promise: Guarantee) -> Guarantee:
        """The promise, or none if calls are of another kind by now."""
        return promise if self._drift is None else promise.after(self._drift)

    def verified(self, tier: str, chance: float, *, problem: bool) -> None:
        """Takes note of what verification made of a reply.

        It finds some errors and misses others: a reply counts as right to the share of those that
        were, among replies of this tier of which it said the same.
        """
        if self._calibration is None:
            return
        right = self._calibration.right_share(tier, problem=problem)
        if right is not None:
            self.observe(tier, chance, right, weight=VERIFIED)

    def observe(self, tier: str, chance: float, ok: float, *, weight: float = 1.0) -> None:
        """Takes note of an outcome.

        Args:
            tier: That replied.
            chance: Its corrected chance when it was chosen.
            ok: 1 for a reply that was right, 0 for one that was not, or the chance that it was.
            weight: How much that is to be believed, 0..1.
        """
        with self._lock:
            before = self._offsets.get(tier, 0.0) * 0.5 ** (weight / HALF_LIFE)
            after = before + RATE * weight * (ok - min(1.0, max(0.0, chance)))
            self._offsets[tier] = min(FURTHEST, max(-FURTHEST, after))


def _moved(chance: float, offset: float) -> float:
    p = min(1 - _EDGE, max(_EDGE, chance))
    return 1 / (1 + math.exp(-(math.log(p / (1 - p)) + offset)))

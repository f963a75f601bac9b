"""When a run of training ends, and how fast it learns until then."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP_STEPS = 10
LAST_RATE = 0.1
"""Share of the peak learning rate at the end of the cosine."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run is done: after ``steps`` where they are given, else after ``seconds``."""

    seconds: float
    steps: int | None = None

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is over, 0..1."""
        return min(1.0, step / self.steps if self.steps else seconds / self.seconds)


def learning_rate(peak: float, step: int, share: float) -> float:
    """Linear warm-up, then a cosine down to `LAST_RATE` of the peak.

    Args:
        peak: The highest rate.
        step: Number of the step, from 0.
        share: Of the run that is over, 0..1.
    """
    cosine = LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2
    return peak * cosine * min(1.0, (step + 1) / WARM_UP_STEPS)

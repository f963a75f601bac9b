"""Intervals by resampling, paired: what is compared is measured on the same resamples.

A resample is a row of counts, how often each call occurs in it, so that a statistic that is a sum
over calls is one matrix product for all resamples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with its percentile interval; all NaN where it is not defined."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Floats, confidence: float = 0.95) -> Interval:
        """Of resampled statistics; those that are NaN (a resample without any success, say) do
        not count."""
        known = resampled[~np.isnan(resampled)]
        if math.isnan(value) or not len(known):
            return cls(math.nan, math.nan, math.nan)
        tail = (1 - confidence) / 2
        low, high = np.quantile(known, (tail, 1 - tail))
        return cls(float(value), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resamples(
    n: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """How often each of n calls occurs in each resample, shape (draws, n).

    Args:
        groups: Of the calls. Calls of one group come and go together (the cluster bootstrap), as
            twenty copies of a prompt say no more than one.
        draws: How many resamples.
        seed: The same one gives the same resamples.

    Raises:
        ConfigError: There are no calls, or another number of groups.
    """
    if n < 1 or draws < 1 or (groups is not None and len(groups) != n):
        raise ConfigError(
            f"resampling needs calls, a group for each, and draws; got {n} calls, "
            f"{None if groups is None else len(groups)} groups and {draws} draws"
        )
    rng = np.random.default_rng(seed)
    numbers = group_numbers(range(n) if groups is None else groups)
    each = int(numbers.max()) + 1
    counts = rng.multinomial(each, np.full(each, 1 / each), size=draws)
    return counts[:, numbers].astype(np.float64)


def group_numbers(groups: Sequence[Hashable]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The groups numbered from 0 in the order in which they first occur."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(group, len(known)) for group in groups], np.intp)


def mean_interval(values: Floats, counts: Floats, confidence: float = 0.95) -> Interval:
    """Of the mean of values of shape (n,), over resamples of shape (draws, n)."""
    return Interval.of(float(values.mean()), counts @ values / counts.sum(axis=1), confidence)

"""From scores to honest probabilities, and how honest they are.

Calibration is isotonic (Zadrozny and Elkan, KDD 2002): of all functions that never fall, the one
nearest to the outcomes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.bootstrap import DRAWS, Interval, resamples
from tierwise.routing.representation import Floats
from tierwise.routing.success import isotonic
from tierwise.runtime.errors import ConfigError

BINS = 10


@dataclass(frozen=True, slots=True)
class IsotonicCurve:
    """A function of a score that never falls; between its points it is straight.

    Attributes:
        scores: Rising, shape (points,).
        chances: In 0..1, never falling, shape (points,).
    """

    scores: Floats
    chances: Floats

    @classmethod
    def fit(cls, scores: Floats, outcomes: Floats, weights: Floats | None = None) -> IsotonicCurve:
        """The nearest to outcomes in 0..1; those that are NaN are left out.

        Raises:
            ConfigError: The shapes differ, or no outcome is known.
        """
        w = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
        if scores.ndim != 1 or scores.shape != outcomes.shape or scores.shape != w.shape:
            raise ConfigError(
                f"scores, outcomes and weights must have the same shape (n,), got {scores.shape}, "
                f"{outcomes.shape} and {w.shape}"
            )
        known = ~np.isnan(outcomes) & (w > 0)
        if not known.any():
            raise ConfigError("there is no outcome to calibrate on")
        # Equal scores are one point: they cannot be told apart.
        points, place = np.unique(scores[known].astype(np.float64), return_inverse=True)
        total = np.bincount(place, w[known])
        means = np.bincount(place, w[known] * outcomes[known]) / total
        chances = np.array(isotonic(means.tolist(), total.tolist()))
        # Only the ends of a level stretch say anything.
        inner = np.zeros(len(points), bool)
        inner[1:-1] = (chances[1:-1] == chances[:-2]) & (chances[1:-1] == chances[2:])
        return cls(points[~inner], chances[~inner])

    def __call__(self, scores: Floats) -> Floats:
        """Chances; beyond the outermost points those of these."""
        return np.interp(scores, self.scores, self.chances)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """For a file."""
        return {"scores": self.scores, "chances": self.chances}


@dataclass(frozen=True, slots=True)
class TierCurves:
    """An `IsotonicCurve` for each tier.

    Attributes:
        curves: Of the tiers, in the order of the outcomes' columns.
    """

    curves: tuple[IsotonicCurve, ...]

    @classmethod
    def fit(cls, predicted: Floats, outcomes: Floats, weights: Floats | None = None) -> TierCurves:
        """From predictions and outcomes of shape (n, tiers) that were not learned from.

        Raises:
            ConfigError: The shapes differ, or a tier has no outcome.
        """
        if predicted.ndim != 2 or predicted.shape != outcomes.shape:
            raise ConfigError(
                f"predictions and outcomes must have the same shape (n, tiers), got "
                f"{predicted.shape} and {outcomes.shape}"
            )
        columns = zip(predicted.T, outcomes.T, strict=True)
        return cls(tuple(IsotonicCurve.fit(p, y, weights) for p, y in columns))

    def __call__(self, predicted: Floats) -> Floats:
        """Chances of shape (m, tiers)."""
        columns = zip(self.curves, predicted.T, strict=True)
        return np.stack([curve(column) for curve, column in columns], axis=1)


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions that lie near each other: their mean, the share that came true, their number."""

    predicted: float
    true: float
    n: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far predicted chances are from what came true.

    Attributes:
        n: Predictions.
        brier: Mean squared error (Brier, Monthly Weather Review 78, 1950).
        ece_mass: Expected calibration error over bins of equally many predictions.
        ece_width: The same over bins of equal width (Naeini et al., AAAI 2015).
        bins: Those of equally many predictions.
    """

    n: int
    brier: Interval
    ece_mass: Interval
    ece_width: Interval
    bins: tuple[Bin, ...]


def reliability(
    p: Floats,
    y: Floats,
    bins: int = BINS,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Reliability:
    """Of predicted chances and outcomes of shape (n,); unknown outcomes are left out.

    An ECE is never below 0, so that even a perfect forecaster has a positive one on few data; its
    interval is that of the same few data and does not take this away.

    Args:
        bins: Of either kind, at most; equal predictions always share one.
        groups: Of the rows, for the intervals.
        draws: Of the bootstrap.
        seed: Of its draws.

    Raises:
        ConfigError: The shapes differ, no outcome is known, or there is no bin.
    """
    if p.ndim != 1 or p.shape != y.shape or bins < 1:
        raise ConfigError(
            f"chances and outcomes must have the same shape (n,) and bins be at least 1, got "
            f"{p.shape}, {y.shape} and {bins}"
        )
    known = ~np.isnan(y)
    if not known.any():
        raise ConfigError("there is no outcome to compare the chances with")
    kept = None if groups is None else [g for g, k in zip(groups, known, strict=True) if k]
    p, y = p[known].astype(np.float64), y[known].astype(np.float64)
    counts = resamples(len(p), groups=kept, draws=draws, seed=seed)
    all_once = np.ones((1, len(p)))
    mass, width = _equal_mass(p, bins), np.minimum((p * bins).astype(np.intp), bins - 1)
    squares = (p - y) ** 2
    found = []
    for place in (mass, width):
        value = float(_calibration_error(p, y, place, all_once)[0])
        found.append(Interval.of(value, _calibration_error(p, y, place, counts)))
    brier = Interval.of(float(squares.mean()), counts @ squares / counts.sum(axis=1))
    members = [mass == number for number in range(int(mass.max()) + 1)]
    shown = tuple(Bin(float(p[m].mean()), float(y[m].mean()), int(m.sum())) for m in members)
    return Reliability(len(p), brier, found[0], found[1], shown)


def _equal_mass(p: Floats, bins: int) -> NDArray[np.intp]:
    """Numbers of bins with as nearly as many predictions each as ties allow."""
    ranks = np.searchsorted(np.sort(p), p)  # of equal predictions the first one's
    place = ranks * min(bins, len(p)) // len(p)
    return np.unique(place, return_inverse=True)[1].reshape(-1).astype(np.intp)


def _calibration_error(p: Floats, y: Floats, place: NDArray[np.intp], counts: Floats) -> Floats:
    """Sum over bins of |sum of (p - y)|, over all predictions: shape (draws,)."""
    member = (place[:, None] == np.arange(place.max() + 1)).astype(np.float64)
    off = np.abs(counts @ (member * (p - y)[:, None])).sum(axis=1)
    error: Floats = off / counts.sum(axis=1)
    return error

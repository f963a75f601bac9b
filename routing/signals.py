"""What a finished reply says of itself, and of those that could be had in its place.

The margin of a token is by how much it led the next one. Tokens that a grammar forced have none,
so that of a tool call only the content counts and not its structure. Margins, whether verification
found fault, and the chance that the reply had before it was made are joined by a logistic
regression for each tier. A second one tells how likely another tier then is to be right: a call
that one tier has failed at is a hard one, and others fail at it more often, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.estimators_linear import logistic
from tierwise.routing.representation import Floats

SURENESS = 2
"""Numbers that `sureness` gives."""

_EDGE = 1e-3


def sureness(margins: Sequence[float]) -> tuple[float, float]:
    """The smallest and the mean margin of a reply; 1 where nothing was chosen."""
    return (min(margins), float(np.mean(margins))) if margins else (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Signals:
    """Chances of being right once a reply is there.

    Attributes:
        weights: For log-odds, smallest and mean margin, a problem, and the intercept, shape
            (tiers, 5).
        rivals: Of the chance of a second tier (last but one axis) after a reply of the first: for
            the log-odds of its own before, for those of the reply, and the intercept, shape
            (tiers, tiers, 3).
    """

    weights: Floats
    rivals: Floats

    @classmethod
    def fit(cls, chances: Floats, sure: Floats, problems: NDArray[np.bool_], y: Floats) -> Signals:
        """Learns from calls that the chances were not learned from.

        Args:
            chances: Before the replies, shape (n, tiers).
            sure: From `sureness`, shape (n, tiers, 2).
            problems: Whether `verify` finds fault with the replies, shape (n, tiers).
            y: Which were right, shape (n, tiers).
        """
        n, tiers = chances.shape
        every = np.ones(n)

        def learned(z: Floats, right: Floats) -> list[float]:
            slopes, intercept, _ = logistic(z, right, every)
            return [*slopes.tolist(), float(intercept)]

        before = _log_odds(chances)
        rows = [
            learned(np.column_stack((before[:, t], sure[:, t], problems[:, t])), y[:, t])
            for t in range(tiers)
        ]
        found = cls(np.array(rows), unmoved(tiers))
        later = _log_odds(found.after(chances, sure, problems))
        rivals = [
            [learned(np.column_stack((before[:, r], later[:, t])), y[:, r]) for r in range(tiers)]
            for t in range(tiers)
        ]
        return cls(found.weights, np.array(rivals))

    def __call__(
        self, tier: int, chance: float, margins: Sequence[float], *, problem: bool = False
    ) -> float:
        """Of one reply of the tier of that number, which had this chance before."""
        shape = (1, len(self.weights))
        sure = np.array([[sureness(margins)] * len(self.weights)])
        return float(self.after(np.full(shape, chance), sure, np.full(shape, problem))[0, tier])

    def after(self, chances: Floats, sure: Floats, problems: NDArray[np.bool_]) -> Floats:
        """Of replies of every tier, shape (n, tiers); arguments as of `fit`."""
        z: Floats = np.concatenate(
            (_log_odds(chances)[..., None], sure, problems[..., None]), axis=2
        )
        return _chance((z * self.weights[:, :-1]).sum(axis=2) + self.weights[:, -1])

    def instead(self, tier: int, later: Floats, rival: int, chances: Floats) -> Floats:
        """How likely another tier is to be right, shape (n,).

        Args:
            tier: Number of the one that has replied.
            later: Chances of its replies, from `after`, shape (n,).
            rival: Number of the other one.
            chances: Its own before that was known, shape (n,).
        """
        own, other, intercept = self.rivals[tier, rival].tolist()
        return _chance(own * _log_odds(chances) + other * _log_odds(later) + intercept)


def unmoved(tiers: int) -> Floats:
    """`Signals.rivals` of tiers that fail independently of each other."""
    return np.tile(np.array([1.0, 0.0, 0.0]), (tiers, tiers, 1))


def _chance(odds: Floats) -> Floats:
    chance: Floats = 1 / (1 + np.exp(-odds))
    return chance


def _log_odds(chance: Floats) -> Floats:
    p = np.clip(chance, _EDGE, 1 - _EDGE)
    return np.log(p / (1 - p))

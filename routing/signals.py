"""What a finished reply says of itself: how sure its tier was of the tokens that it chose.

The margin of a token is by how much it led the next one. Tokens that a grammar forced have none,
so that of a tool call only the content counts and not its structure. Margins and the chance that
the reply had before it was made are joined by a logistic regression for each tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
        weights: For log-odds, smallest and mean margin, and the intercept, shape (tiers, 4).
    """

    weights: Floats

    @classmethod
    def fit(cls, chances: Floats, sure: Floats, y: Floats) -> Signals:
        """Learns from calls that the chances were not learned from.

        Args:
            chances: Before the replies, shape (n, tiers).
            sure: From `sureness`, shape (n, tiers, 2).
            y: Which were right, shape (n, tiers).
        """
        rows = []
        for tier in range(chances.shape[1]):
            z = np.column_stack((_log_odds(chances[:, tier]), sure[:, tier]))
            slopes, intercept, _ = logistic(z, y[:, tier], np.ones(len(z)))
            rows.append([*slopes.tolist(), intercept])
        return cls(np.array(rows))

    def __call__(self, tier: int, chance: float, margins: Sequence[float]) -> float:
        """Of one reply of the tier of that number, which had this chance before."""
        sure = np.array([[sureness(margins)] * len(self.weights)])
        return float(self.after(np.full((1, len(self.weights)), chance), sure)[0, tier])

    def after(self, chances: Floats, sure: Floats) -> Floats:
        """Of replies of every tier, shape (n, tiers); arguments as of `fit`."""
        z = np.concatenate((_log_odds(chances)[..., None], sure), axis=2)
        odds = (z * self.weights[:, :-1]).sum(axis=2) + self.weights[:, -1]
        later: Floats = 1 / (1 + np.exp(-odds))
        return later


def _log_odds(chance: Floats) -> Floats:
    p = np.clip(chance, _EDGE, 1 - _EDGE)
    return np.log(p / (1 - p))

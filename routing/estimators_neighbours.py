"""Success by the outcomes of the calls that are most alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.estimators import Arrays, checked
from tierwise.routing.representation import DIMENSIONS, Floats, Representation

NEIGHBOURS = 100
EVIDENCE = 1.0
"""Standard errors (z) that a tier's chance is judged lower by."""

_AT_ONCE = 256
"""Rows that are predicted together, as all their distances are held in memory."""


@dataclass(frozen=True, slots=True)
class NeighbourSuccess:
    """What `GuardedKNN` learned.

    Attributes:
        representation: Of the features.
        points: Of the calls learned from, shape (n, columns of the representation).
        outcomes: Shape (n, tiers), NaN where unknown.
        weights: Shape (n,).
        settings: Neighbours, z, and the fallback tier's number.
    """

    kind: ClassVar[str] = "guarded_knn"
    representation: Representation
    points: Floats
    outcomes: Floats
    weights: Floats
    settings: Floats

    @property
    def tiers(self) -> int:
        return int(self.outcomes.shape[1])

    @property
    def fallback(self) -> int:
        """Number of the tier that is left only on evidence."""
        return int(self.settings[2])

    def predict(self, x: Floats) -> Floats:
        z = self.representation(x)
        parts = [self._predict(z[i : i + _AT_ONCE]) for i in range(0, len(z), _AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.tiers), np.float32)

    def _predict(self, z: Floats) -> Floats:
        near = self._nearest(z)
        outcomes, weights = self.outcomes[near], self.weights[near]  # (m, k, tiers) and (m, k)
        paired = outcomes - outcomes[..., self.fallback, None]
        gain, error = _mean_and_error(paired, weights)
        base, _ = _mean_and_error(outcomes[..., self.fallback, None], weights)
        everywhere, _ = _mean_and_error(
            self.outcomes[None, :, self.fallback, None], self.weights[None]
        )
        base = np.where(np.isnan(base), everywhere, base)
        lower = np.where(np.isnan(gain), -1.0, gain - float(self.settings[1]) * error)
        lower[:, self.fallback] = 0.0
        return np.clip(base + lower, 0.0, 1.0)

    def _nearest(self, z: Floats) -> NDArray[np.intp]:
        k = min(int(self.settings[0]), len(self.points))
        squares = np.einsum("ij,ij->i", self.points, self.points)
        distances = squares - 2 * z @ self.points.T
        return np.argpartition(distances, k - 1, axis=1)[:, :k]

    def arrays(self) -> Arrays:
        names = ("points", "outcomes", "weights", "settings")
        return {**{n: getattr(self, n) for n in names}, **self.representation.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        representation = Representation.from_arrays(arrays)
        points, outcomes = arrays["points"], arrays["outcomes"]
        weights, settings = arrays["weights"], arrays["settings"]
        n = len(points)
        if (
            points.shape != (n, representation.width)
            or outcomes.ndim != 2
            or (len(outcomes), weights.shape, settings.shape) != (n, (n,), (3,))
            or not 0 <= settings[2] < outcomes.shape[1]
        ):
            raise ValueError("shapes of the neighbours do not match")
        return cls(representation, points, outcomes, weights, settings)


@dataclass(frozen=True, slots=True)
class GuardedKNN:
    """k nearest neighbours that keep to one tier until the neighbours prove another as good.

    The fallback tier's chance is its share of successes among the neighbours. Another tier's is
    that plus the mean of the paired differences *less* z standard errors of it. So a tier is
    preferred to the fallback only where the evidence exceeds z standard errors, and noise alone
    seldom leaves the fallback.

    Args:
        hashed: Widths of the hashed blocks at the end of the features.
        neighbours: k.
        evidence: z.
        fallback: Number of the tier to keep to; None for the one with the most successes (of
            equals the cheapest).
        dimensions: Of the text block.
        seed: Of its random projection.
    """

    hashed: tuple[int, ...] = ()
    neighbours: int = NEIGHBOURS
    evidence: float = EVIDENCE
    fallback: int | None = None
    dimensions: int = DIMENSIONS
    seed: int = 0

    def fit(self, x: Floats, y: Floats, weights: Floats | None = None) -> NeighbourSuccess:
        """As `Estimator.fit`."""
        y, w = checked(x, y, weights)
        representation = Representation.fit(
            x, self.hashed, w, dimensions=self.dimensions, seed=self.seed
        )
        fallback = self.fallback
        if fallback is None:
            shares, _ = _mean_and_error(y[None], w[None])
            fallback = int(np.argmax(shares[0]))
        return NeighbourSuccess(
            representation,
            representation(x).astype(np.float32),
            y.astype(np.float32),
            w.astype(np.float32),
            np.array([self.neighbours, self.evidence, fallback], np.float32),
        )


def _mean_and_error(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mean and standard error over the second axis; NaN values do not count.

    One value more that is off by 1 is always assumed: a handful of neighbours that agree prove
    nothing.

    Args:
        values: Shape (m, k, tiers).
        weights: Shape (m, k).

    Returns:
        Two arrays of shape (m, tiers), NaN where no value is known.
    """
    known = ~np.isnan(values)
    w = weights[..., None] * known
    total = w.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0)
        mean = (w * mean).sum(axis=1) / total
        off = np.where(known, values - mean[:, None], 0.0)
        n = total**2 / (w**2).sum(axis=1)
        variance = ((w * off**2).sum(axis=1) / total * n + 1.0) / n
        return mean, np.sqrt(variance / n)

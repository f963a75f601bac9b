"""Success that is linear in the features: ridge on gains, and logistic regression.

Both choose their penalty by leave-one-out, for which one fit says all: exactly for ridge,
approximately for the logistic. Outcomes of the same request should not be in several rows, or
each would vouch for the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np

from tierwise.routing.estimators import Arrays, checked, within_chances
from tierwise.routing.representation import DIMENSIONS, Floats, Representation

PENALTIES = tuple(float(x) for x in np.logspace(2, -3, 21))
"""Per row, the largest first; the leading direction of each block has variance 1."""

_NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True)
class LinearSuccess:
    """One linear function of the representation for each tier.

    Attributes:
        representation: Of the features.
        slopes: Shape (columns of the representation, tiers).
        intercepts: Shape (tiers,).
        penalties: That were chosen, per row, shape (tiers,).
    """

    kind: ClassVar[str] = "linear"
    representation: Representation
    slopes: Floats
    intercepts: Floats
    penalties: Floats
    _of_grams: Floats = field(init=False, repr=False)
    """Slopes of the n-grams themselves: a fifteenth of the bytes of `components`, which a decision
    would have to fetch from memory."""

    def __post_init__(self) -> None:
        components = self.representation.components
        of_text = self.slopes[len(self.representation.mean) :]
        object.__setattr__(self, "_of_grams", components @ of_text)

    @property
    def tiers(self) -> int:
        return len(self.intercepts)

    def predict(self, x: Floats) -> Floats:
        return within_chances(self.raw(x))

    def raw(self, x: Floats) -> Floats:
        """Before it is made a chance, shape (m, tiers)."""
        counts, grams = self.representation.parts(x)
        return counts @ self.slopes[: counts.shape[1]] + grams @ self._of_grams + self.intercepts

    def arrays(self) -> Arrays:
        own = {name: getattr(self, name) for name in ("slopes", "intercepts", "penalties")}
        return {**own, **self.representation.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        representation = Representation.from_arrays(arrays)
        slopes, intercepts = arrays["slopes"], arrays["intercepts"]
        if slopes.shape != (representation.width, *intercepts.shape) or intercepts.ndim != 1:
            raise ValueError(f"slopes of shape {slopes.shape} do not fit the representation")
        return cls(representation, slopes, intercepts, arrays["penalties"])


@dataclass(frozen=True, slots=True)
class RidgeSuccess(LinearSuccess):
    """What `RidgeGain` learned."""

    kind: ClassVar[str] = "ridge_gain"


@dataclass(frozen=True, slots=True)
class LogisticSuccess(LinearSuccess):
    """What `Logistic` learned; the linear functions give log-odds."""

    kind: ClassVar[str] = "logistic"

    def predict(self, x: Floats) -> Floats:
        return _sigmoid(self.raw(x))


@dataclass(frozen=True, slots=True)
class RidgeGain:
    """Ridge regression on the gain of each tier, not on its success.

    Routing asks by how much a larger tier is better. What makes all tiers fail alike is noise to
    that question, and a model of success spends its strength on it.

    Args:
        hashed: Widths of the hashed blocks at the end of the features.
        over: Gains of each tier over the smallest, or over its neighbour below. They differ
            where each has a penalty of its own, and where few calls were given to all tiers.
        dimensions: Of the text block.
        seed: Of its random projection.
    """

    hashed: tuple[int, ...] = ()
    over: Literal["smallest", "neighbour"] = "smallest"
    dimensions: int = DIMENSIONS
    seed: int = 0

    def fit(self, x: Floats, y: Floats, weights: Floats | None = None) -> RidgeSuccess:
        """As `Estimator.fit`. A tier that shares no call with the one below gets that one's
        chances, plus how the two differ on average."""
        y, w = checked(x, y, weights)
        representation = Representation.fit(
            x, self.hashed, w, dimensions=self.dimensions, seed=self.seed
        )
        z = representation(x).astype(np.float64)
        tiers = y.shape[1]
        slopes, intercepts = np.zeros((z.shape[1], tiers)), np.zeros(tiers)
        penalties = np.zeros(tiers)
        for tier in range(tiers):
            below = 0 if self.over == "smallest" else max(0, tier - 1)
            target = y[:, tier] - y[:, below] if tier else y[:, 0]
            known = ~np.isnan(target) & (w > 0)
            if known.any():
                slope, intercept, penalty = ridge(z[known], target[known], w[known])
            else:
                means = [np.average(column[~np.isnan(column)]) for column in y.T]
                slope, intercept, penalty = np.zeros(z.shape[1]), means[tier] - means[below], 0.0
            slopes[:, tier], intercepts[tier] = slope, intercept
            penalties[tier] = penalty
            if tier:
                slopes[:, tier] += slopes[:, below]
                intercepts[tier] += intercepts[below]
        return RidgeSuccess(representation, *_single(slopes, intercepts, penalties))


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression with an L2 penalty, one for each tier, by Newton's method.

    Args:
        hashed: Widths of the hashed blocks at the end of the features.
        dimensions: Of the text block.
        seed: Of its random projection.
    """

    hashed: tuple[int, ...] = ()
    dimensions: int = DIMENSIONS
    seed: int = 0

    def fit(self, x: Floats, y: Floats, weights: Floats | None = None) -> LogisticSuccess:
        """As `Estimator.fit`. A tier with outcomes of one kind gets one chance, short of 0 or 1."""
        y, w = checked(x, y, weights)
        representation = Representation.fit(
            x, self.hashed, w, dimensions=self.dimensions, seed=self.seed
        )
        z = representation(x).astype(np.float64)
        columns = []
        for tier in range(y.shape[1]):
            known = ~np.isnan(y[:, tier]) & (w > 0)
            columns.append(logistic(z[known], y[known, tier], w[known]))
        slopes, intercepts, penalties = zip(*columns, strict=True)
        return LogisticSuccess(
            representation,
            *_single(np.stack(slopes, axis=1), np.array(intercepts), np.array(penalties)),
        )


def ridge(z: Floats, y: Floats, w: Floats) -> tuple[Floats, float, float]:
    """Least squares with a penalty on the slopes, chosen by leave-one-out.

    The error of each row when the rest is fitted is its residual over one minus its leverage
    (Allen's PRESS, Technometrics 16, 1974), so that one SVD serves all rows and penalties.

    Args:
        z: Shape (n, columns).
        y: Shape (n,).
        w: Weights above 0, shape (n,).

    Returns:
        Slopes (columns,), intercept, and the penalty per row. Of penalties that do equally well,
        the largest.
    """
    total, root = w.sum(), np.sqrt(w)
    centre, mean = w @ z / total, float(w @ y / total)
    left, sizes, right = np.linalg.svd((z - centre) * root[:, None], full_matrices=False)
    target = (y - mean) * root
    along = left.T @ target
    best, found = np.inf, (np.zeros(z.shape[1]), mean, PENALTIES[0])
    for penalty in PENALTIES:
        kept = sizes**2 / (sizes**2 + penalty * total)
        leverage = left**2 @ kept + w / total
        misses = (target - left @ (kept * along)) / np.maximum(1 - leverage, 1e-9)
        error = float(misses @ misses / total)
        if error < best * (1 - 1e-9):
            slopes = right.T @ (sizes / (sizes**2 + penalty * total) * along)
            best, found = error, (slopes, mean - float(centre @ slopes), penalty)
    return found


def logistic(z: Floats, y: Floats, w: Floats) -> tuple[Floats, float, float]:
    """Slopes, intercept and penalty, as `ridge`, of the log-odds of ``y`` in 0..1.

    The leave-one-out loss is that of one Newton step from the fit of all rows (Rad and Maleki,
    JRSS B 82, 2020, arXiv 1801.10242).
    """
    total = w.sum()
    rate = float((w @ y + 0.5) / (total + 1))
    beta = np.zeros(z.shape[1] + 1)
    beta[-1] = np.log(rate / (1 - rate))
    best, found = np.inf, (beta[:-1], float(beta[-1]), PENALTIES[0])
    if y.min() == y.max():
        return found
    ones = np.hstack((z, np.ones((len(z), 1))))
    for penalty in PENALTIES:
        ridge_of = np.full(len(beta), penalty * total / 4)  # a row's curvature is at most 1/4
        ridge_of[-1] = 0.0
        beta, inverse = _newton(ones, y, w, beta, ridge_of)
        chance = _sigmoid(ones @ beta)
        spread = np.einsum("ij,jk,ik->i", ones, inverse, ones)
        step = spread * w * (chance - y)
        step /= np.maximum(1 - spread * w * chance * (1 - chance), 1e-9)
        loss = float(w @ _loss(ones @ beta + step, y) / total)
        if loss < best * (1 - 1e-9):
            best, found = loss, (beta[:-1], float(beta[-1]), penalty)
    return found


def _newton(
    ones: Floats, y: Floats, w: Floats, beta: Floats, ridge_of: Floats
) -> tuple[Floats, Floats]:
    """The minimum of the penalised loss, and the inverse of its second derivative there."""

    def cost(at: Floats) -> float:
        return float(w @ _loss(ones @ at, y) + 0.5 * ridge_of @ at**2)

    now = cost(beta)
    for _ in range(_NEWTON_STEPS):
        chance = _sigmoid(ones @ beta)
        curvature = w * np.maximum(chance * (1 - chance), 1e-9)
        inverse = np.linalg.pinv(
            (ones * curvature[:, None]).T @ ones + np.diag(ridge_of), hermitian=True
        )
        step = inverse @ (ones.T @ (w * (chance - y)) + ridge_of * beta)
        size = 1.0
        while (after := cost(beta - size * step)) > now and size > 1e-6:
            size /= 2
        if not now - after > 1e-9 * (1 + abs(now)):
            break
        beta, now = beta - size * step, after
    return beta, inverse


def _loss(log_odds: Floats, y: Floats) -> Floats:
    return np.logaddexp(0.0, log_odds) - y * log_odds


def _sigmoid(log_odds: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -log_odds))


def _single(*values: Floats) -> list[Floats]:
    return [value.astype(np.float32) for value in values]

"""What every way of learning success from outcomes has in common.

An `Estimator` is a recipe: it learns from features and outcomes. What it learned is a
`SuccessPredictor`, which is small, needs NumPy alone, and can be stored (`estimators_store`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

Arrays = Mapping[str, NDArray[Any]]
"""What a predictor is stored as."""


class SuccessPredictor(Protocol):
    """Each tier's chance of success on a call, from its features."""

    kind: ClassVar[str]
    """Name in a file; a new one for every change of what the arrays mean."""

    @property
    def tiers(self) -> int:
        """How many it knows, the cheapest first."""

    def predict(self, x: Floats) -> Floats:
        """Chances in 0..1, shape (m, tiers), of features of shape (m, features).

        Raises:
            ConfigError: Not as many features as it was fitted on.
        """

    def arrays(self) -> Arrays:
        """All that `from_arrays` needs."""

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """The predictor that had these arrays.

        Raises:
            KeyError, ValueError: One is missing or has the wrong shape.
        """


class Estimator(Protocol):
    """A way to learn."""

    def fit(self, x: Floats, y: Floats, weights: Floats | None = None) -> SuccessPredictor:
        """Learns from n calls.

        Args:
            x: Features, shape (n, features).
            y: Outcomes, shape (n, tiers), the cheapest tier first: 1 for success, 0 for
                failure, NaN where the tier was not asked.
            weights: Of the rows, shape (n,); all alike by default.

        Raises:
            ConfigError: Shapes that do not match, values that cannot be, or a tier without a
                single outcome.
        """


def checked(x: Floats, y: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Outcomes and weights in 64 bits, once they and the features make sense.

    Raises:
        ConfigError: As `Estimator.fit`.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not y.size:
        raise ConfigError(
            "features must have the shape (n, features) and outcomes (n, tiers) with the same n > "
            f"0, got {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise ConfigError("features must be finite; some are NaN or infinite")
    y = y.astype(np.float64)
    known = ~np.isnan(y)
    if not ((y[known] >= 0) & (y[known] <= 1)).all():
        raise ConfigError("outcomes must lie in 0..1, or be NaN where a tier was not asked")
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (len(y),) or not np.isfinite(w).all() or (w < 0).any():
        raise ConfigError(f"weights must be {len(y)} numbers of at least 0")
    for tier in range(y.shape[1]):
        if not w[known[:, tier]].sum() > 0:
            raise ConfigError(
                f"tier {tier} has no outcome to learn from. Measure it on some calls, or leave "
                "it out."
            )
    return y, w


def within_chances(raw: Floats) -> Floats:
    """Rows of success as chances in 0..1, with the differences between tiers as they are.

    Routing rests on the differences. So a row that sticks out is moved as a whole, and is cut
    only where it is longer than 1.
    """
    low = np.minimum(raw.min(axis=1, keepdims=True), 0.0)
    high = np.maximum(raw.max(axis=1, keepdims=True), 1.0) - 1.0
    chances: Floats = np.clip(raw - low - high, 0.0, 1.0)
    return chances

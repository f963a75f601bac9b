"""Are calls still of the kind that a calibration was made on?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

BINS = 10
SIGNIFICANT = 0.001
"""p-values below this are no chance, even if one looks every week."""

MODERATE = 0.1
"""Population stability index from which a shift matters (0.1 moderate, 0.25 large)."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far recent scores are from those of the calibration.

    Attributes:
        psi: Population stability index of the column that moved most, less what chance adds.
        p_value: Kolmogorov–Smirnov, times the number of columns.
        n: Recent rows.
        drifted: Whether the shift is both beyond chance and large enough to matter.
        reason: In one English sentence.
    """

    psi: float
    p_value: float
    n: int
    drifted: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def drift(reference: Floats, recent: Floats) -> Drift:
    """Compares scores (predicted chances, or any numbers that calls have).

    Args:
        reference: Of the calibration, shape (n,) or (n, columns).
        recent: Of late, shape (m,) or (m, columns).

    Raises:
        ConfigError: Shapes that do not match, or no rows.
    """
    a, b = (x[:, None] if x.ndim == 1 else x for x in (reference, recent))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ConfigError(
            f"drift compares rows of the same columns, got {reference.shape} and {recent.shape}"
        )
    columns = list(zip(a.T, b.T, strict=True))
    psi = max(stability_index(old, new) for old, new in columns)
    p = min(1.0, len(columns) * min(kolmogorov_smirnov(old, new) for old, new in columns))
    drifted = p < SIGNIFICANT and psi > MODERATE
    said = "recent calls differ from" if drifted else "recent calls are like"
    reason = f"{said} those of the calibration (PSI {psi:.2f}, p = {p:.2g}, {len(b)} calls)"
    return Drift(psi, p, len(b), drifted, reason)


def stability_index(reference: Floats, recent: Floats, bins: int = BINS) -> float:
    """Population stability index: the symmetric KL, in nats, between shares of both in bins that
    hold equally many of the reference. What chance alone adds on average is taken off (Yurdakul,
    2018: PSI is chi-squared over n, in expectation (bins - 1)(1/n + 1/m))."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (reference, recent):
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        shares.append((counts + 0.5) / (len(values) + 0.5 * len(counts)))
    old, new = shares
    chance = len(edges) * (1 / len(reference) + 1 / len(recent))
    return max(0.0, float((new - old) @ np.log(new / old)) - chance)


def kolmogorov_smirnov(reference: Floats, recent: Floats) -> float:
    """p-value of the two-sample test, by Kolmogorov's limit with Stephens' correction for few rows
    (JRSS B 32, 1970). With equal values it errs on the side of no drift."""
    every = np.sort(np.concatenate((reference, recent)))
    steps = [np.searchsorted(np.sort(x), every, side="right") / len(x) for x in (reference, recent)]
    distance = float(np.abs(steps[0] - steps[1]).max())
    size = math.sqrt(len(reference) * len(recent) / (len(reference) + len(recent)))
    at = (size + 0.12 + 0.11 / size) * distance
    if at < 0.3:
        return 1.0
    terms = [math.exp(-2 * k * k * at * at) for k in range(1, 50)]
    return min(1.0, max(0.0, 2 * (sum(terms[::2]) - sum(terms[1::2]))))

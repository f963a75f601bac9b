"""A quality floor with a promise: the threshold of routing that keeps it, on calls of one kind.

Learn then test (Angelopoulos et al., arXiv 2110.01052): every threshold is a hypothesis "the floor
is missed", tested on calibration calls from the most careful threshold on to the cheapest, until
one cannot be rejected (fixed-sequence testing, which needs no correction for their number). The
last one rejected keeps the floor with the given confidence, whatever the predictions are worth:
bad ones only make it careful.

The promise is on average over calls, not for each, and for calls that are exchangeable with those
it was made on; `drift` finds that they no longer are.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.bootstrap import group_numbers
from tierwise.routing.controls import cheapest_that_will_do
from tierwise.routing.drift import Drift
from tierwise.routing.pvalues import PVALUES, PValue
from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

THRESHOLDS = tuple(round(1 - step / 50, 2) for step in range(51))
"""From the most careful to the cheapest. They must not be chosen by what they are tested on."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What can be promised, or why nothing can.

    Attributes:
        threshold: The quality to route with (`Budget.quality`); None without a promise.
        floor: Share of the reference tier's successes (or of all calls) that is promised.
        confidence: Chance, over calibrations, that the promise is true.
        n: Different prompts that it rests on.
        method: Name of the test.
        reached: What the floor is a floor of, on these prompts; NaN without a promise.
        reason: In one English sentence.
    """

    threshold: float | None
    floor: float
    confidence: float
    n: int
    method: str
    reached: float
    reason: str

    @property
    def holds(self) -> bool:
        """Whether there is a promise."""
        return self.threshold is not None

    def after(self, drift: Drift) -> Guarantee:
        """The same, or none if the calls are of another kind by now."""
        if not self.holds or not drift.drifted:
            return self
        reason = f"void: {drift.reason}. Calibrate again on calls as they are now"
        return replace(self, threshold=None, reached=math.nan, reason=reason)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def guarantee(
    predicted: Floats,
    outcomes: Floats,
    cost: Floats,
    *,
    floor: float,
    confidence: float = 0.95,
    reference: int | None = -1,
    groups: Sequence[Hashable] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    method: str | None = None,
    seed: int = 0,
) -> Guarantee:
    """The lowest threshold with which routing keeps the floor.

    With a threshold of t, a call goes to the cheapest tier whose predicted chance is at least t
    times its best tier's.

    Args:
        predicted: Chances, shape (n, tiers), of calls that nothing was learned from.
        outcomes: 0 or 1, shape (n, tiers); calls that some tier was not asked are left out.
        cost: Shape (tiers,) or (n, tiers).
        floor: Above 0 and below 1.
        confidence: Between 0 and 1.
        reference: Number of the tier that the floor is a share of, the last by default: routing's
            successes are expected to be at least ``floor`` times that tier's. None for a share of
            all calls.
        groups: Of the prompts. Copies of one count as one call, with their mean loss.
        thresholds: In the order in which they are tested, chosen beforehand.
        method: Of `PVALUES`. By default the exact "binomial" where every loss is 0 or 1, else
            "betting", which needs the fewest calls of the others.
        seed: Of the calls' random order.

    Raises:
        ConfigError: Shapes that do not match, a floor, confidence or method that cannot be, or
            "binomial" where losses are not 0 or 1.
    """
    if predicted.ndim != 2 or predicted.shape != outcomes.shape:
        raise ConfigError(
            f"predictions and outcomes must have the same shape (n, tiers), got {predicted.shape} "
            f"and {outcomes.shape}"
        )
    if not 0 < floor < 1 or not thresholds:
        raise ConfigError(f"a floor must be above 0 and below 1, and be tested; got {floor}")
    known = np.flatnonzero(~np.isnan(outcomes).any(axis=1))
    names = list(range(len(outcomes))) if groups is None else list(groups)
    numbers = group_numbers([names[i] for i in known])
    y = outcomes[known].astype(np.float64)
    spent = np.broadcast_to(np.asarray(cost, np.float64), outcomes.shape)[known]
    every = np.arange(len(y))
    choices = [cheapest_that_will_do(predicted[known], spent, t) for t in thresholds]
    # The last row is the best that any threshold could do, or the reference.
    best = y.max(axis=1) if reference is None else y[:, reference]
    right = _by_group(np.array([*(y[every, choice] for choice in choices), best]), numbers, seed)
    n = right.shape[1]
    if reference is None:
        bound, losses = 1 - floor, 1 - right
    else:
        # A call loses ``floor`` where only the reference is right and gains 1 where only the
        # choice is: from -1 to ``floor``, here moved and stretched to 0..1.
        bound, losses = 1 / (1 + floor), (floor * right[-1] - right + 1) / (1 + floor)
    method = method or ("binomial" if np.isin(losses, (0.0, 1.0)).all() else "betting")
    pvalue = _pvalue(method, losses)
    at, p = last_rejected(losses[:-1], bound, confidence, pvalue)
    if at is None:
        reason = _why_not(losses[-1], bound, confidence, pvalue, p)
        return Guarantee(None, floor, confidence, n, method, math.nan, reason)
    whole = n if reference is None else right[-1].sum()
    reached = float(right[at].sum() / whole) if whole else math.inf
    share = "of all calls were right" if reference is None else "of the reference tier's successes"
    reason = (
        f"{reached:.1%} {share} on {n} different prompts, so at least {floor:.0%} with "
        f"{confidence:.0%} confidence on calls of the same kind"
    )
    return Guarantee(float(thresholds[at]), floor, confidence, n, method, reached, reason)


def last_rejected(
    losses: Floats, bound: float, confidence: float, pvalue: PValue
) -> tuple[int | None, float]:
    """Fixed-sequence testing: the last hypothesis "the mean loss is above the bound" before the
    first that cannot be rejected, and the p-value at which it ended.

    Args:
        losses: In 0..1, shape (hypotheses, n), in the order of testing.
        bound: On the mean loss.
        confidence: That no rejection is false.
        pvalue: See `pvalues`.

    Returns:
        Its number, None if even the first cannot be rejected.

    Raises:
        ConfigError: The confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    last, p = None, 1.0
    for number, row in enumerate(losses):
        p = pvalue(row, bound) if len(row) else 1.0
        if p > 1 - confidence:
            break
        last = number
    return last, p


def _by_group(rows: Floats, numbers: NDArray[np.intp], seed: int) -> Floats:
    """Means of the groups, in random order."""
    means = np.array([np.bincount(numbers, row) for row in rows]) / np.bincount(numbers)
    return means[:, np.random.default_rng(seed).permutation(means.shape[1])]


def _pvalue(method: str, losses: Floats) -> PValue:
    if method not in PVALUES:
        raise ConfigError(f"method must be one of {', '.join(PVALUES)}, got {method!r}")
    if method == "binomial" and not np.isin(losses, (0.0, 1.0)).all():
        raise ConfigError(
            "method='binomial' needs losses of 0 or 1: a floor relative to a tier, and copies of a "
            "prompt with different outcomes, have others. Use 'betting'."
        )
    return PVALUES[method]


def _why_not(best: Floats, bound: float, confidence: float, pvalue: PValue, first: float) -> str:
    """Whether more calls would help, or better predictions."""
    n = len(best)
    if n and best.mean() >= bound:
        return f"the floor is above what even the best choice reaches on {n} different prompts"
    at_best = pvalue(best, bound) if n else 1.0
    if at_best <= 1 - confidence:
        return (
            f"the floor cannot be shown to be kept even by the most careful threshold (p = "
            f"{first:.2g} on {n} different prompts): the predictions are too far off"
        )
    if at_best >= 1:
        return f"{n} different prompts are too few to show anything"
    needed = math.ceil(n * math.log(1 - confidence) / math.log(at_best))
    return (
        f"{n} different prompts are too few: even the best choice could not be shown to keep the "
        f"floor, which takes some {needed}"
    )

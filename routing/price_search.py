"""The price of a second (λ) with which routing keeps to an average, found on judged calls.

With a price of λ a call goes to the tier of the best predicted chance less λ times its seconds.
Which tier that is changes only at the prices at which two tiers are worth the same for some call,
so that one price between any two neighbours of these stands for all there is to choose from. Of
all ways to spend so many seconds, a single price for all calls gets the most out of them (it is
the multiplier of the constraint), if the chances are honest.

What is found is what these calls came to, without a margin for chance: `risk` makes promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

MOST = 512
"""Prices that are tried; of more, as many, evenly taken."""

_EDGE = 1e-9


@dataclass(frozen=True, slots=True)
class Price:
    """Of a second, in right answers.

    Attributes:
        per_second: Above 0.
        seconds: Of the calls it was found on, routed with it, on average.
        right: Share of these calls that are answered rightly then.
        kept: The same as a share of the best tier's; 1 if that has none.
        n: Calls.
        met: Whether what was asked for is kept.
        reason: In English, to be told with decisions.
    """

    per_second: float
    seconds: float
    right: float
    kept: float
    n: int
    met: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def best_value(
    predicted: Floats, cost: Floats, price: float, quality: float = 0.0
) -> NDArray[np.intp]:
    """Each call's tier of the best chance less price times cost, of equals the cheaper: what
    `feasible_first` decides where all tiers are feasible and seconds have a price.

    Args:
        predicted: Chances, shape (n, tiers).
        cost: Shape (n, tiers).
        price: Of a unit of cost.
        quality: Floor, as in `Budget`.
    """
    good = predicted >= quality * predicted.max(axis=1, keepdims=True) - _EDGE
    value = np.where(good, predicted - price * cost, -np.inf)
    best = value >= value.max(axis=1, keepdims=True) - 1e-12
    chosen: NDArray[np.intp] = np.argmin(np.where(best, cost, np.inf), axis=1)
    return chosen


def price_for_seconds(
    predicted: Floats,
    outcomes: Floats,
    cost: Floats,
    most: float,
    *,
    reference: int = -1,
    quality: float = 0.0,
) -> Price:
    """The smallest price with which calls take at most so many seconds on average.

    Where even the cheapest tiers take more, a price that leaves no others.

    Args:
        predicted: Chances, shape (n, tiers).
        outcomes: 0 or 1, of the same shape; only what is told of the price rests on them.
        cost: Seconds, of the same shape.
        most: Seconds, above 0.
        reference: Number of the best tier.
        quality: Floor, as in `Budget`.

    Raises:
        ConfigError: Shapes that do not match, or no calls.
    """
    tried = list(_tried(predicted, outcomes, cost, reference, quality))
    quick = (one for one in tried if one[1] <= most + _EDGE)
    price, seconds, right, kept = next(quick, tried[-1])
    n, met = len(predicted), seconds <= most + _EDGE
    if met:
        reason = (
            f"a second is priced at {price:.3g}, with which calibration's {n} calls take "
            f"{seconds:.2f} s on average, {right:.0%} of them right"
        )
    else:
        reason = (
            f"{most:.2f} s on average cannot be kept: the cheapest tiers that may be asked take "
            f"{seconds:.2f} s on calibration's {n} calls"
        )
    return Price(price, seconds, right, kept, n, met, reason)


def price_for_quality(
    predicted: Floats, outcomes: Floats, cost: Floats, share: float, *, reference: int = -1
) -> Price:
    """The largest price with which so much of the best tier's successes is kept.

    Where none keeps it, the one that keeps most (of equals, the largest).

    Args:
        predicted: Chances, shape (n, tiers).
        outcomes: 0 or 1, of the same shape.
        cost: Seconds, of the same shape.
        share: Of the reference tier's successes, above 0 and up to 1.
        reference: Number of the best tier.

    Raises:
        ConfigError: Shapes that do not match, or no calls.
    """
    tried = list(_tried(predicted, outcomes, cost, reference, 0.0))
    keeping = [one for one in tried if one[3] >= share - _EDGE]
    price, seconds, right, kept = keeping[-1] if keeping else max(tried, key=lambda t: (t[3], t[0]))
    n = len(predicted)
    reason = (
        f"a second is priced at {price:.3g}, with which calibration's {n} calls keep {kept:.0%} of "
        f"the best tier's successes in {seconds:.2f} s on average"
    )
    if not keeping:
        reason += f"; {share:.0%} cannot be kept"
    return Price(price, seconds, right, kept, n, bool(keeping), reason)


def _tried(
    predicted: Floats, outcomes: Floats, cost: Floats, reference: int, quality: float
) -> Iterator[tuple[float, float, float, float]]:
    """(price, mean seconds, share of calls right, that share of the reference tier's), from the
    lowest price to the highest."""
    if predicted.ndim != 2 or not predicted.shape == outcomes.shape == cost.shape:
        raise ConfigError(
            "chances, outcomes and costs must have the same shape (n, tiers), got "
            f"{predicted.shape}, {outcomes.shape} and {cost.shape}"
        )
    if not len(predicted):
        raise ConfigError(
            "a price is found on calls that calibration has judged, and there are none: run "
            "tierwise calibrate with more prompts"
        )
    every = np.arange(len(predicted))
    best = float(outcomes[:, reference].mean())
    for price in _between(predicted, cost):
        choice = best_value(predicted, cost, price, quality)
        right = float(outcomes[every, choice].mean())
        yield price, float(cost[every, choice].mean()), right, right / best if best else 1.0


def _between(predicted: Floats, cost: Floats) -> list[float]:
    """One price below all those at which two tiers are worth the same for some call, one above
    them, and one between any two; rising."""
    edges = []
    for one, other in combinations(range(predicted.shape[1]), 2):
        with np.errstate(divide="ignore", invalid="ignore"):
            edges.append(
                (predicted[:, one] - predicted[:, other]) / (cost[:, one] - cost[:, other])
            )
    all_of_them = np.concatenate([*edges, np.zeros(0)])
    known = np.unique(all_of_them[np.isfinite(all_of_them) & (all_of_them > 0)])
    if not len(known):
        return [1.0]  # whatever it is: no tier is both better and dearer than another
    if len(known) > MOST:
        known = known[np.linspace(0, len(known) - 1, MOST).astype(np.intp)]
    between: list[float] = ((known[1:] + known[:-1]) / 2).tolist()
    return [float(known[0]) / 2, *between, 2 * float(known[-1])]

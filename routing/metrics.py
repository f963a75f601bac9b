"""Quality against cost: what a router gains over always asking the same tier.

All measures come from one sweep. A price is set on cost, and each call goes to the tier of the best
predicted success less price times cost. From an infinite price (every call to its cheapest tier)
down to an infinitely negative one (every call to its dearest) calls move up one by one, those of
the same price together; where the sweep stops halfway through such a group, its share of them is
drawn at random (ties are split).

With two tiers and a cost of 0 and 1 this is RouteLLM's curve over the share of calls that go to
the strong model, and the area under it is its APGR: Ong et al., arXiv 2406.18665.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean cost and quality along a sweep, the cheapest first; straight between the points.

    Attributes:
        cost: Never falling, shape (points,).
        quality: Shape (points,).
    """

    cost: Floats
    quality: Floats

    def area(self) -> float:
        """Mean share of the gap in quality between both ends that is recovered, over all shares of
        the gap in cost (APGR for two tiers): 0.5 for a router that draws at random, 1 for one that
        has all of the gap at once; more is possible, as a small tier may be right where the large
        one is not. NaN if there is no gap."""
        rise = float(self.quality[-1] - self.quality[0])
        if self.cost[-1] <= self.cost[0] or rise <= 0:
            return math.nan
        return (self.height() - float(self.quality[0])) / rise

    def height(self) -> float:
        """Mean quality over all costs between the ends. On the same calls it ranks routers as
        `area` does, and is defined where the dearest tier is no better than the cheapest, too."""
        wide = float(self.cost[-1] - self.cost[0])
        if wide <= 0:
            return float(self.quality[-1])
        return float(np.sum(np.diff(self.cost) * (self.quality[1:] + self.quality[:-1])) / 2 / wide)


class Sweep:
    """All moves of a sweep, in the order of their price.

    Args:
        predicted: Success, or any score, shape (n, tiers).
        outcomes: Shape (n, tiers), all known.
        cost: Shape (tiers,) or (n, tiers), in any unit. Of one call, no two tiers may cost the
            same.

    Raises:
        ConfigError: Shapes that do not match, values that are not finite, or equal costs.
    """

    def __init__(self, predicted: Floats, outcomes: Floats, cost: Floats) -> None:
        cost = np.broadcast_to(np.asarray(cost, np.float64), predicted.shape)
        values = (predicted, outcomes, cost)
        if predicted.ndim != 2 or outcomes.shape != predicted.shape or not predicted.size:
            raise ConfigError(
                f"predictions and outcomes must have the same shape (n, tiers), got "
                f"{predicted.shape} and {outcomes.shape}"
            )
        if not all(np.isfinite(value).all() for value in values):
            raise ConfigError("predictions, outcomes and costs must all be known")
        order = np.argsort(cost, axis=1)
        cost = np.take_along_axis(cost, order, axis=1)
        if (np.diff(cost, axis=1) <= 0).any():
            raise ConfigError("two tiers cost the same on a call; a sweep cannot order them")
        predicted = np.take_along_axis(predicted.astype(np.float64), order, axis=1)
        outcomes = np.take_along_axis(outcomes.astype(np.float64), order, axis=1)
        self._start = cost[:, 0], outcomes[:, 0]
        rows, below, above, price = _moves(predicted, cost)
        by_price = np.argsort(-price, kind="stable")
        rows, below, above = rows[by_price], below[by_price], above[by_price]
        self._rows = rows
        self._dearer = cost[rows, above] - cost[rows, below]
        self._better = outcomes[rows, above] - outcomes[rows, below]
        first = np.flatnonzero(np.diff(price[by_price], prepend=np.inf))
        self._groups = first if len(first) else np.zeros(0, np.intp)
        self.n = len(predicted)

    def curve(self) -> Curve:
        """Over all calls once."""
        cost, quality = self._points(np.ones((1, self.n)))
        return Curve(cost[0], quality[0])

    def areas(self, counts: Floats) -> Floats:
        """`Curve.area` of every resample (rows of counts, shape (draws, n)): shape (draws,)."""
        cost, quality = self._points(counts)
        under = np.sum(np.diff(cost) * (quality[:, 1:] + quality[:, :-1]) / 2, axis=1)
        wide, high = cost[:, -1] - cost[:, 0], quality[:, -1] - quality[:, 0]
        defined = (wide > 0) & (high > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = (under - quality[:, 0] * wide) / (wide * high)
        return np.where(defined, area, np.nan)

    def _points(self, counts: Floats) -> tuple[Floats, Floats]:
        """Mean cost and quality after every group of moves, each of shape (draws, groups + 1)."""
        total = counts.sum(axis=1, keepdims=True)
        points = []
        for start, change in zip(self._start, (self._dearer, self._better), strict=True):
            first = counts @ start[:, None]
            moved = counts[:, self._rows] * change
            if len(self._groups):
                moved = np.add.reduceat(moved, self._groups, axis=1)
            points.append(np.cumsum(np.hstack((first, moved)), axis=1) / total)
        return points[0], points[1]


def _moves(
    predicted: Floats, cost: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], Floats]:
    """Row, tier left, tier taken and price of every move: the upper convex hull of each call's
    tiers (predicted over cost), from the cheapest to the dearest."""
    n, tiers = predicted.shape
    every = np.arange(n)
    at = np.zeros(n, np.intp)
    parts = []
    while (at < tiers - 1).any():
        going = every[at < tiers - 1]
        here = at[going]
        rise = predicted[going] - predicted[going, here][:, None]
        run = cost[going] - cost[going, here][:, None]
        ahead = np.arange(tiers) > here[:, None]
        price = np.where(ahead, rise / np.where(ahead, run, 1.0), -np.inf)
        best = price.max(axis=1, keepdims=True)
        # Of tiers in line the furthest: what is skipped lies on the straight piece anyway.
        to = tiers - 1 - np.argmax((price == best)[:, ::-1], axis=1)
        parts.append((going, here, to, best[:, 0]))
        at[going] = to
    if not parts:
        none = np.zeros(0, np.intp)
        return none, none, none, np.zeros(0)
    rows, below, above, prices = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, below, above, prices


def two_tiers(score: Floats, weak: Floats, strong: Floats) -> Sweep:
    """The sweep of calls by one score: those with the highest go to the strong model first.

    Args:
        score: Shape (n,), as all.
        weak: Whether the weak model was right, 0 or 1.
        strong: The same of the strong one.

    Raises:
        ConfigError: As `Sweep`.
    """
    predicted = np.stack((np.zeros(len(score)), score), axis=1)
    return Sweep(predicted, np.stack((weak, strong), axis=1), np.array([0.0, 1.0]))


def apgr(score: Floats, weak: Floats, strong: Floats) -> float:
    """Average performance gap recovered, over all shares of calls that go to the strong model.

    NaN if the strong model is no better than the weak one. Arguments and errors as `two_tiers`.
    """
    return two_tiers(score, weak, strong).curve().area()


def hull(cost: Floats, quality: Floats) -> Curve:
    """The non-decreasing convex hull: the best that mixtures of these points can reach.

    Args:
        cost: Of the points, shape (points,), in any order.
        quality: The same.

    Raises:
        ConfigError: There are no points, or the shapes differ.
    """
    if cost.ndim != 1 or cost.shape != quality.shape or not len(cost):
        raise ConfigError(f"points need cost and quality, got {cost.shape} and {quality.shape}")
    kept: list[tuple[float, float]] = []
    for c, q in sorted(
        zip(cost.tolist(), quality.tolist(), strict=True), key=lambda p: (p[0], -p[1])
    ):
        if kept and q <= kept[-1][1]:
            continue  # no better, and no cheaper
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], (c, q)):
            kept.pop()
        kept.append((c, q))
    costs, qualities = zip(*kept, strict=True)
    return Curve(np.array(costs), np.array(qualities))


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def aiq(
    cost: Floats, quality: Floats, lowest: float | None = None, most: float | None = None
) -> float:
    """Average improvement in quality: the mean height of the `hull` over a range of cost (Hu et
    al., RouterBench, arXiv 2403.12031). Beyond its ends the hull is level.

    Args:
        cost: Of a router's operating points, shape (points,).
        quality: The same.
        lowest: Start of the range; the cheapest point by default.
        most: Its end; the dearest point by default.

    Raises:
        ConfigError: As `hull`, or the range has no width.
    """
    best = hull(cost, quality)
    low = float(cost.min()) if lowest is None else lowest
    high = float(cost.max()) if most is None else most
    if not high > low:
        raise ConfigError(f"a range of cost from {low} to {high} has no width")
    inside = best.cost[(best.cost > low) & (best.cost < high)]
    at = np.concatenate(([low], inside, [high]))
    heights = np.interp(at, best.cost, best.quality)
    return float(np.sum(np.diff(at) * (heights[1:] + heights[:-1]) / 2) / (high - low))

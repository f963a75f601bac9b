"""Decisions of other kinds, to compare a router's with.

Each is a distribution over the tiers for every call, shape (n, tiers), so that what is drawn at
random is compared in expectation and not by one draw. ``routed`` is such an array of the router's
own decisions, ``y`` are outcomes (all known) and ``spent`` the cost of every call on every tier.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.metrics import hull
from tierwise.routing.representation import Floats

_STRATA = 5
"""Of calls that cost about the same."""


def cheapest_that_will_do(predicted: Floats, cost: Floats, quality: float) -> NDArray[np.intp]:
    """Each call's cheapest tier whose chance is at least that share of its best tier's: what
    `feasible_first` decides where all tiers are feasible.

    Args:
        predicted: Chances, shape (n, tiers).
        cost: Shape (tiers,) or (n, tiers).
        quality: As in `Budget`.
    """
    good = predicted >= quality * predicted.max(axis=1, keepdims=True) - 1e-9
    chosen: NDArray[np.intp] = np.argmin(np.where(good, cost, np.inf), axis=1)
    return chosen


def shuffled(routed: Floats, spent: Floats | None = None) -> Floats:
    """Routing's decisions exchanged among calls, in expectation over all exchanges.

    Args:
        spent: Exchange only among calls that cost about the same; None for among all.
    """
    strata = np.zeros(len(routed), np.intp) if spent is None else _strata(spent)
    member = (strata[:, None] == np.arange(strata.max() + 1)).astype(np.float64)
    means: Floats = (member.T @ routed) / np.maximum(member.sum(axis=0), 1)[:, None]
    return means[strata]


def _strata(spent: Floats) -> NDArray[np.intp]:
    """Calls by what their dearest tier costs; one stratum if that is the same for all."""
    dearest = spent.max(axis=1)
    edges = np.quantile(dearest, np.linspace(0, 1, _STRATA + 1)[1:-1])
    strata: NDArray[np.intp] = np.searchsorted(np.unique(edges), dearest, side="left")
    return strata


def by_length(routed: Floats, spent: Floats, lengths: Floats, seed: int) -> Floats:
    """As many calls to each tier; the longer the request, the dearer its tier."""
    chance = np.random.default_rng(seed).random(len(lengths))  # equal lengths in any order
    rising = np.lexsort((chance, lengths))
    by_cost = np.argsort(spent.mean(axis=0))
    tier_of_rank = np.repeat(by_cost, routed.sum(axis=0).astype(np.intp)[by_cost])
    share = np.zeros_like(routed)
    share[rising, tier_of_rank] = 1.0
    return share


def fixed_mix(routed: Floats, y: Floats, spent: Floats) -> Floats:
    """The same shares for every call: those of the fixed tiers' hull at routing's cost."""
    quality, cost = y.mean(axis=0), spent.mean(axis=0)
    best = hull(cost, quality)
    ends = [
        int(np.flatnonzero((cost == c) & (quality == q))[0])
        for c, q in zip(best.cost, best.quality, strict=True)
    ]
    at = np.interp((routed * spent).sum(axis=1).mean(), best.cost, np.arange(len(ends)))
    below = min(int(at), len(ends) - 1)
    share = np.zeros(len(cost))
    share[ends[below]] += 1 - (at - below)
    if at > below:
        share[ends[below + 1]] += at - below
    return np.tile(share, (len(y), 1))


def worth_of_cost(mix: Floats, y: Floats, spent: Floats) -> float:
    """Quality per unit of cost along the mixture; 0 at an end of the hull."""
    used = np.flatnonzero(mix[0])
    if len(used) < 2:
        return 0.0
    (q1, q2), (c1, c2) = y.mean(axis=0)[used], spent.mean(axis=0)[used]
    return float((q2 - q1) / (c2 - c1))


def oracle(y: Floats, spent: Floats) -> NDArray[np.intp]:
    """The cheapest tier that is right; where none is, the cheapest."""
    right = np.where(y >= y.max(axis=1, keepdims=True), spent, np.inf)
    chosen: NDArray[np.intp] = np.argmin(right, axis=1)
    return chosen

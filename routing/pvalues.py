"""How unlikely losses as small as these would be if the mean loss were above a bound.

All take losses in 0..1 of n exchangeable calls and a bound in 0..1, and return a p-value that is
valid for every n: nothing here is "for large samples".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tierwise.routing.representation import Floats

PValue = Callable[[Floats, float], float]


def binomial(losses: Floats, bound: float) -> float:
    """The exact one, for losses that are 0 or 1: P(Binomial(n, bound) <= failures)."""
    return binomial_cdf(round(float(losses.sum())), len(losses), bound)


def hoeffding_bentkus(losses: Floats, bound: float) -> float:
    """The smaller of the bounds of Hoeffding and of Bentkus (Bates et al., JACM 68, 2021; used in
    arXiv 2110.01052), for any losses in 0..1. It does not know that losses vary little."""
    n, mean = len(losses), float(losses.mean())
    if mean >= bound:
        return 1.0
    hoeffding = math.exp(-n * _divergence(mean, bound))
    # Rounding up must not be thrown off by a sum of 3.0000000000000004.
    bentkus = math.e * binomial_cdf(math.ceil(n * mean - 1e-9), n, bound)
    return min(1.0, hoeffding, bentkus)


def betting(losses: Floats, bound: float) -> float:
    """One over the most that a gambler ever owned who started with 1 and, call by call, bet at
    fair odds that the mean loss is below the bound (Waudby-Smith and Ramdas, JRSS B 86, 2024,
    arXiv 2010.09686).

    The stakes follow the variance seen so far, so that losses that vary little need few calls.
    The calls must be in random order.
    """
    n = len(losses)
    if not n or not 0 < bound < 1:
        return float(not n or bound <= 0)
    seen = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(losses)) / (seen + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (seen + 1)
    before = np.concatenate(([0.25], variance[:-1]))
    stake = np.minimum(np.sqrt(2 * math.log(1 / _AIM) / (n * before)), 0.75 / (1 - bound))
    owned = np.cumsum(np.log1p(stake * (bound - losses)))
    return float(min(1.0, math.exp(-float(owned.max(initial=0.0)))))


PVALUES: dict[str, PValue] = {
    "binomial": binomial,
    "hoeffding_bentkus": hoeffding_bentkus,
    "betting": betting,
}

_AIM = 0.05
"""The p-value that the stakes are best for; it is valid whatever is wanted."""


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k), by summing its terms."""
    if k >= n:
        return 1.0
    if k < 0:
        return 0.0
    if p <= 0 or p >= 1:
        return float(p <= 0)
    at = np.arange(k + 1)
    steps = np.log(n - at[:-1]) - np.log(at[1:]) + math.log(p) - math.log1p(-p)
    terms = n * math.log1p(-p) + np.concatenate(([0.0], np.cumsum(steps)))
    most = float(terms.max())
    return min(1.0, math.exp(most) * float(np.exp(terms - most).sum()))


def _divergence(a: float, b: float) -> float:
    """KL of Bernoulli(a) from Bernoulli(b), nats; a < b."""
    if b >= 1:
        return math.inf
    left = a * math.log(a / b) if a > 0 else 0.0
    right = (1 - a) * math.log((1 - a) / (1 - b))
    return left + right

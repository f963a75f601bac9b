"""The price of a second that keeps to an average, against trying a great many prices."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from tierwise.routing import price_search
from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import feasible_first
from tierwise.routing.price_search import best_value, price_for_quality, price_for_seconds
from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

MANY = np.geomspace(1e-4, 1e3, 20_001)
"""Prices to try one by one."""


def made(seed: int, n: int = 60, tiers: int = 3) -> tuple[Floats, Floats, Floats]:
    """Chances, outcomes drawn from them, and seconds that rise with the tier."""
    rng = np.random.default_rng(seed)
    predicted = np.sort(rng.random((n, tiers)), axis=1).round(2)
    outcomes = (rng.random((n, tiers)) < predicted).astype(float)
    cost = np.cumsum(rng.uniform(0.2, 2.0, (n, tiers)), axis=1)
    return predicted, outcomes, cost


def came_to(data: tuple[Floats, Floats, Floats], price: float) -> tuple[float, float]:
    """Mean seconds, and share of the last tier's successes, by the definition of the price."""
    predicted, outcomes, cost = data
    seconds, right = [], []
    for p, y, c in zip(predicted, outcomes, cost, strict=True):
        at = max(range(len(p)), key=lambda i: (p[i] - price * c[i], -c[i]))
        seconds.append(c[at])
        right.append(y[at])
    return float(np.mean(seconds)), float(np.mean(right) / outcomes[:, -1].mean())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_no_smaller_price_meets_the_seconds(seed: int, share: float) -> None:
    data = made(seed)
    cheapest, dearest = data[2].min(axis=1).mean(), data[2].max(axis=1).mean()
    most = cheapest + share * (dearest - cheapest)
    found = price_for_seconds(*data, most)
    seconds, kept = came_to(data, found.per_second)
    assert found.met and seconds <= most
    assert found.seconds == pytest.approx(seconds) and found.kept == pytest.approx(kept)
    # Trying prices from the smallest on, the first that meets it comes to the same.
    first = next(came_to(data, p) for p in MANY[::20] if came_to(data, p)[0] <= most)
    assert first[0] <= found.seconds + 1e-9
    smaller = MANY[found.per_second > MANY][::20]
    better = [came_to(data, p) for p in smaller]
    assert all(s > most or s == pytest.approx(found.seconds) for s, _ in better)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.7, 0.9, 0.97])
def test_no_larger_price_keeps_the_quality(seed: int, share: float) -> None:
    data = made(seed)
    found = price_for_quality(*data, share)
    seconds, kept = came_to(data, found.per_second)
    assert found.seconds == pytest.approx(seconds) and found.kept == pytest.approx(kept)
    assert found.met == (kept >= share - 1e-9)
    tried = [came_to(data, p) for p in MANY[found.per_second < MANY][::20]]
    if found.met:
        assert all(k < share - 1e-9 or s == pytest.approx(found.seconds) for s, k in tried)
    else:
        assert all(k <= found.kept + 1e-9 for _, k in tried)


def test_seconds_that_even_the_cheapest_tiers_exceed() -> None:
    data = made(0)
    cheapest = data[2].min(axis=1).mean()
    found = price_for_seconds(*data, cheapest / 2)
    assert not found.met and found.seconds == pytest.approx(cheapest)
    assert found.reason.startswith(f"{cheapest / 2:.2f} s on average cannot be kept")
    assert f"{cheapest:.2f} s on calibration's 60 calls" in found.reason


def test_ample_seconds_cost_next_to_nothing() -> None:
    data = made(1)
    found = price_for_seconds(*data, 1000.0)
    best = data[0] >= data[0].max(axis=1, keepdims=True)
    assert found.met and found.seconds == pytest.approx(
        np.where(best, data[2], np.inf).min(axis=1).mean()
    )


def test_a_quality_that_no_price_keeps_is_told() -> None:
    """Predictions that are upside down: the tier that they praise is never right."""
    predicted = np.tile([0.9, 0.1], (20, 1))
    outcomes = np.tile([0.0, 1.0], (20, 1))
    found = price_for_quality(predicted, outcomes, np.tile([1.0, 2.0], (20, 1)), 0.9)
    assert not found.met and found.kept == 0.0 and found.reason.endswith("90% cannot be kept")


def test_a_best_tier_that_is_never_right_asks_for_nothing() -> None:
    predicted, outcomes, cost = made(2)
    found = price_for_quality(predicted, np.zeros_like(outcomes), cost, 0.9)
    assert found.met and found.kept == 1.0
    assert found.seconds == pytest.approx(cost.min(axis=1).mean())


def test_tiers_alike_need_no_price() -> None:
    same = np.full((5, 2), 0.5)
    cost = np.tile([1.0, 2.0], (5, 1))
    assert price_for_seconds(same, same, cost, 1.5).met
    assert price_for_quality(same, same, cost, 1.0).seconds == 1.0
    equal = price_for_seconds(np.tile([0.2, 0.9], (5, 1)), same, np.ones((5, 2)), 1.0)
    assert equal.met and equal.seconds == 1.0


def test_of_very_many_prices_some_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(3, n=400)
    exact = price_for_seconds(*data, 2.0)
    monkeypatch.setattr(price_search, "MOST", 40)
    rough = price_for_seconds(*data, 2.0)
    assert rough.met and 0 <= exact.seconds - rough.seconds < 0.2


@pytest.mark.parametrize("seed", range(4))
def test_it_decides_as_the_policy_does(seed: int) -> None:
    predicted, _, cost = made(seed, n=40)
    values: dict[str, Any] = {field.name: 0 for field in fields(Forecast)}
    for price, quality in ((0.02, 0.0), (0.3, 0.0), (0.3, 0.8)):
        budget = Budget(price_per_second=price, price_per_joule=0.0, quality=quality)
        for row, number in enumerate(best_value(predicted, cost, price, quality)):
            pairs = zip(predicted[row].tolist(), cost[row].tolist(), strict=True)
            forecasts = [
                Forecast(**{**values, "tier": str(i), "success": p, "seconds": c, "feasible": True})
                for i, (p, c) in enumerate(pairs)
            ]
            assert feasible_first(forecasts, budget, None)[0] == str(number)


def test_what_does_not_fit_together() -> None:
    predicted, outcomes, cost = made(0)
    with pytest.raises(ConfigError, match="the same shape"):
        price_for_seconds(predicted, outcomes[:, :2], cost, 1.0)
    with pytest.raises(ConfigError, match="tierwise calibrate with more prompts"):
        price_for_quality(predicted[:0], outcomes[:0], cost[:0], 0.9)

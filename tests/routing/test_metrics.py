"""Cost-quality curves: by hand, by brute force, and the properties that every sweep has."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tierwise.routing.bootstrap import Interval, group_numbers, mean_interval, resamples
from tierwise.routing.metrics import (
    Sweep,
    aiq,
    apgr,
    hull,
    two_tiers,
)
from tierwise.runtime.errors import ConfigError


def outcomes(n: int, seed: int, weak: float = 0.5, strong: float = 0.8) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return (rng.random(n) < weak).astype(float), (rng.random(n) < strong).astype(float)


def area_by_hand(order: tuple[int, ...], weak: np.ndarray, strong: np.ndarray) -> float:
    """The strong model answers the first calls of an order, one more at each step."""
    gained = [0.0]
    for call in order:
        gained.append(gained[-1] + strong[call] - weak[call])
    heights = [g / gained[-1] for g in gained]
    return sum((a + b) / 2 for a, b in itertools.pairwise(heights)) / len(order)


def test_two_tiers_by_hand() -> None:
    weak, strong = np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 1, 1])
    score = np.array([0.1, 0.9, 0.5, 0.2])  # the two that gain come first
    assert apgr(score, weak, strong) == pytest.approx((0.25 + 0.75 + 1 + 1) / 4)
    assert apgr(-score, weak, strong) == pytest.approx((0 + 0 + 0.25 + 0.75) / 4)
    curve = two_tiers(score, weak, strong).curve()
    assert curve.cost.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.quality.tolist() == [0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_router_that_knows_nothing_has_half_of_the_area(seed: int) -> None:
    weak, strong = outcomes(50, seed)
    assert apgr(np.zeros(50), weak, strong) == pytest.approx(0.5)  # all are tied
    rng = np.random.default_rng(seed)
    drawn = [apgr(rng.random(50), weak, strong) for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_the_mean_over_all_orders_of_the_tied(seed: int) -> None:
    weak, strong = outcomes(6, seed, 0.2, 0.9)
    if strong.sum() <= weak.sum():
        strong[:] = 1
        weak[0] = 0
    score = np.array([2.0, 1, 1, 1, 0, 0])
    every = [
        area_by_hand((0, *middle, *last), weak, strong)
        for middle in itertools.permutations((1, 2, 3))
        for last in itertools.permutations((4, 5))
    ]
    assert apgr(score, weak, strong) == pytest.approx(np.mean(every))


def test_only_the_order_of_scores_counts() -> None:
    weak, strong = outcomes(200, 0)
    score = np.random.default_rng(1).normal(size=200)
    assert apgr(score, weak, strong) == pytest.approx(apgr(np.exp(score), weak, strong))
    assert apgr(score, weak, strong) + apgr(-score, weak, strong) == pytest.approx(1)


def test_the_oracle_recovers_more_than_all() -> None:
    weak = np.array([1.0, 0.0, 0.0, *[1.0] * 7])
    strong = np.array([0.0, 1.0, 1.0, *[1.0] * 7])  # one loss, two gains, a gap of 0.1
    wanted = 0.2 * (0 + 2) / 2 + 0.7 * 2 + 0.1 * (2 + 1) / 2
    assert apgr(strong - weak, weak, strong) == pytest.approx(wanted) and wanted > 1


def test_where_the_strong_is_no_better_nothing_is_defined() -> None:
    weak, strong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    score = np.array([0.3, 0.4])
    assert math.isnan(apgr(score, weak, strong))
    assert np.isnan(two_tiers(score, weak, strong).areas(np.ones((3, 2)))).all()


# --- Several tiers --------------------------------------------------------------------------------


def by_price(
    predicted: np.ndarray, y: np.ndarray, cost: np.ndarray, price: float
) -> tuple[float, float]:
    """Mean cost and quality if every call goes where predicted - price * cost is highest."""
    chosen = np.argmax(predicted - price * cost, axis=1)
    rows = np.arange(len(y))
    return float(cost[rows, chosen].mean()), float(y[rows, chosen].mean())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("per_call", [False, True])
def test_a_sweep_passes_through_the_points_of_every_price(seed: int, per_call: bool) -> None:
    rng = np.random.default_rng(seed)
    n, tiers = 40, 4
    predicted = rng.random((n, tiers))
    y = (rng.random((n, tiers)) < 0.6).astype(float)
    cost = np.sort(rng.random((n if per_call else 1, tiers)), axis=1) + np.arange(tiers)
    curve = Sweep(predicted, y, cost if per_call else cost[0]).curve()
    everywhere = np.broadcast_to(cost, (n, tiers))
    points = list(zip(curve.cost, curve.quality, strict=True))
    for price in (*rng.normal(size=40), 1e9, -1e9, 0.0):
        c, q = by_price(predicted, y, everywhere, price)
        nearest = min(abs(c - pc) + abs(q - pq) for pc, pq in points)
        assert nearest < 1e-9
    assert (np.diff(curve.cost) >= 0).all()
    assert points[0] == pytest.approx((everywhere[:, 0].mean(), y[:, 0].mean()))
    assert points[-1] == pytest.approx((everywhere[:, -1].mean(), y[:, -1].mean()))


def test_several_tiers_with_a_useless_middle_are_as_good_as_two() -> None:
    weak, strong = outcomes(300, 2)
    gain = np.random.default_rng(5).random(300) + (strong - weak)
    predicted = np.stack((np.zeros(300), np.full(300, -9.0), gain), axis=1)
    y = np.stack((weak, np.zeros(300), strong), axis=1)
    three = Sweep(predicted, y, np.array([1.0, 1.5, 3.0])).curve()
    assert three.area() == pytest.approx(apgr(gain, weak, strong))


def test_tiers_may_come_in_any_order() -> None:
    rng = np.random.default_rng(0)
    predicted, y = rng.random((30, 3)), (rng.random((30, 3)) < 0.5).astype(float)
    cost = np.array([1.0, 2.0, 5.0])
    y[:, 2] = 1
    order = [2, 0, 1]
    assert Sweep(predicted, y, cost).curve().area() == pytest.approx(
        Sweep(predicted[:, order], y[:, order], cost[order]).curve().area()
    )


def test_heights_rank_as_areas_do_and_need_no_gap() -> None:
    rng = np.random.default_rng(4)
    y = (rng.random((60, 3)) < (0.3, 0.5, 0.7)).astype(float)
    curves = [Sweep(rng.random((60, 3)), y, np.array([1.0, 2.0, 4.0])).curve() for _ in range(6)]
    areas, heights = [c.area() for c in curves], [c.height() for c in curves]
    assert np.argsort(areas).tolist() == np.argsort(heights).tolist() and len(set(heights)) == 6
    # The middle tier alone is right, and who knows that is above who does not.
    y = np.tile([0.0, 1.0, 0.0], (8, 1))
    knows, other = (
        Sweep(np.tile(predicted, (8, 1)), y, np.array([1.0, 2.0, 3.0])).curve()
        for predicted in ([0.1, 0.9, 0.2], [0.1, 0.2, 0.9])
    )
    assert math.isnan(knows.area()) and math.isnan(other.area())
    assert knows.height() == pytest.approx(0.5) and other.height() == pytest.approx(0.0)


def test_a_middle_tier_that_is_as_good_as_the_dearest_is_worth_its_area() -> None:
    y = np.tile([0.0, 1.0, 1.0], (10, 1))
    curve = Sweep(y, y, np.array([0.0, 1.0, 10.0])).curve()
    assert curve.area() == pytest.approx(0.1 / 2 + 0.9)


@pytest.mark.parametrize(
    ("predicted", "y", "cost", "said"),
    [
        (np.zeros((2, 2)), np.zeros((3, 2)), [0, 1], "same shape"),
        (np.zeros((2, 2)), np.array([[0, 1], [np.nan, 1]]), [0, 1], "must all be known"),
        (np.zeros((2, 2)), np.zeros((2, 2)), [1, 1], "cost the same"),
        (np.zeros((0, 2)), np.zeros((0, 2)), [0, 1], "same shape"),
    ],
)
def test_what_cannot_be_swept(
    predicted: np.ndarray, y: np.ndarray, cost: list[float], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Sweep(predicted, y, np.array(cost, float))


# --- Hull and AIQ ---------------------------------------------------------------------------------


def test_the_hull_by_hand() -> None:
    cost = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 1.0])
    quality = np.array([0.6, 0.2, 0.3, 0.7, 0.5, 0.1])
    best = hull(cost, quality)
    assert best.cost.tolist() == [1, 3, 5] and best.quality.tolist() == [0.2, 0.6, 0.7]


@pytest.mark.parametrize("seed", range(10))
def test_no_point_lies_above_the_hull(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, quality = rng.random(20).round(1), rng.random(20).round(1)
    best = hull(cost, quality)
    assert (np.interp(cost, best.cost, best.quality) >= quality - 1e-12).all()
    slopes = np.diff(best.quality) / np.diff(best.cost)
    assert (slopes > 0).all() and (np.diff(slopes) < 0).all()


def test_aiq_by_hand() -> None:
    cost, quality = np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.5])
    assert aiq(cost, quality) == pytest.approx((0.5 + 1) / 2)  # level after the best point
    assert aiq(cost, quality, 1, 5) == pytest.approx((0.5 + 3) / 4)
    assert aiq(cost, quality, 0, 2) == pytest.approx((0 + 0.5) / 2)
    assert aiq(np.array([1.0]), np.array([0.7]), 0, 2) == pytest.approx(0.7)
    with pytest.raises(ConfigError, match="no width"):
        aiq(np.array([1.0]), np.array([0.7]))
    with pytest.raises(ConfigError, match="points need"):
        hull(np.zeros(0), np.zeros(0))


# --- Bootstrap ------------------------------------------------------------------------------------


def test_areas_of_resamples_are_those_of_the_rows_drawn() -> None:
    weak, strong = outcomes(60, 1)
    score = np.random.default_rng(2).random(60).round(1)  # with ties
    counts = resamples(60, draws=30, seed=3)
    areas = two_tiers(score, weak, strong).areas(counts)
    for drawn, area in zip(counts, areas, strict=True):
        rows = np.repeat(np.arange(60), drawn.astype(int))
        wanted = apgr(score[rows], weak[rows], strong[rows])
        assert area == pytest.approx(wanted, nan_ok=True)


def test_resamples_are_of_the_same_size_and_repeatable() -> None:
    counts = resamples(50, draws=200, seed=1)
    assert counts.shape == (200, 50) and (counts.sum(axis=1) == 50).all()
    assert counts.mean() == 1 and 0.9 < counts.var() < 1.1
    assert np.array_equal(counts, resamples(50, draws=200, seed=1))
    assert not np.array_equal(counts, resamples(50, draws=200, seed=2))


def test_groups_are_drawn_whole() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    assert group_numbers(groups).tolist() == [0, 1, 0, 2, 1, 0]
    counts = resamples(6, groups=groups, draws=100)
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, 0] == counts[:, 5]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()
    with pytest.raises(ConfigError, match="a group for each"):
        resamples(5, groups=groups)
    with pytest.raises(ConfigError, match="needs calls"):
        resamples(0)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = mean_interval(rng.exponential(size=80), resamples(80, draws=300, seed=seed))
        hits += found.low <= 1.0 <= found.high
    assert 172 <= hits <= 199


def test_an_area_is_told_from_chance_and_from_another_on_the_same_calls() -> None:
    weak, strong = outcomes(400, 7)
    rng = np.random.default_rng(8)
    good = two_tiers(strong - weak + rng.normal(size=400), weak, strong)
    twin = two_tiers(strong - weak + rng.normal(size=400), weak, strong)
    none = two_tiers(rng.normal(size=400), weak, strong)
    counts = resamples(400)
    areas = {
        name: one.areas(counts) for name, one in (("good", good), ("twin", twin), ("none", none))
    }
    assert Interval.of(good.curve().area(), areas["good"]).low > 0.5
    blind = Interval.of(none.curve().area(), areas["none"])
    assert blind.low < 0.5 < blind.high
    assert Interval.of(1.0, areas["good"] - areas["none"]).low > 0
    same = Interval.of(0.0, areas["good"] - areas["twin"])
    assert same.low < 0 < same.high
    once = good.areas(np.ones((1, 400)))
    assert once.item() == pytest.approx(good.curve().area())


def test_what_is_undefined_stays_so() -> None:
    assert math.isnan(Interval.of(math.nan, np.ones(3)).low)
    assert math.isnan(Interval.of(1.0, np.full(3, np.nan)).value)
    assert Interval.of(1.0, np.array([np.nan, 1.0, 1.0])) == Interval(1.0, 1.0, 1.0)
    assert str(Interval(0.5, 0.25, 1)) == "0.500 [0.250, 1.000]"

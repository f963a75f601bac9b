"""Calibration: curves that never fall, and honest reliability figures."""

from __future__ import annotations

import numpy as np
import pytest

from tierwise.routing.isotonic import IsotonicCurve, TierCurves, reliability
from tierwise.runtime.errors import ConfigError


def test_a_curve_by_hand() -> None:
    curve = IsotonicCurve.fit(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert curve(np.array([0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 9.0])).tolist() == pytest.approx(
        [0, 0, 0.5, 0.5, 0.5, 1, 1]
    )
    assert curve(np.array([1.5, 3.5])).tolist() == pytest.approx([0.25, 0.75])


def test_equal_scores_share_a_chance_and_weights_count() -> None:
    scores, outcomes = np.array([1.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert IsotonicCurve.fit(scores, outcomes)(scores).tolist() == pytest.approx([1 / 3] * 3 + [1])
    heavy = IsotonicCurve.fit(scores, outcomes, np.array([1.0, 1.0, 2.0, 1.0]))
    assert heavy(scores)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(10))
def test_no_straight_or_other_rising_function_is_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=60).round(1)
    outcomes = (rng.random(60) < 1 / (1 + np.exp(-2 * scores))).astype(float)
    curve = IsotonicCurve.fit(scores, outcomes)
    found = curve(scores)
    assert (np.diff(found[np.argsort(scores)]) >= 0).all() and found.min() >= 0 <= 1 - found.max()
    assert found.mean() == pytest.approx(outcomes.mean())
    for _ in range(50):
        other = np.sort(rng.random(4))[np.searchsorted(np.sort(rng.normal(size=3)), scores)]
        assert ((found - outcomes) ** 2).sum() <= ((other - outcomes) ** 2).sum() + 1e-9


def test_it_puts_right_scores_that_are_off() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4000)
    outcomes = (rng.random(4000) < truth).astype(float)
    bold = np.clip(0.5 + 2 * (truth - 0.5), 0, 1)  # far too sure of itself
    curve = IsotonicCurve.fit(bold[:2000], outcomes[:2000])
    before, after = (reliability(p, outcomes[2000:]) for p in (bold[2000:], curve(bold[2000:])))
    assert before.ece_mass.low > 0.1 and after.ece_mass.value < 0.05
    assert after.brier.high < before.brier.value


def test_unknown_outcomes_are_left_out() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    curve = IsotonicCurve.fit(scores, np.array([0.0, np.nan, 1.0]))
    assert curve(scores).tolist() == pytest.approx([0, 0.5, 1])
    with pytest.raises(ConfigError, match="no outcome"):
        IsotonicCurve.fit(scores, np.full(3, np.nan))
    with pytest.raises(ConfigError, match="shape"):
        IsotonicCurve.fit(scores, np.zeros(2))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class(value: float) -> None:
    curve = IsotonicCurve.fit(np.array([1.0, 2.0]), np.full(2, value))
    assert curve(np.array([-5.0, 1.5, 5.0])).tolist() == [value] * 3


def test_tiers_have_curves_of_their_own() -> None:
    rng = np.random.default_rng(1)
    truth = np.stack((rng.random(500) * 0.5, 0.5 + rng.random(500) * 0.5), axis=1)
    outcomes = (rng.random((500, 2)) < truth).astype(float)
    outcomes[:100, 0] = np.nan
    curves = TierCurves.fit(truth[:, ::-1].copy(), outcomes)  # scores that are good for nothing
    found = curves(truth[:, ::-1].copy())
    assert found.shape == (500, 2)
    assert found[:, 0].mean() == pytest.approx(np.nanmean(outcomes[:, 0]), abs=0.05)
    with pytest.raises(ConfigError, match="same shape"):
        TierCurves.fit(truth, outcomes[:10])


def test_reliability_by_hand() -> None:
    p = np.array([0.1, 0.1, 0.6, 0.6])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    found = reliability(p, y, bins=2)
    assert found.n == 4
    assert found.brier.value == pytest.approx((0.01 + 0.81 + 0.16 + 0.16) / 4)
    assert found.ece_width.value == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert found.ece_mass.value == pytest.approx(0.4)
    assert [(b.predicted, b.true, b.n) for b in found.bins] == [
        (pytest.approx(0.1), 0.5, 2),
        (pytest.approx(0.6), 1.0, 2),
    ]


def test_the_two_kinds_of_bins_differ() -> None:
    p = np.array([0.0, 0.01, 0.02, 0.9])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    found = reliability(p, y, bins=2)  # {0, .01}, {.02, .9} against {0, .01, .02}, {.9}
    assert found.ece_mass.value == pytest.approx((0.99 + 1.08) / 4)
    assert found.ece_width.value == pytest.approx((1.97 + 0.1) / 4)
    found = reliability(np.array([0.0, 0.4, 0.6, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]), bins=1)
    assert found.ece_mass.value == found.ece_width.value == 0  # one bin hides it all


def test_equal_predictions_share_a_bin() -> None:
    p, y = np.full(100, 0.3), np.arange(100) < 30
    found = reliability(p, y.astype(float))
    assert len(found.bins) == 1 and found.ece_mass.value == pytest.approx(0)
    assert found.bins[0].n == 100


def test_the_ends_of_the_scale_have_a_bin() -> None:
    found = reliability(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert found.ece_width.value == found.brier.value == 0


def test_the_interval_of_the_brier_score_covers() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        p = rng.random(150)
        y = (rng.random(150) < p).astype(float)
        found = reliability(p, y, draws=200)
        hits += found.brier.low <= 1 / 6 <= found.brier.high  # E[p(1 - p)]
    assert hits >= 86


def test_copies_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(4)
    p = rng.random(40)
    y = (rng.random(40) < p).astype(float)
    groups = list(range(40)) * 10
    once = reliability(p, y).brier
    naive = reliability(np.tile(p, 10), np.tile(y, 10)).brier
    fair = reliability(np.tile(p, 10), np.tile(y, 10), groups=groups).brier
    width = once.high - once.low
    assert naive.high - naive.low < 0.5 * width
    assert fair.high - fair.low == pytest.approx(width, rel=0.15)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(ConfigError, match="no outcome"):
        reliability(np.array([0.5]), np.array([np.nan]))
    with pytest.raises(ConfigError, match="same shape"):
        reliability(np.array([0.5]), np.array([1.0, 0.0]))
    with pytest.raises(ConfigError, match="bins"):
        reliability(np.array([0.5]), np.array([1.0]), bins=0)

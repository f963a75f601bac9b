"""Promises: p-values that are valid, floors kept as often as said, and drift that voids them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tierwise.routing.drift import drift, kolmogorov_smirnov, stability_index
from tierwise.routing.pvalues import (
    PVALUES,
    betting,
    binomial,
    binomial_cdf,
    hoeffding_bentkus,
)
from tierwise.routing.risk import THRESHOLDS, Guarantee, guarantee, last_rejected
from tierwise.runtime.errors import ConfigError

COST = np.array([1.0, 4.0])

# --- p-values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (7, 0.5), (20, 0.05), (60, 0.9)])
def test_the_binomial_by_its_terms(n: int, p: float) -> None:
    terms = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    for k in range(-1, n + 2):
        assert binomial_cdf(k, n, p) == pytest.approx(sum(terms[: max(0, k + 1)]))
    assert binomial_cdf(0, n, 0.0) == 1 and binomial_cdf(n - 1, n, 1.0) == 0


def test_the_binomial_of_many_neither_over_nor_underflows() -> None:
    assert binomial_cdf(50_000, 100_000, 0.5) == pytest.approx(0.5, abs=0.01)
    assert 0 < binomial_cdf(1000, 100_000, 0.013) < 1e-9
    assert binomial_cdf(10, 100_000, 0.5) == 0


def test_binomial_p_value_of_no_failure() -> None:
    """The rule of three: 59 calls without failure show at most 5 % at 95 % confidence."""
    assert binomial(np.zeros(59), 0.05) <= 0.05 < binomial(np.zeros(58), 0.05)


def test_hoeffding_bentkus_by_hand() -> None:
    losses = np.array([1.0] * 5 + [0.0] * 95)
    hoeffding = math.exp(-100 * (0.05 * math.log(0.05 / 0.2) + 0.95 * math.log(0.95 / 0.8)))
    bentkus = math.e * binomial_cdf(5, 100, 0.2)
    assert hoeffding_bentkus(losses, 0.2) == pytest.approx(min(hoeffding, bentkus))
    assert hoeffding_bentkus(losses, 0.05) == hoeffding_bentkus(losses, 0.01) == 1
    assert hoeffding_bentkus(np.zeros(10), 0.2) == pytest.approx(0.8**10)


@pytest.mark.parametrize("name", sorted(PVALUES))
@pytest.mark.parametrize("bound", [0.05, 0.3, 0.6])
def test_p_values_are_valid_where_the_mean_is_at_the_bound(name: str, bound: float) -> None:
    rng = np.random.default_rng(0)
    found = np.array(
        [PVALUES[name]((rng.random(80) < bound).astype(float), bound) for _ in range(600)]
    )
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (found <= level).mean() <= level + 3 * math.sqrt(level / 600)


@pytest.mark.parametrize("name", ["hoeffding_bentkus", "betting"])
def test_p_values_of_losses_between_0_and_1_are_valid(name: str) -> None:
    rng = np.random.default_rng(1)
    bound = 2 / 7
    found = np.array([PVALUES[name](rng.beta(2, 5, 60), bound) for _ in range(600)])
    assert (found <= 0.05).mean() <= 0.05 + 0.03


def test_betting_sees_that_losses_vary_little() -> None:
    rng = np.random.default_rng(2)
    losses = 0.45 + 0.05 * rng.random(100)
    assert betting(losses, 0.52) < 0.01 < 0.5 < hoeffding_bentkus(losses, 0.52)
    assert betting(losses, 0.4) > 0.9
    assert betting(losses, 0.0) == 1 and betting(losses, 1.0) == 0 and betting(losses[:0], 0.5) == 1


@pytest.mark.parametrize("name", sorted(PVALUES))
def test_more_evidence_makes_smaller_p_values(name: str) -> None:
    few, many = (np.tile([0.0, 0.0, 0.0, 0.0, 1.0], k) for k in (6, 40))
    pvalue = PVALUES[name]
    assert pvalue(many, 0.4) < pvalue(few, 0.4) < 1
    assert pvalue(many, 0.4) < 0.01 and pvalue(many, 0.5) < pvalue(many, 0.4) < pvalue(many, 0.3)


# --- Fixed sequence -------------------------------------------------------------------------------


def test_the_sequence_ends_at_the_first_that_is_not_rejected() -> None:
    good, bad = np.zeros(100), np.ones(100)
    assert last_rejected(np.array([good, good, bad, good]), 0.1, 0.95, binomial)[0] == 1
    assert last_rejected(np.array([bad, good]), 0.1, 0.95, binomial) == (None, 1.0)
    assert last_rejected(np.zeros((3, 0)), 0.1, 0.95, binomial)[0] is None
    with pytest.raises(ConfigError, match="between 0 and 1"):
        last_rejected(np.array([good]), 0.1, 1.0, binomial)


# --- Guarantees -----------------------------------------------------------------------------------


def calls(n: int, rng: np.random.Generator, honest: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and outcomes of two tiers. The chance of the small one varies by call."""
    small = rng.random(n)
    truth = np.stack((0.9 * small, np.full(n, 0.9)), axis=1)
    outcomes = (rng.random((n, 2)) < truth).astype(float)
    if not honest:
        truth[:, 0] = 0.9 * rng.random(n)
    return truth, outcomes


def kept(threshold: float, honest: bool = True) -> float:
    """Share of the large tier's successes that routing really keeps. The small tier is taken for
    calls with small >= threshold, and has a chance of 0.9 * small there."""
    mean = (1 - threshold**2) / 2 if honest else (1 - threshold) / 2
    return mean + threshold


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("method", ["betting", "hoeffding_bentkus"])
def test_the_floor_is_kept_as_often_as_promised(honest: bool, method: str) -> None:
    rng = np.random.default_rng(3)
    broken = made = 0
    for draw in range(250):
        predicted, outcomes = calls(200, rng, honest)
        found = guarantee(
            predicted, outcomes, COST, floor=0.8, confidence=0.9, method=method, seed=draw
        )
        made += found.holds
        if found.threshold is not None:
            broken += kept(found.threshold, honest) < 0.8
    assert broken <= 0.1 * 250 + 3 * math.sqrt(0.1 * 0.9 * 250)
    assert made >= (200 if method == "betting" else 5)  # and it is of use


def test_the_absolute_floor_is_kept_as_often_as_promised() -> None:
    rng = np.random.default_rng(4)
    broken = useful = 0
    for draw in range(250):
        predicted, outcomes = calls(300, rng)
        found = guarantee(
            predicted, outcomes, COST, floor=0.7, confidence=0.9, reference=None, seed=draw
        )
        assert found.method == "binomial"
        if found.threshold is not None:
            useful += found.threshold < 0.8
            broken += 0.9 * kept(found.threshold) < 0.7
    assert broken <= 0.1 * 250 + 3 * math.sqrt(0.1 * 0.9 * 250) and useful > 200


def test_more_calls_allow_cheaper_thresholds() -> None:
    found = []
    for n in (200, 1000, 8000):
        predicted, outcomes = calls(n, np.random.default_rng(5))
        made = guarantee(predicted, outcomes, COST, floor=0.8)
        assert made.threshold is not None and made.n == n
        found.append(made.threshold)
    assert found == sorted(found, reverse=True) and found[0] > found[-1]
    limit = math.sqrt(0.6)  # t + (1 - t²) / 2 = 0.8
    assert 1 - limit < found[-1] < 1 - limit + 0.2


def test_bad_predictions_only_make_it_careful() -> None:
    rng = np.random.default_rng(6)
    good, outcomes = calls(2000, rng)
    bad = good.copy()
    bad[:, 0] = rng.permutation(bad[:, 0])
    a, b = (guarantee(p, outcomes, COST, floor=0.8).threshold for p in (good, bad))
    assert a is not None and b is not None and a < b


def test_lower_floors_and_confidences_allow_more() -> None:
    predicted, outcomes = calls(1000, np.random.default_rng(7))

    def threshold(**options: Any) -> float:
        found = guarantee(predicted, outcomes, COST, **options).threshold
        assert found is not None
        return found

    assert threshold(floor=0.6) < threshold(floor=0.8) < threshold(floor=0.95)
    assert threshold(floor=0.8, confidence=0.6) <= threshold(floor=0.8, confidence=0.999)


@pytest.mark.parametrize("n", [0, 1, 10])
def test_too_few_calls_say_so(n: int) -> None:
    predicted, outcomes = calls(n, np.random.default_rng(8))
    found = guarantee(predicted, outcomes, COST, floor=0.9)
    assert not found.holds and found.n == n and math.isnan(found.reached)
    assert "too few" in found.reason


def test_how_many_would_do_is_about_right() -> None:
    outcomes = np.ones((30, 2))
    found = guarantee(outcomes, outcomes, COST, floor=0.95, reference=None)
    assert not found.holds and found.reason.endswith("takes some 59")
    many = np.ones((59, 2))
    assert guarantee(many, many, COST, floor=0.95, reference=None).holds


def test_a_floor_that_nobody_reaches() -> None:
    outcomes = (np.random.default_rng(0).random((400, 2)) < 0.5).astype(float)
    found = guarantee(outcomes, outcomes, COST, floor=0.99, reference=None)
    assert not found.holds and "above what even the best choice reaches" in found.reason
    nobody = guarantee(outcomes, np.zeros((400, 2)), COST, floor=0.9)
    assert nobody.holds is False or nobody.reached == math.inf


def test_predictions_that_are_far_off() -> None:
    predicted = np.tile([0.9, 0.1], (500, 1))
    outcomes = np.tile([0.0, 1.0], (500, 1))
    found = guarantee(predicted, outcomes, COST, floor=0.9)
    assert not found.holds and "too far off" in found.reason


def test_copies_are_no_evidence() -> None:
    predicted, outcomes = calls(12, np.random.default_rng(9))
    outcomes[:] = 1
    many = np.tile(predicted, (50, 1)), np.tile(outcomes, (50, 1))
    assert guarantee(*many, COST, floor=0.9).holds
    found = guarantee(*many, COST, floor=0.9, groups=list(range(12)) * 50)
    assert not found.holds and found.n == 12


def test_what_was_reached_counts_copies_once_too() -> None:
    """The small tier fails one prompt of 301, which was asked 300 times."""
    outcomes = np.ones((600, 2))
    outcomes[300:, 0] = 0
    groups = [*range(300), *[300] * 300]
    found = guarantee(
        np.full((600, 2), 0.9), outcomes, np.array([1.0, 2.0]), floor=0.9, groups=groups
    )
    assert found.threshold == 0 and found.reached == pytest.approx(300 / 301)


def test_calls_that_a_tier_was_not_asked_are_left_out() -> None:
    predicted, outcomes = calls(600, np.random.default_rng(10))
    outcomes[::2, 0] = np.nan
    kept_rows = guarantee(predicted[1::2], outcomes[1::2], COST, floor=0.8)
    assert guarantee(predicted, outcomes, COST, floor=0.8) == kept_rows


def test_what_was_reached_is_what_the_threshold_reaches() -> None:
    predicted, outcomes = calls(1000, np.random.default_rng(11))
    found = guarantee(predicted, outcomes, COST, floor=0.8)
    assert found.threshold in THRESHOLDS
    small = predicted[:, 0] >= found.threshold * predicted[:, 1] - 1e-9
    routed = np.where(small, outcomes[:, 0], outcomes[:, 1])
    assert found.reached == pytest.approx(routed.sum() / outcomes[:, 1].sum())
    assert f"{found.reached:.1%}" in found.reason and "95% confidence" in found.reason
    assert json.loads(json.dumps(found.to_json()))["n"] == 1000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"floor": 0.0}, "above 0 and below 1"),
        ({"floor": 1.0}, "above 0 and below 1"),
        ({"thresholds": ()}, "be tested"),
        ({"confidence": 0.0}, "confidence must be"),
        ({"method": "guess"}, "must be one of binomial"),
        ({"method": "binomial"}, "needs losses of 0 or 1"),
        ({"outcomes": np.zeros((3, 2))}, "same shape"),
    ],
)
def test_what_makes_no_sense(wrong: dict[str, Any], said: str) -> None:
    predicted, outcomes = calls(100, np.random.default_rng(0))
    options: dict[str, Any] = {"outcomes": outcomes, "floor": 0.8, **wrong}
    with pytest.raises(ConfigError, match=said):
        guarantee(predicted, options.pop("outcomes"), COST, **options)


# --- Drift ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(30, 30), (500, 60), (200, 2000)])
def test_without_drift_there_is_seldom_an_alarm(n: int, m: int) -> None:
    rng = np.random.default_rng(12)
    p = np.array([kolmogorov_smirnov(rng.normal(size=n), rng.normal(size=m)) for _ in range(400)])
    assert (p < 0.05).mean() <= 0.08 and 0.3 < (p < 0.5).mean() < 0.6
    psi = [stability_index(rng.normal(size=n), rng.normal(size=m)) for _ in range(100)]
    assert np.median(psi) < 0.05


def test_the_distance_by_hand() -> None:
    a, b = np.arange(10.0), np.arange(10.0) + 5
    size = math.sqrt(5)
    at = (size + 0.12 + 0.11 / size) * 0.5
    wanted = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * at * at) for k in range(1, 30))
    assert kolmogorov_smirnov(a, b) == pytest.approx(wanted)
    assert kolmogorov_smirnov(a, a) == 1


def test_the_stability_index_by_hand() -> None:
    a = np.repeat([0.0, 1.0], 5000)
    b = np.repeat([0.0, 1.0], [2000, 8000])
    wanted = 0.3 * math.log(0.5 / 0.2) + 0.3 * math.log(0.8 / 0.5)
    assert stability_index(a, b, bins=2) == pytest.approx(wanted, rel=0.01)
    assert stability_index(a, a) == 0


def test_drift_is_found_and_voids_the_promise() -> None:
    rng = np.random.default_rng(13)
    predicted, outcomes = calls(500, rng)
    promise = guarantee(predicted, outcomes, COST, floor=0.8)
    alike = drift(predicted[:, 0], calls(300, rng)[0][:, 0])
    assert not alike.drifted and promise.after(alike) is promise
    harder = drift(predicted[:, 0], 0.5 * calls(300, rng)[0][:, 0])
    assert harder.drifted and harder.psi > 0.25 and harder.n == 300
    void = promise.after(harder)
    assert not void.holds and void.reason.startswith("void: recent calls differ")
    assert void.after(harder) is void
    assert isinstance(void, Guarantee) and json.dumps(harder.to_json())


def test_one_of_many_columns_is_enough_but_small_shifts_are_not() -> None:
    rng = np.random.default_rng(14)
    a, b = rng.normal(size=(5000, 5)), rng.normal(size=(5000, 5))
    assert not drift(a, b).drifted
    b[:, 3] += 0.15  # certain by now, and too small to matter
    assert drift(a, b).p_value < 0.001 and not drift(a, b).drifted
    b[:, 3] += 1
    assert drift(a, b).drifted


def test_a_constant_score_that_moves_has_drifted() -> None:
    assert drift(np.zeros(100), np.ones(100)).drifted
    assert not drift(np.zeros(100), np.zeros(100)).drifted


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros(0), np.zeros(5)),
        (np.zeros((5, 2)), np.zeros((5, 3))),
        (np.zeros((5, 2)), np.zeros(5)),
    ],
)
def test_what_cannot_be_compared(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="same columns"):
        drift(a, b)

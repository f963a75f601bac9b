"""Feedback moves chances and fades; other calls than those of the calibration void promises."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from calibration_factory import made_calibration

from tierwise.routing.adaptation import EVERY, FURTHEST, RECENT, Adaptation
from tierwise.routing.risk import Guarantee

CHANCES = MappingProxyType({"small": 0.5, "large": 0.8})
PROMISE = Guarantee(0.6, 0.7, 0.95, 300, "betting", 0.8, "so many were right")


def test_feedback_moves_a_tier_and_no_other() -> None:
    adaptation = Adaptation(None)
    assert adaptation.corrected(CHANCES) == dict(CHANCES)
    for _ in range(10):
        adaptation.observe("small", 0.5, False)
    worse = adaptation.corrected(CHANCES)
    assert worse["small"] < 0.25 and worse["large"] == 0.8
    for _ in range(40):
        adaptation.observe("small", worse["small"], True)
    assert adaptation.corrected(CHANCES)["small"] > 0.5


def test_corrections_settle_where_forecasts_come_true() -> None:
    """The forecast says 0.5, and 8 of 10 replies are right."""
    adaptation = Adaptation(None)
    rng = np.random.default_rng(1)
    for _ in range(2000):
        chance = adaptation.corrected(CHANCES)["small"]
        adaptation.observe("small", chance, bool(rng.random() < 0.8))
    settled = [adaptation.corrected(CHANCES)["small"]]
    for _ in range(500):
        adaptation.observe("small", settled[-1], bool(rng.random() < 0.8))
        settled.append(adaptation.corrected(CHANCES)["small"])
    # Forgetting draws it a little back to what the calibration says.
    assert 0.68 < float(np.mean(settled)) < 0.84


def test_corrections_have_an_end_and_fade() -> None:
    adaptation = Adaptation(None)
    for _ in range(1000):
        adaptation.observe("small", 1.0, False)
    bound = 1 / (1 + math.exp(FURTHEST))
    assert adaptation.corrected(CHANCES)["small"] >= bound
    low = adaptation.corrected(CHANCES)["small"]
    for _ in range(400):  # as expected, again and again
        adaptation.observe("small", 1.0, True)
    assert adaptation.corrected(CHANCES)["small"] > low


def test_verification_counts_for_what_it_is_worth() -> None:
    adaptation = Adaptation(made_calibration())
    # Replies of the small tier without a fault are right in 60 of 100 cases: no surprise.
    for _ in range(50):
        adaptation.verified("small", 0.6, problem=False)
    assert adaptation.corrected(CHANCES)["small"] == pytest.approx(0.5)
    for _ in range(50):
        adaptation.verified("small", 0.6, problem=True)
    assert adaptation.corrected(CHANCES)["small"] < 0.3
    unknown = Adaptation(None)  # nobody knows what its findings are worth
    unknown.verified("small", 0.6, problem=True)
    assert unknown.corrected(CHANCES) == dict(CHANCES)
    adaptation.verified("adopted since", 0.6, problem=True)


def test_calls_of_another_kind_void_promises(caplog: pytest.LogCaptureFixture) -> None:
    found = made_calibration()
    alike, other = Adaptation(found), Adaptation(found)
    rng = np.random.default_rng(2)
    with caplog.at_level(logging.WARNING, "tierwise"):
        for request in range(RECENT + EVERY):
            a, b = rng.random(2)
            alike.seen({"small": float(a), "large": float(b)}, request)
        assert alike.drift is not None and not alike.drift.drifted
        assert alike.kept(PROMISE) is PROMISE and not caplog.records
        for request in range(RECENT + 4 * EVERY):
            a, b = rng.random(2)
            other.seen({"small": float(a / 4), "large": float(b)}, request)
    assert other.drift is not None and other.drift.drifted
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # told once
    assert "void as long as" in caplog.text
    void = other.kept(PROMISE)
    assert not void.holds and void.reason.startswith("void:")


def test_where_routing_does_not_pay_calls_cannot_drift() -> None:
    adaptation = Adaptation(made_calibration(route=False))
    for request in range(2 * RECENT):
        adaptation.seen(CHANCES, request)
    assert adaptation.drift is None and adaptation.kept(PROMISE) is PROMISE


def test_the_steps_of_long_runs_are_no_shift() -> None:
    """20 steps of one request have almost the same chances; of each request the latest counts."""
    adaptation = Adaptation(made_calibration())
    rng = np.random.default_rng(3)
    for request in range(RECENT + EVERY - 1):
        a, b = rng.random(2)
        for _ in range(20):
            adaptation.seen({"small": float(a), "large": float(b)}, request)
    assert adaptation.drift is not None and adaptation.drift.n == RECENT
    assert not adaptation.drift.drifted


def test_without_feedback_a_tier_stays_where_the_calibration_put_it() -> None:
    """Where routing does not pay, chances are drawn to what the build had measured; verification,
    which finds of a reply what it usually does, must not undo that."""
    found = made_calibration(route=False)
    found = replace(found, usual=np.array([0.6, 0.8]))
    adaptation = Adaptation(found)
    for at in range(400):  # 8 of 10 replies are without fault: on average 0.5 of them are right
        chance = adaptation.corrected({"small": 0.6})["small"]
        adaptation.verified("small", chance, problem=at % 5 == 0)
    assert adaptation.corrected({"small": 0.6})["small"] == pytest.approx(0.6, abs=0.02)

"""A reply that its tier was not sure of: a better tier is asked, where one can answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibration_factory import PLENTY, made_calibration, scripted_pair
from family_factory import TierSpec, make_family
from scripted_model import FRUIT, write_scripted_gguf

from tierwise.routing.budget import Budget
from tierwise.routing.calibration import Calibration
from tierwise.routing.cascade import aanswer, answer, stream_answer
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import feasible_first
from tierwise.routing.router import Router
from tierwise.routing.signals import Signals, sureness, unmoved
from tierwise.runtime.chat import Call, Message, Reply
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool

CALL = Call((Message("user", "Tell me of the banana"),), max_tokens=20)
NEVER, ALWAYS = [0.0, 0.0, 0.0, 0.0, -9.0], [0.0, 0.0, 0.0, 0.0, 9.0]
"""Weights of a tier that is not right, or right, whatever its margins are."""


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return scripted_pair(tmp_path, FRUIT)


@pytest.fixture
def pool(family: Family) -> Iterator[Pool]:
    with Pool(family, probe=lambda: PLENTY, threads=1) as opened:
        yield opened


def router(family: Family, pool: Pool, calibration: Calibration) -> Router:
    budget = Budget(quality=0.5)  # the small tier has 0.5 of 0.8 before it replies
    return Router(family, pool, budget, probe=lambda: PLENTY, calibration=calibration)


def test_a_doubted_reply_gives_way_to_a_better_tier(family: Family, pool: Pool) -> None:
    unsure = made_calibration(signals=Signals(np.array([NEVER, ALWAYS]), unmoved(2)))
    result = answer(router(family, pool, unsure), CALL)
    assert [one.decision.tier for one in result.attempts] == ["small", "large"]
    assert result.attempts[0].problem == "" and "by how sure it was" in result.attempts[0].doubt
    assert result.final.decision.tier == "large" and result.escalated
    assert result.final.decision.reason.startswith("escalated from small: by how sure it was")
    told = result.to_json()["attempts"]
    assert told[0]["doubt"] and not told[1]["doubt"]
    sure = made_calibration(signals=Signals(np.array([ALWAYS, ALWAYS]), unmoved(2)))
    assert not answer(router(family, pool, sure), CALL).escalated


@pytest.mark.parametrize("late", [False, True])
def test_a_reply_that_was_only_doubted_stands_where_no_better_one_comes(
    tmp_path: Path, late: bool
) -> None:
    """The better tier says nothing at all, or comes to no end in time."""
    small = write_scripted_gguf(tmp_path / "small.gguf", FRUIT)
    large = write_scripted_gguf(tmp_path / "large.gguf", {**FRUIT, "banana": ""})
    specs = [TierSpec("small", small, kl=0.1), TierSpec("large", large, prefill=100.0)]
    family = make_family(tmp_path / "family", specs)
    unsure = made_calibration(signals=Signals(np.array([NEVER, ALWAYS]), unmoved(2)))

    def slow_to_escalate(
        forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        if late and not forecasts[0].feasible:
            time.sleep(3.1)
        return feasible_first(forecasts, budget, current)

    call = replace(CALL, timeout_s=3.0 if late else 60.0)
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        routed = Router(
            *(family, pool, Budget(quality=0.5)),
            probe=lambda: PLENTY,
            calibration=unsure,
            policy=slow_to_escalate,
        )
        answer(routed, CALL, pin="small")  # loads it
        for result in (answer(routed, call), asyncio.run(aanswer(routed, call))):
            assert len(result.attempts) == (1 if late else 2)
            assert result.final.decision.tier == "small" and result.reply.text
            assert result.final.doubt and not result.final.problem


def test_the_best_tier_and_what_was_shown_are_not_doubted(family: Family, pool: Pool) -> None:
    unsure = router(
        family, pool, made_calibration(signals=Signals(np.array([NEVER, NEVER]), unmoved(2)))
    )
    assert len(answer(unsure, CALL, pin="small").attempts) == 1
    assert len(answer(unsure, CALL, pin="large").attempts) == 1
    *pieces, result = stream_answer(unsure, CALL)
    assert len(pieces) > 1 and len(result.attempts) == 1  # text leaves as it comes, and stands


def test_where_routing_does_not_pay_nothing_is_doubted(family: Family, pool: Pool) -> None:
    signals = Signals(np.array([NEVER, ALWAYS]), unmoved(2))
    fixed = router(family, pool, made_calibration(route=False, signals=signals))
    assert not answer(fixed, CALL).escalated


def test_margins_raise_and_lower_a_chance() -> None:
    rng = np.random.default_rng(0)
    margins = rng.random((400, 3))
    y = (margins.min(axis=1) > 0.2).astype(float)
    sure = np.array([[sureness(row.tolist())] for row in margins])
    none = np.zeros((400, 1), bool)
    found = Signals.fit(np.full((400, 1), 0.5), sure, none, y[:, None])
    assert found(0, 0.5, (0.7, 0.9, 0.8)) > 0.8 > 0.2 > found(0, 0.5, (0.01, 0.9, 0.8))
    assert sureness(()) == (1.0, 1.0) and sureness((0.2, 0.4)) == (0.2, pytest.approx(0.3))


def test_faults_lower_a_chance_and_that_of_others_with_it() -> None:
    """Two tiers that fail at the same calls: what one has failed at, the other seldom does."""
    rng = np.random.default_rng(1)
    hard = rng.random(2000) < 0.5
    y = np.where(hard[:, None], rng.random((2000, 2)) < 0.1, rng.random((2000, 2)) < 0.9)
    problems = ~y & (rng.random((2000, 2)) < 0.8)
    chances, sure = np.full((2000, 2), 0.5), np.full((2000, 2, 2), 0.7)
    found = Signals.fit(chances, sure, problems, y.astype(float))
    clean, faulty = (found(0, 0.5, (0.7, 0.7), problem=one) for one in (False, True))
    assert faulty < 0.05 < 0.7 < clean

    def other(after: float) -> float:
        return float(found.instead(0, np.array([after]), 1, np.array([0.5]))[0])

    assert other(faulty) == pytest.approx(0.18, abs=0.06)  # by Bayes' rule
    assert other(clean) == pytest.approx(0.76, abs=0.06)


def test_with_prices_a_faulty_reply_stands_where_nobody_would_do_better(
    family: Family, pool: Pool
) -> None:
    hopeless = unmoved(2)
    hopeless[0, 1] = [0.0, 0.0, -9.0]
    lost = made_calibration(signals=Signals(np.array([NEVER, ALWAYS]), hopeless))
    dear, free = Budget(quality=0.0, price_per_second=1e-3), Budget(quality=0.0)
    reply = Reply("x", margins=(0.5,))

    def pays(calibration: Calibration, budget: Budget) -> bool:
        asked = Router(family, pool, budget, probe=lambda: PLENTY, calibration=calibration)
        decision = replace(asked.decide(CALL), tier="small")
        return asked.pays(decision, reply, budget)

    assert pays(lost, free) and not pays(lost, dear)
    assert pays(made_calibration(signals=Signals(np.array([NEVER, ALWAYS]), unmoved(2))), dear)
    assert pays(made_calibration(), dear)  # nothing is known of replies


def test_a_promise_rests_on_chances_as_they_were_learned(family: Family, pool: Pool) -> None:
    routed = router(family, pool, made_calibration())
    budget = Budget(quality=0.5, guarantee=0.9)
    plain = routed.decide(CALL).forecasts[0].success
    for _ in range(30):
        routed.adaptation.observe("small", plain, False)
    assert routed.decide(CALL).forecasts[0].success < 0.5 * plain
    assert routed.decide(CALL, budget=budget).forecasts[0].success == plain
    # Where routing does not pay, chances are means, which nothing was promised of.
    fixed = router(family, pool, made_calibration(route=False))
    assert fixed.decide(CALL).tier == "small"
    assert fixed.decide(CALL, budget=budget).tier == "large"

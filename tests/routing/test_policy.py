"""Feasible first, then the cheapest above the floor, as long as coming back does not cost more."""

from __future__ import annotations

from typing import Any

import pytest

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import feasible_first
from tierwise.runtime.errors import NoFeasibleTierError


def forecast(tier: str, success: float, seconds: float, why_not: str = "", **more: Any) -> Forecast:
    values: dict[str, Any] = {
        "tier": tier,
        "success": success,
        "seconds": seconds,
        "first_token_s": seconds / 2,
        "joules": seconds * 12,
        "memory_bytes": 5_000_000,
        "new_tokens": 10,
        "cold": False,
        "feasible": not why_not,
        "verdict": why_not,
    }
    return Forecast(**{**values, **more})


SMALL, MIDDLE, LARGE = (
    forecast("small", 0.50, 1.0),
    forecast("middle", 0.75, 2.0),
    forecast("large", 0.80, 4.0),
)
ALL = (SMALL, MIDDLE, LARGE)


def choose(*forecasts: Forecast, quality: float = 0.9, current: str | None = None) -> str:
    return feasible_first(forecasts, Budget(quality=quality), current)[0]


def test_the_cheapest_above_the_floor() -> None:
    assert choose(*ALL) == "middle"  # 0.75 of 0.80 is 94 %
    name, reason, judged = feasible_first(ALL, Budget(quality=0.9), None)
    assert reason == "middle is the quickest of 2 that reach the quality floor (75% against 72%)"
    assert {f.tier: f.verdict for f in judged} == {
        "small": "below the quality floor of 72%",
        "middle": "chosen",
        "large": "+2.00 s against middle",
    }
    assert [f.tier for f in judged] == ["small", "middle", "large"] and name == "middle"


def test_the_dial_from_end_to_end() -> None:
    assert choose(*ALL, quality=1.0) == "large"
    assert choose(*ALL, quality=0.0) == "small"
    chosen = [choose(*ALL, quality=step / 20) for step in range(21)]
    order = ["small", "middle", "large"]
    assert [order.index(name) for name in chosen] == sorted(order.index(name) for name in chosen)


def test_the_quickest_need_not_be_the_smallest() -> None:
    cached = forecast("large", 0.80, 0.5)
    assert choose(SMALL, MIDDLE, cached, quality=0.0) == "large"


def test_tiers_that_are_just_as_good_as_the_best_will_do_at_quality_one() -> None:
    assert choose(forecast("small", 0.8, 1.0), LARGE, quality=1.0) == "small"


def test_what_is_infeasible_is_never_chosen() -> None:
    out = forecast("middle", 0.75, 2.0, "it does not fit")
    assert choose(SMALL, out, LARGE) == "large"
    judged = feasible_first((SMALL, out, LARGE), Budget(), None)[2]
    assert judged[1] == out  # keeps its own reason


def test_the_floor_is_that_of_the_best_even_where_the_best_cannot_run() -> None:
    out = forecast("large", 0.80, 4.0, "it does not fit")
    assert choose(SMALL, MIDDLE, out) == "middle"


def test_the_best_feasible_where_none_reaches_the_floor() -> None:
    out = forecast("large", 1.0, 4.0, "it does not fit")
    name, reason, _ = feasible_first((SMALL, MIDDLE, out), Budget(quality=0.9), None)
    assert name == "middle"
    assert reason == (
        "no tier within the budget reaches the quality floor of 90%; middle comes nearest with 75%"
    )
    twin = forecast("twin", 0.75, 1.5)
    assert choose(SMALL, MIDDLE, twin, out) == "twin"  # equally good: the quicker


def held(seconds: float, *, new: int = 10, back: float = 0.3, again: float = 2.0) -> Forecast:
    """Of the tier that has the conversation."""
    return forecast("large", 0.8, seconds, new_tokens=new, return_s=back, reload_s=again)


def test_a_conversation_leaves_for_more_than_coming_back_would_cost() -> None:
    quick = forecast("quick", 0.8, 1.0, new_tokens=400)
    assert choose(quick, held(1.29), current="large") == "large"
    assert choose(quick, held(1.31), current="large") == "quick"
    assert choose(quick, held(1.29)) == "quick"
    reason = feasible_first((quick, held(1.1)), Budget(), "large")[1]
    assert reason == (
        "the conversation stays with large: quick would save only 0.10 s, and coming back could "
        "take 0.30 s"
    )


def test_it_stays_longer_where_leaving_unloads_its_tier() -> None:
    crowds = forecast("quick", 0.8, 1.0, new_tokens=400, crowds=True)
    assert choose(crowds, held(2.9), current="large") == "large"
    assert choose(crowds, held(3.1), current="large") == "quick"


def test_a_tier_that_has_lost_a_conversation_does_not_hold_it() -> None:
    quick = forecast("quick", 0.8, 1.0, new_tokens=400)
    assert choose(quick, held(1.1, new=399), current="large") == "large"
    assert choose(quick, held(1.1, new=400), current="large") == "quick"


def test_it_stays_with_no_tier_that_fails_it() -> None:
    quick = forecast("quick", 0.8, 1.0)
    below, out = forecast("old", 0.1, 1.01), forecast("old", 0.8, 1.01, "gone")
    assert choose(quick, below, current="old") == "quick"
    assert choose(quick, out, current="old") == "quick"
    assert choose(quick, current="no longer there") == "quick"


def test_no_feasible_tier_lists_each_with_its_need() -> None:
    out = (
        forecast("small", 0.5, 1.0, "too slow"),
        forecast("middle", 0.7, 2.5, "too big", memory_bytes=1_500_000_000),
        forecast("large", 0.8, 4.0, "its file is missing", memory_bytes=0),
    )
    with pytest.raises(NoFeasibleTierError) as caught:
        feasible_first(out, Budget(), None)
    text = str(caught.value)
    assert "small: too slow (needs 5 MB, 1.00 s)" in text
    assert "middle: too big (needs 1.5 GB, 2.50 s)" in text
    assert "large: its file is missing (needs 4.00 s)" in text  # no bytes: it cannot be asked
    assert "build a smaller tier" in text


def test_nobody_succeeds_and_the_quickest_answers() -> None:
    assert choose(forecast("a", 0.0, 2.0), forecast("b", 0.0, 1.0)) == "b"

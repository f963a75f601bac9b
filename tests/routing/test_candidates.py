"""Candidates with names of their own, among them models outside the family."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from tierwise.routing.budget import Budget
from tierwise.routing.candidates import AmongCandidates, OtherModel, shares
from tierwise.routing.decision import Forecast
from tierwise.runtime.errors import NoFeasibleTierError


def forecast(tier: str, success: float, seconds: float, feasible: bool = True) -> Forecast:
    return Forecast(
        tier=tier,
        success=success,
        seconds=seconds,
        first_token_s=seconds / 2,
        joules=1.0,
        memory_bytes=10**8,
        new_tokens=10,
        cold=False,
        feasible=feasible,
        verdict="" if feasible else "too large",
    )


TIERS = [forecast("q4", 0.6, 1.0), forecast("q6", 0.9, 1.5), forecast("q8", 0.91, 3.0)]
CLOUD = OtherModel(success=0.8, seconds=2.0, first_token_s=0.5)


def test_candidates_are_chosen_by_their_own_names() -> None:
    policy = AmongCandidates({"small": "q4", "large": "q8", "cloud": CLOUD})
    name, reason, judged = policy(TIERS, Budget(quality=0.9), None)
    assert name == "large" and reason.startswith("large is the quickest of 1")
    assert [one.tier for one in judged] == ["small", "large", "cloud"]  # q6 is no candidate
    assert judged[1].seconds == 3.0 and judged[2].memory_bytes == 0
    assert policy(TIERS, Budget(quality=0.85), None)[0] == "cloud"
    assert policy(TIERS, Budget(quality=0.5), None)[0] == "small"


def test_limits_hold_for_models_outside_the_family_too() -> None:
    policy = AmongCandidates({"large": "q8", "cloud": CLOUD})
    low = {"quality": 0.5}
    assert policy(TIERS, Budget(**low), None)[0] == "cloud"
    assert policy(TIERS, Budget(**low, seconds_to_first_token=0.4), None)[0] == "large"
    late = AmongCandidates({"cloud": CLOUD})
    with pytest.raises(NoFeasibleTierError, match=r"cloud: 2.00 s is over the 1.00 s allowed"):
        late(TIERS, Budget(seconds_per_call=1.0), None)
    slow = OtherModel(success=0.9, seconds=1.0)
    assert slow.forecast("x", Budget()).first_token_s == 1.0
    assert not slow.forecast("x", Budget(seconds_to_first_token=0.9)).feasible


def test_a_conversation_stays_with_its_tier() -> None:
    unread = replace(TIERS[0], new_tokens=400)  # it has not read what the other one has
    near = [unread, replace(TIERS[2], seconds=1.6, return_s=0.2)]
    policy = AmongCandidates({"a": "q4", "b": "q8"})
    assert policy(near, Budget(quality=0.0), None)[0] == "a"
    assert policy(near, Budget(quality=0.0), "q8")[0] == "a"  # 1.6 against 1.0 s
    close = [unread, replace(TIERS[2], seconds=1.1, return_s=0.2)]
    name, reason, _ = policy(close, Budget(quality=0.0), "q8")
    assert name == "b" and reason.startswith("the conversation stays with b")


def test_shares_are_of_the_quickest_that_is_right() -> None:
    found = shares([*TIERS, forecast("huge", 1.0, 0.1, feasible=False)], "q6")
    assert found == pytest.approx(
        {"q4": 0.6 / 0.91, "q6": 0.3 / 0.91, "q8": 0.01 / 0.91, "huge": 0}
    )
    assert list(found) == ["q4", "q6", "q8", "huge"]
    worse_and_slower = [forecast("good", 0.9, 1.0), forecast("bad", 0.5, 2.0)]
    assert shares(worse_and_slower, "good") == {"good": 1.0, "bad": 0.0}
    hopeless = [forecast("a", 0.0, 1.0), forecast("b", 0.0, 2.0)]
    assert shares(hopeless, "b") == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize("wrong", [{"success": 1.5, "seconds": 1}, {"success": 0.5, "seconds": 0}])
def test_numbers_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        OtherModel(**wrong)

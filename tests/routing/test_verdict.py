"""The verdict: routes where there is something to gain, and says why not where there is not."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from tierwise.routing.budget import Budget
from tierwise.routing.controls import cheapest_that_will_do, fixed_mix, shuffled
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import feasible_first
from tierwise.routing.verdict import CONTROLS, FEWEST, Verdict, judge
from tierwise.runtime.errors import ConfigError

TIERS = ("small", "large")
COST = np.array([1.0, 4.0])


def calls(n: int, seed: int, skill: float = 1.0) -> dict[str, Any]:
    """Half of the calls are hard for the small tier; routing sees which with a chance that grows
    with ``skill`` from none to all. Lengths say nothing."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < 0.5
    small = rng.random(n) < np.where(hard, 0.2, 0.9)
    large = rng.random(n) < 0.9
    seen = np.where(rng.random(n) < skill, hard, rng.random(n) < 0.5)
    return {
        "choice": seen.astype(np.intp),
        "outcomes": np.stack((small, large), axis=1).astype(float),
        "lengths": rng.integers(10, 1000, n),
    }


def verdict(data: dict[str, Any], **more: Any) -> Verdict:
    return judge(cost=COST, tiers=TIERS, draws=300, **{**data, **more})


def test_routing_that_sees_which_calls_are_hard_is_worth_it() -> None:
    found = verdict(calls(600, 0))
    assert found.route and found.n == found.prompts == 600
    assert found.best_fixed == "large"
    table = {contender.name: contender for contender in found.table}
    assert list(table) == ["routed", *CONTROLS, "always small", "always large", "oracle"]
    assert all(table[name].lead.low > 0 for name in CONTROLS)
    assert table["routed"].lead.value == 0 and table["oracle"].lead.high < 0
    assert table["always small"].cost.value == 1 and table["always large"].cost.value == 4
    assert table["oracle"].quality.value >= table["routed"].quality.value
    assert "beats every control" in found.reason and "%" in found.reason


def test_what_the_table_says_is_what_was_measured() -> None:
    data = calls(400, 1)
    y, choice = data["outcomes"], data["choice"]
    table = {contender.name: contender for contender in verdict(data).table}
    routed = y[np.arange(400), choice].mean()
    share = choice.mean()
    drawn = share * y[:, 1].mean() + (1 - share) * y[:, 0].mean()
    assert table["routed"].quality.value == pytest.approx(routed)
    assert table["routed"].cost.value == pytest.approx(1 + 3 * share)
    assert table["random"].quality.value == pytest.approx(drawn)
    assert table["random"].lead.value == pytest.approx(routed - drawn)
    assert table["random"].cost.value == pytest.approx(1 + 3 * share)
    # The cost is the same for all calls: then these three are one.
    assert table["shuffle"].quality.value == pytest.approx(drawn)
    assert table["mix"].quality.value == pytest.approx(drawn)
    longest = np.argsort(data["lengths"], kind="stable")[400 - choice.sum() :]
    by_length = y[:, 0].copy()
    by_length[longest] = y[longest, 1]
    assert table["length"].quality.value == pytest.approx(by_length.mean(), abs=0.01)
    assert table["oracle"].quality.value == pytest.approx(y.max(axis=1).mean())


def test_leads_are_paired() -> None:
    """The interval of a lead is much narrower than those of what it compares."""
    table = {contender.name: contender for contender in verdict(calls(600, 2)).table}
    lead, quality = table["random"].lead, table["routed"].quality
    sd = 0.5 * math.sqrt(0.9 * 0.1 + 0.5 * 0.5) / math.sqrt(600)
    assert lead.high - lead.low < 2 * 1.96 * sd * 1.6
    assert quality.low < quality.value < quality.high


@pytest.mark.parametrize("kind", ["no skill", "noise", "alike"])
def test_what_is_not_worth_it_is_seldom_routed(kind: str) -> None:
    routed = 0
    for seed in range(80):
        data = calls(300, seed, skill=0.0 if kind == "no skill" else 1.0)
        rng = np.random.default_rng(seed + 1000)
        if kind == "noise":  # labels that have nothing to do with the call
            data["outcomes"] = (rng.random((300, 2)) < (0.5, 0.8)).astype(float)
        if kind == "alike":  # tiers that fail by chance alone, equally often
            data["outcomes"] = (rng.random((300, 2)) < 0.7).astype(float)
        found = verdict(data, seed=seed, floor=0.0)
        routed += found.route
        assert found.route or "not shown to be better than" in found.reason
    assert routed <= 4  # 2.5 % and what chance adds


def test_routing_by_length_is_no_better_than_length() -> None:
    data = calls(600, 3)
    data["lengths"] = 100 * data["choice"] + np.random.default_rng(0).integers(0, 50, 600)
    found = verdict(data)
    assert not found.route and "longest requests" in found.reason
    assert found.table[CONTROLS.index("length") + 1].lead.value == pytest.approx(0, abs=1e-9)


def test_a_middle_tier_that_does_as_well_makes_routing_needless() -> None:
    data = calls(600, 4)
    middle = data["outcomes"][np.arange(600), data["choice"]]  # as good as routing, and cheaper
    data["outcomes"] = np.stack((data["outcomes"][:, 0], middle, data["outcomes"][:, 1]), axis=1)
    data["choice"] = data["choice"] * 2
    found = judge(cost=np.array([1.0, 1.5, 4.0]), tiers=("s", "m", "l"), draws=300, **data)
    assert not found.route and "mixture of fixed tiers" in found.reason
    assert found.best_fixed == "m"


def test_a_shuffle_keeps_to_calls_of_the_same_cost() -> None:
    """Routing that knows no more than the cost of a call is not better than its shuffle."""
    rng = np.random.default_rng(5)
    dear = rng.random(800) < 0.5
    outcomes = np.stack((rng.random(800) < np.where(dear, 0.2, 0.9), rng.random(800) < 0.9), axis=1)
    cost = np.outer(np.where(dear, 3.0, 1.0), COST)
    found = judge(
        dear.astype(np.intp),
        outcomes.astype(float),
        cost,
        TIERS,
        lengths=rng.random(800),
        draws=300,
    )
    table = {contender.name: contender for contender in found.table}
    assert table["random"].lead.low > 0 and not found.route
    assert table["shuffle"].lead.value == pytest.approx(0, abs=1e-9)
    assert table["shuffle"].cost.value == pytest.approx(table["routed"].cost.value)
    assert "same cost" in found.reason


def test_below_the_floor_it_does_not_count() -> None:
    data = calls(600, 6, skill=0.6)
    assert verdict(data, floor=0.8).route
    found = verdict(data, floor=1.0)
    assert not found.route and "below the" in found.reason and found.best_fixed == "large"


def test_the_best_fixed_tier_is_the_cheapest_that_fits() -> None:
    data = calls(600, 7)
    assert [verdict(data, floor=f).best_fixed for f in (1.0, 0.9, 0.5)] == [
        "large",
        "large",
        "small",
    ]


@pytest.mark.parametrize("n", [1, 10, FEWEST - 1])
def test_too_few_rows(n: int) -> None:
    found = verdict(calls(n, 0))
    assert not found.route and f"only {n} calls" in found.reason and found.table == ()


def test_no_rows() -> None:
    found = verdict({k: v[:0] for k, v in calls(5, 0).items()})
    assert not found.route and found.best_fixed == "large" and found.n == 0


def test_copies_of_few_prompts_are_few() -> None:
    data = calls(10, 0)
    many = {
        name: np.tile(x, (60, 1)) if x.ndim == 2 else np.tile(x, 60) for name, x in data.items()
    }
    found = verdict(many, groups=[f"p{i}" for i in range(10)] * 60)
    assert not found.route and found.prompts == 10 and found.n == 600
    assert "(10 of them different)" in found.reason


def test_copies_do_not_make_a_lead_out_of_chance() -> None:
    """60 prompts ten times over: without groups, chance would look ten times as sure."""
    naive = fair = 0
    for seed in range(40):
        data = calls(60, seed, skill=0.0)
        many = {k: np.tile(x, (10, 1)) if x.ndim == 2 else np.tile(x, 10) for k, x in data.items()}
        naive += verdict(many, floor=0).route
        fair += verdict(many, floor=0, groups=list(range(60)) * 10).route
    assert fair <= 3 < naive


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class(value: float) -> None:
    data = calls(200, 0)
    data["outcomes"][:] = value
    found = verdict(data)
    assert not found.route and found.best_fixed == "small"
    assert f"every tier {'succeeded' if value else 'failed'} on all 200 calls" in found.reason


def test_tiers_that_always_agree() -> None:
    data = calls(200, 0)
    data["outcomes"][:, 0] = data["outcomes"][:, 1]
    found = verdict(data)
    assert not found.route and "on the same calls" in found.reason


def test_one_tier_for_every_call() -> None:
    data = calls(200, 0)
    data["choice"][:] = 1
    assert "sends every call to large" in verdict(data).reason
    one = judge(np.zeros(60, np.intp), np.ones((60, 1)), np.ones(1), ["a"], lengths=np.ones(60))
    assert not one.route and one.reason == "a is the only tier"


def test_calls_that_a_tier_was_not_asked_are_left_out() -> None:
    data = calls(600, 8)
    data["outcomes"][::3, 1] = np.nan
    found = verdict(data)
    assert found.n == 400 and found.route
    kept = np.arange(600) % 3 > 0
    assert found.table == verdict({name: x[kept] for name, x in data.items()}).table


def test_it_can_be_told() -> None:
    found = verdict(calls(600, 0))
    assert json.loads(json.dumps(found.to_json()))["table"][0]["name"] == "routed"
    lines = str(found).splitlines()
    assert lines[0].startswith("route: ") and len(lines) == 2 + len(found.table)
    assert str(verdict(calls(10, 0))).startswith("do not route, always use ")


@pytest.mark.parametrize(
    "wrong",
    [
        {"choice": np.array([0, 2] * 50)},
        {"choice": np.array([0, -1] * 50)},
        {"choice": np.zeros(99, np.intp)},
        {"lengths": np.zeros(99)},
        {"outcomes": np.zeros((100, 3))},
        {"groups": ["a"]},
    ],
)
def test_what_does_not_fit_together(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a verdict needs"):
        verdict(calls(100, 0), **wrong)


# --- Controls -------------------------------------------------------------------------------------


def forecast(tier: str, success: float, seconds: float) -> Forecast:
    values: dict[str, Any] = {field.name: 0 for field in fields(Forecast)}
    values |= {"tier": tier, "success": success, "seconds": seconds, "feasible": True}
    return Forecast(**values)


@pytest.mark.parametrize("seed", range(5))
def test_decisions_are_those_of_the_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, cost, quality = rng.random((20, 3)).round(1), rng.random((20, 3)), rng.random()
    chosen = cheapest_that_will_do(predicted, cost, quality)
    for row, number in enumerate(chosen):
        forecasts = [
            forecast(str(i), float(p), float(c))
            for i, (p, c) in enumerate(zip(predicted[row], cost[row], strict=True))
        ]
        assert feasible_first(forecasts, Budget(quality=quality), None)[0] == str(number)


def test_a_mix_costs_what_routing_costs_and_is_the_best_of_its_kind() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((300, 3)) < (0.3, 0.7, 0.8)).astype(float)
    spent = np.broadcast_to(np.array([1.0, 2.0, 4.0]), (300, 3))
    for tier, wanted in ((0, [1, 0, 0]), (1, [0, 1, 0]), (2, [0, 0, 1])):
        routed = np.eye(3)[[tier] * 300]
        assert fixed_mix(routed, y, spent)[0].tolist() == pytest.approx(wanted)
    routed = np.eye(3)[rng.integers(0, 3, 300)]
    mix = fixed_mix(routed, y, spent)
    assert (mix[0] @ spent[0]) == pytest.approx((routed * spent).sum(axis=1).mean())
    assert (mix * y).sum() > (shuffled(routed) * y).sum()

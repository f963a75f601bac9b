"""Prices of seconds, memory and joules; energy limits; power that comes and goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_factory import (
    PLENTY,
    ask,
    by_chance,
    by_kind,
    calibrated,
    made_calibration,
    scripted_pair,
    two_tiers,
)
from family_factory import TierSpec, make_family
from scripted_model import FRUIT
from tiny_models import write_tiny_gguf

from tierwise.routing.answer import Answer, Attempt
from tierwise.routing.budget import LOW_BATTERY, SAVER_QUALITY, Budget
from tierwise.routing.cascade import answer
from tierwise.routing.decision import Decision, Forecast
from tierwise.routing.policy import feasible_first
from tierwise.routing.prices import JOULE_SECONDS, Prices
from tierwise.routing.router import Router
from tierwise.routing.signals import Signals, unmoved
from tierwise.runtime.chat import Call, Message, Reply
from tierwise.runtime.errors import ConfigError, NoFeasibleTierError
from tierwise.runtime.family import Family
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.resources import Resources

NAMES = ("small", "middle", "large")


def forecast(tier: str, success: float, seconds: float, **more: Any) -> Forecast:
    values: dict[str, Any] = {
        "tier": tier,
        "success": success,
        "seconds": seconds,
        "first_token_s": seconds / 2,
        "joules": seconds * 12,
        "memory_bytes": 500_000_000,
        "new_tokens": 10,
        "cold": False,
        "feasible": True,
        "verdict": "",
    }
    return Forecast(**{**values, **more})


SMALL, MIDDLE, LARGE = (
    forecast("small", 0.50, 1.0, memory_bytes=250_000_000),
    forecast("middle", 0.75, 2.0),
    forecast("large", 0.80, 4.0, memory_bytes=2_000_000_000),
)
ALL = (SMALL, MIDDLE, LARGE)


def choose(budget: Budget, *forecasts: Forecast, current: str | None = None) -> str:
    return feasible_first(forecasts or ALL, budget, current)[0]


# --- Prices ---------------------------------------------------------------------------------------


def test_the_value_is_the_chance_less_what_a_call_costs() -> None:
    prices = Prices.of(
        Budget(price_per_second=0.01, price_per_gigabyte=0.05, price_per_joule=0.001)
    )
    assert prices.cost(LARGE) == pytest.approx(0.01 * 4 + 0.05 * 2 + 0.001 * 48)
    assert prices.value(LARGE) == pytest.approx(0.8 - prices.cost(LARGE))
    assert prices.told(LARGE) == "4.00 s, 2.00 GB, 48 J"
    assert Prices.of(Budget(price_per_joule=0.001)).told(LARGE) == "48 J"


@pytest.mark.parametrize(
    ("price", "turns"),
    [
        ("price_per_second", (0.025, 0.25)),  # 0.05 for 2 s, 0.25 for 1 s
        ("price_per_joule", (0.05 / 24, 0.25 / 12)),
        ("price_per_gigabyte", (0.05 / 1.5, 1.0)),
    ],
)
def test_each_price_is_weighed_against_success(price: str, turns: tuple[float, float]) -> None:
    def with_price(value: float) -> str:
        return choose(Budget(quality=0.0, **{price: value}))

    first, second = turns
    assert [with_price(first * 0.99), with_price(first * 1.01)] == ["large", "middle"]
    assert [with_price(second * 0.99), with_price(second * 1.01)] == ["middle", "small"]


def test_the_floor_holds_whatever_the_price() -> None:
    assert choose(Budget(quality=0.9, price_per_second=100)) == "middle"
    assert choose(Budget(quality=1.0, price_per_second=100)) == "large"
    assert choose(Budget(quality=0.9, price_per_second=0.001)) == "large"
    assert choose(Budget(quality=0.9)) == "middle"  # nothing is priced: the quickest


def test_the_reason_and_the_verdicts_tell_the_worth() -> None:
    _, reason, judged = feasible_first(ALL, Budget(quality=0.7, price_per_second=0.01), None)
    assert reason == (
        "large is worth most of 2 that reach the quality floor of 56% (80% less 0.040 for 4.00 s)"
    )
    assert {f.tier: f.verdict for f in judged} == {
        "small": "below the quality floor of 56%",
        "middle": "worth 0.030 less than large",
        "large": "chosen",
    }


def test_staying_is_weighed_in_the_same_coin() -> None:
    """The large tier has the conversation; at 0.05 a second the middle one is worth 0.05 more."""
    budget = Budget(quality=0.5, price_per_second=0.05)
    fresh = replace(MIDDLE, new_tokens=300)

    def staying(back: float) -> tuple[str, str]:
        name, reason, judged = feasible_first(
            (fresh, replace(LARGE, return_s=back)), budget, "large"
        )
        return name, reason if name == "large" else judged[0].verdict

    assert staying(0.9) == ("middle", "chosen")
    name, reason = staying(1.1)
    assert name == "large"
    assert reason == (
        "the conversation stays with large: middle is worth only 0.050 more, and coming back could "
        "take 1.10 s"
    )
    # Coming back takes joules as well.
    both = Budget(quality=0.5, price_per_joule=0.05 / 12)
    assert choose(both, fresh, replace(LARGE, return_s=0.9), current="large") == "middle"
    assert choose(both, fresh, replace(LARGE, return_s=1.1), current="large") == "large"


# --- Joules and power -----------------------------------------------------------------------------


def test_scarce_power_weighs_joules_with_seconds() -> None:
    far = forecast("far", 0.75, 5.0, joules=0.0)  # as of a tier on another machine
    seen = {power: choose(Budget(power=power), MIDDLE, far) for power in JOULE_SECONDS}
    assert seen == {"auto": "middle", "performance": "middle", "balanced": "middle", "saver": "far"}
    assert choose(Budget(power="balanced"), MIDDLE, replace(far, seconds=3.1)) == "far"
    reason = feasible_first((MIDDLE, far), Budget(power="saver"), None)[1]
    assert reason == (
        "far takes the fewest seconds and joules of 2 that reach the quality floor (75% against "
        "56%; power: saver)"
    )
    # A price of joules of the user's own counts as it is.
    own = Budget(power="saver", price_per_joule=0.0, quality=0.9)
    assert choose(own, MIDDLE, far) == "middle"


def test_the_scarcer_power_is_the_fewer_joules_are_taken() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        tiers = [
            forecast(str(i), success, seconds, joules=joules)
            for i, (success, seconds, joules) in enumerate(rng.random((4, 3)).tolist())
        ]
        for price in (0.0, 0.3):
            taken = []
            for power in ("performance", "balanced", "saver"):
                budget = Budget(power=power, price_per_second=price, quality=0.6)
                name = choose(budget, *tiers)
                taken.append(tiers[int(name)].joules)
            assert taken == sorted(taken, reverse=True)


def resources(battery: float | None = None, *, discharging: bool = False) -> Resources:
    return replace(PLENTY, battery=battery, on_battery=discharging)


def test_auto_goes_by_mains_and_battery() -> None:
    def power(*machine: Any, **state: Any) -> str:
        return Budget().on(resources(*machine, **state)).power

    assert power() == power(0.05) == power(1.0) == "performance"
    assert power(0.8, discharging=True) == power(None, discharging=True) == "balanced"
    assert power(LOW_BATTERY, discharging=True) == "saver"
    low = resources(0.1, discharging=True)
    assert Budget(power="performance").on(low) == Budget(power="performance")
    assert Budget(power="saver").on(resources()).power == "saver"


def test_only_a_floor_that_nobody_gave_is_lowered() -> None:
    low, half = resources(0.1, discharging=True), resources(0.5, discharging=True)
    assert Budget().on(low).quality == Budget(power="saver").quality == SAVER_QUALITY
    assert Budget().on(half).quality == Budget().on(resources()).quality == Budget().quality
    assert Budget(quality=0.9).on(low).quality == 0.9
    assert Budget(power="saver", quality=1.0).quality == 1.0
    promised = Budget(guarantee=0.9)
    assert promised.on(low).quality == promised.quality and promised.on(low).power == "performance"
    assert Budget(mean_quality=0.95).on(low).power == "performance"
    assert Budget(quality=0.9).for_the_cheapest().on(low).quality == 0.0


def test_a_forecast_over_the_joules_is_infeasible() -> None:
    out = replace(LARGE, feasible=False, verdict="48 J is over the 30 J allowed")
    with pytest.raises(NoFeasibleTierError, match=r"large: 48 J .* \(needs 2\.0 GB, 4\.00 s, 48 J"):
        choose(Budget(joules_per_call=30), out)


# --- Conversations --------------------------------------------------------------------------------


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """Each tier is better than the one before, and takes four times as long."""
    shares = {"small": 0.6, "middle": 0.75, "large": 0.9}
    kls = {"small": 0.2, "middle": 0.05, "large": 0.0}
    specs = []
    for rank, name in enumerate(NAMES):
        file = write_tiny_gguf(tmp_path / f"{name}.gguf", layers=rank + 1, context=2048)
        success = dict.fromkeys(("easy", "medium", "hard"), shares[name])
        speed = 4**rank
        specs.append(
            TierSpec(name, file, kls[name], success, 400, 4000 / speed, 400 / speed, load_s=0.0)
        )
    return make_family(tmp_path / "family", specs)


class Machine:
    """A resource probe whose answer a test may change."""

    def __init__(self) -> None:
        self.now = PLENTY

    def __call__(self) -> Resources:
        return self.now


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def pool(family: Family, machine: Machine) -> Iterator[Pool]:
    with Pool(family, probe=machine, threads=1) as opened:
        yield opened


MAINS, UNPLUGGED, LOW = (
    resources(1.0),
    resources(0.7, discharging=True),
    resources(0.1, discharging=True),
)


def talk(router: Router, machine: Machine, *states: Resources) -> list[Decision]:
    """Decisions on the turns of one conversation, each answered by the tier that was chosen."""
    call = Call((Message("user", "hello Paris"),), max_tokens=40)
    found = []
    for state in states:
        machine.now = state
        found.append(router.decide(call))
        with router.pool.acquire(found[-1].tier, context_tokens=512) as lease:
            lease.tier.reply(replace(call, max_tokens=1))  # reads the conversation
        router.learn(call, Answer((Attempt(found[-1], Reply("yes"), 0.0, ""),)))
        call = call.with_messages(Message("assistant", "yes"), Message("user", "and Oslo?"))
    return found


def test_unplugging_changes_the_tier_of_a_conversation_and_plugging_in_changes_it_back(
    family: Family, pool: Pool, machine: Machine
) -> None:
    cores = {
        name: profile.model_copy(update={"threads": 8})
        for name, profile in family_profiles(family).items()
    }
    budget = Budget(quality=0.0, price_per_second=0.065)
    router = Router(family, pool, budget, probe=machine, profiles=cores)
    found = talk(router, machine, MAINS, UNPLUGGED, LOW, UNPLUGGED, MAINS)
    assert [one.tier for one in found] == ["large", "middle", "small", "middle", "large"]
    assert "power" not in found[0].reason and found[2].reason.endswith("; power: saver)")


def test_a_low_battery_lowers_the_floor_that_is_taken_by_default(
    family: Family, pool: Pool, machine: Machine
) -> None:
    states = (MAINS, LOW, UNPLUGGED)
    default = talk(Router(family, pool, probe=machine), machine, *states)
    assert [one.tier for one in default] == ["large", "middle", "large"]
    given = talk(Router(family, pool, Budget(quality=0.9), probe=machine), machine, *states)
    assert [one.tier for one in given] == ["large"] * 3


def test_the_joules_of_a_call_are_limited(family: Family, pool: Pool, machine: Machine) -> None:
    router = Router(family, pool, Budget(quality=1.0), probe=machine)
    call = Call((Message("user", "hello Paris"),), max_tokens=10)
    joules = {f.tier: f.joules for f in router.decide(call).forecasts}
    allowed = (joules["middle"] + joules["large"]) / 2
    decision = router.decide(call, budget=Budget(quality=1.0, joules_per_call=allowed))
    assert decision.tier == "middle"
    assert decision.forecasts[2].verdict == (
        f"{joules['large']:.3g} J is over the {allowed:.3g} J allowed"
    )
    assert f"{joules['middle']:.1f}" in decision.table()


def test_an_escalation_has_the_joules_that_are_left(tmp_path: Path) -> None:
    family = scripted_pair(tmp_path, FRUIT)
    never, always = (
        [0.0, 0.0, 0.0, 0.0, -9.0],
        [0.0, 0.0, 0.0, 0.0, 9.0],
    )  # sure of nothing, or of all
    doubting = made_calibration(signals=Signals(np.array([never, always]), unmoved(2)))
    seen: list[float | None] = []

    def policy(
        forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        seen.append(budget.joules_per_call)
        return feasible_first(forecasts, budget, current)

    call = Call((Message("user", "Tell me of the banana"),), max_tokens=20)
    budget = Budget(quality=0.5, joules_per_call=1000)
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(
            family, pool, budget, policy=policy, probe=lambda: PLENTY, calibration=doubting
        )
        result = answer(router, call)
    first, second = result.attempts
    assert seen == [1000, pytest.approx(1000 - first.joules)] and first.joules > 0
    watts = first.decision.forecast.joules / first.decision.forecast.seconds
    assert first.joules == pytest.approx(watts * first.seconds)
    assert result.joules == pytest.approx(first.joules + second.joules)
    told = result.to_json()
    assert told["total_joules"] == pytest.approx(result.joules, abs=0.001)
    assert told["predicted_joules"] == pytest.approx(second.decision.forecast.joules, abs=0.001)


def test_a_conversation_stays_for_what_coming_back_would_cost(
    family: Family, pool: Pool, machine: Machine
) -> None:
    """Forecasts hold it: reading later what this call brings, or all where it is unloaded."""
    router = Router(family, pool, Budget(quality=0.0), probe=machine)
    call = Call((Message("user", "hello " * 100),), max_tokens=10)
    with pool.acquire("large", context_tokens=1024) as lease:
        lease.tier.reply(call)
    small, _, large = router.decide(call).forecasts
    profile = router.cost.profiles["large"]
    assert large.new_tokens == 1 and small.new_tokens > 100
    assert large.return_s == pytest.approx((1 + 10) / profile.prefill_tokens_per_s)
    whole = (small.new_tokens + 10) / profile.prefill_tokens_per_s + profile.load_s
    assert large.reload_s == pytest.approx(whole)
    assert small.return_s == pytest.approx(small.reload_s)  # it is cold, and has nothing cached
    assert not small.crowds and not large.crowds
    machine.now = replace(PLENTY, available_bytes=small.memory_bytes - 1)
    assert router.decide(call).forecasts[0].crowds
    machine.now = PLENTY
    held = pool.resident()["large"].bytes
    crowded = Budget(quality=0.0, memory=held + small.memory_bytes - 1)
    assert router.decide(call, budget=crowded).forecasts[0].crowds
    roomy = Budget(quality=0.0, memory=held + small.memory_bytes)
    assert not router.decide(call, budget=roomy).forecasts[0].crowds


# --- Averages -------------------------------------------------------------------------------------


def test_a_price_of_seconds_is_found_for_an_average(tmp_path: Path) -> None:
    family = two_tiers(tmp_path)
    found = calibrated(family, by_kind)
    small, large = found.judged.cost.mean(axis=0)
    # Prompts of real tokens are longer here than those of the outcomes: the same seconds again.
    quick = {
        name: profile.model_copy(
            update={
                "load_s": 0.0,
                "prefill_tokens_per_s": 2.2 * profile.prefill_tokens_per_s,
                "decode_tokens_per_s": 2.2 * profile.decode_tokens_per_s,
            }
        )
        for name, profile in family_profiles(family).items()
    }
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found, profiles=quick)

        def decide(hard: bool, **asked: float) -> Decision:
            return router.decide(ask(hard), budget=Budget(**asked))

        ample = small / 4 + 3 * large / 4  # every second call is hard
        assert decide(False, mean_seconds=ample).tier == "small"
        assert decide(True, mean_seconds=ample).tier == "large"
        told = decide(True, mean_seconds=ample).reason
        assert "; a second is priced at " in told and "large is worth most of 2" in told
        assert decide(True, mean_seconds=small / 2).tier == "small"
        assert "cannot be kept" in decide(True, mean_seconds=small / 2).reason
        assert decide(True, mean_quality=0.3).tier == "small"
        chosen = set()
        for quality in (0.3, 0.6, 0.9, 1.0):
            price = found.price(Budget(mean_quality=quality)).per_second
            for hard in (False, True):
                decision = decide(hard, mean_quality=quality)
                best = max(decision.forecasts, key=lambda f: f.success - price * f.seconds)
                assert decision.tier == best.tier
                assert "of the best tier's successes" in decision.reason
                chosen.add((hard, decision.tier))
        assert {(False, "small"), (True, "small"), (True, "large")} <= chosen
        only = Router(family, pool, probe=lambda: PLENTY, calibration=found, tiers=["large"])
        alone = only.decide(ask(False), budget=Budget(mean_seconds=ample)).reason
        assert f"take {large:.2f} s" in alone and "cannot be kept" in alone
        plain = Router(family, pool, probe=lambda: PLENTY)
        for asked in ({"mean_seconds": 1.0}, {"mean_quality": 0.9}):
            ((name, value),) = asked.items()
            with pytest.raises(ConfigError, match=rf"{name}={value} cannot .*tierwise calibrate"):
                plain.decide(ask(True), budget=Budget(**asked))


def test_a_floor_beside_an_average_holds(tmp_path: Path) -> None:
    family = two_tiers(tmp_path)
    found = calibrated(family, by_kind)
    small, large = found.judged.cost.mean(axis=0)
    floored = found.price(Budget(mean_seconds=(small + large) / 4, quality=1.0))
    free = found.price(Budget(mean_seconds=(small + large) / 4))
    assert free.met and not floored.met
    assert floored.seconds > free.seconds and floored.right > free.right


def test_where_routing_does_not_pay_an_average_chooses_a_fixed_tier(tmp_path: Path) -> None:
    family = two_tiers(tmp_path)
    found = calibrated(family, by_chance)
    assert not found.verdict.route
    small, large = found.judged.cost.mean(axis=0)
    tight = found.price(Budget(mean_seconds=(small + large) / 2))
    assert tight.met and tight.seconds == pytest.approx(small)
    assert found.price(Budget(mean_seconds=2 * large)).seconds == pytest.approx(large)
    assert found.price(Budget(mean_seconds=2 * large)) is found.price(
        Budget(mean_seconds=2 * large)
    )


def test_with_prices_a_doubtful_reply_must_be_worth_a_second_call(tmp_path: Path) -> None:
    family = two_tiers(tmp_path)
    weights = np.array([[0.0, 0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0, 9.0]])  # small: 0.27
    signals = Signals(weights, unmoved(2))
    found = made_calibration(signals=signals)
    with Pool(family, probe=lambda: PLENTY, threads=1) as pool:
        router = Router(family, pool, probe=lambda: PLENTY, calibration=found)
        decision = router.decide(ask(False), pin="small")
        judged = router.decide(ask(False), budget=Budget(quality=0.0))
        large = next(f for f in judged.forecasts if f.tier == "large")
        decision = replace(judged, tier="small")
        turn = (large.success - 0.269) / large.seconds

        def doubt(price: float) -> str:
            budget = Budget(quality=0.0, price_per_second=price)
            return router.doubt(decision, Reply("x", margins=(0.5,)), budget)

        assert doubt(turn * 1.05) == ""
        assert "a chance of 27%, and large is worth 0.3" in doubt(turn * 0.9)

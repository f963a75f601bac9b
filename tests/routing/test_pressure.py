"""Memory and load that come and go between the calls of one conversation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from calibration_factory import made_calibration
from family_factory import TierSpec, make_family, make_quality
from tiny_models import write_tiny_gguf

from tierwise.routing.answer import Answer
from tierwise.routing.budget import Budget
from tierwise.routing.cascade import answer
from tierwise.routing.cost import UNKNOWN_KV_SPEED, CostModel, ExpectedReply
from tierwise.routing.difficulty import choices
from tierwise.routing.router import Router
from tierwise.routing.success import UNKNOWN_KV_KL, kept, narrowed
from tierwise.runtime.chat import Call, Message, Usage
from tierwise.runtime.context import KVType
from tierwise.runtime.family import Family
from tierwise.runtime.fit import BACK_AFTER
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import KVSpeed, family_profiles
from tierwise.runtime.resources import Resources
from tierwise.runtime.room import MARGIN_SHARE

LONG = 8192
ROOM = 5000
"""Tokens that a reply may have, so that contexts must be of `LONG`; grammars end it long before."""


class Machine:
    """A machine whose memory and cores other processes take and give back."""

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.left = 4 * 2**30
        self.others_load: float | None = None

    def __call__(self) -> Resources:
        taken = sum(one.bytes for one in self.pool.resident().values()) if self.pool else 0
        return Resources(
            available_bytes=max(0, self.left - taken),
            total_bytes=8 * 2**30,
            threads=1,
            others_load=self.others_load,
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ggufs")
    return [
        write_tiny_gguf(folder / f"{layers}.gguf", layers=layers, width=128, context=LONG)
        for layers in (1, 6)
    ]


@pytest.fixture
def family(files: list[Path], tmp_path: Path) -> Family:
    grades = ("easy", "medium", "hard")
    specs = [
        TierSpec(
            name,
            file,
            kl=kl,
            success=dict.fromkeys(grades, share),
            n=4000,
            prefill=speed,
            decode=speed / 10,
        )
        for name, file, kl, share, speed in (
            ("small", files[0], 0.5, 0.4, 4000.0),
            ("large", files[1], 0.0, 0.9, 1000.0),
        )
    ]
    return make_family(tmp_path / "family", specs)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def router(family: Family, machine: Machine) -> Iterator[Router]:
    with Pool(family, probe=machine, threads=1) as pool:
        machine.pool = pool
        yield Router(family, pool, Budget(quality=1.0), probe=machine)


def asked(turns: list[Message]) -> Call:
    return Call(tuple(turns), choices=("yes", "no"), max_tokens=ROOM)


def say(router: Router, turns: list[Message]) -> Answer:
    """One more turn of the conversation."""
    turns.append(Message("user", f"is it number {len(turns)}?"))
    found = answer(router, asked(turns))
    assert found.reply.text in ("yes", "no")
    turns.append(Message("assistant", found.reply.text))
    return found


def need(family: Family, tier: str, kv_type: KVType) -> int:
    return predict_memory(family.path(tier), LONG, kv_type=kv_type).total_bytes


def scarce(family: Family) -> int:
    """Bytes with which the large tier fits with q8_0 alone, and the small one with f16 too."""
    low, high = need(family, "small", "f16"), need(family, "large", "f16")
    assert need(family, "large", "q8_0") < low < 0.9 * high
    return int((low + high) / 2 / (1 - MARGIN_SHARE))


def test_a_conversation_under_pressure_goes_down_and_up_again(
    router: Router, family: Family, machine: Machine
) -> None:
    turns: list[Message] = []
    low, high = (need(family, name, "q8_0") for name in ("small", "large"))
    assert low < 0.8 * high
    machine.left = int((low + high) / 2)
    first = say(router, turns).final.decision.forecast
    assert (first.tier, first.kv_type) == ("small", "q8_0")
    machine.left = scarce(family)
    found = say(router, turns).final
    forecast = found.decision.forecast
    assert (forecast.tier, forecast.kv_type) == ("large", "q8_0")
    assert forecast.note.startswith("with keys and values as q8_0: as f16 it would need ")
    assert found.decision.reason.endswith(f", {forecast.note}")
    assert f"chosen (cold), {forecast.note}" in found.decision.table()
    machine.left = 4 * 2**30
    kinds, cold = [], []
    for _ in range(BACK_AFTER + 1):
        last = say(router, turns).final.decision
        kinds.append(last.forecast.kv_type)
        cold.append(last.forecast.cold)
        assert last.tier == "large"
    narrow = BACK_AFTER - 1  # it has answered one call as it is by then
    assert kinds == ["q8_0"] * narrow + ["f16"] * 2
    assert cold == [False] * narrow + [True, False]
    assert not last.forecast.note and "q8_0" not in last.reason
    machine.left = scarce(family)  # what is loaded stays: the memory is this process's own
    assert say(router, turns).final.decision.forecast.kv_type == "f16"


def test_narrower_keys_lower_the_chance_by_what_was_measured(
    router: Router, family: Family, machine: Machine
) -> None:
    call = asked([Message("user", "hello")])
    wide = router.decide(call)
    machine.left = scarce(family)
    narrow = router.decide(call)
    assert narrow.tier == "large"
    lost = math.exp(-choices(wide.difficulty) * UNKNOWN_KV_KL)
    assert narrow.forecast.success == pytest.approx(wide.forecast.success * lost)
    assert narrow.forecast.memory_bytes < wide.forecast.memory_bytes
    tier = family.tier("large")
    quality = tier.quality.model_copy(update={"kv_q8_0": make_quality(2.0).divergence})
    far = tier.model_copy(update={"quality": quality})
    assert narrowed(far, 0.9, 0.5) == pytest.approx(0.9 * math.exp(-7 * 2.0))
    assert kept(0.0, 0.5) == 1.0


def test_keys_that_cost_too_much_are_not_worth_it(
    files: list[Path], family: Family, machine: Machine, tmp_path: Path
) -> None:
    """By its measured divergence, the large tier would be worse than the small one."""
    quality = family.tier("large").quality
    measured = quality.model_copy(update={"kv_q8_0": make_quality(1.0).divergence})
    tiers = [
        tier.model_copy(update={"quality": measured}) if tier.name == "large" else tier
        for tier in family.tiers
    ]
    family.model_copy(update={"tiers": tuple(tiers)}).save(family.folder)
    other = Family.load(family.folder)
    with Pool(other, probe=machine, threads=1) as pool:
        machine.pool = pool
        router = Router(other, pool, Budget(quality=0.9), probe=machine)
        machine.left = scarce(other)
        assert router.decide(asked([Message("user", "hello")])).tier == "small"


def test_a_promise_is_kept_by_tiers_as_they_were_tested(
    family: Family, machine: Machine, router: Router
) -> None:
    router.calibration = made_calibration()
    machine.left = scarce(family)
    call = asked([Message("user", "hello")])
    assert router.decide(call).tier == "large"
    promised = router.decide(call, budget=Budget(quality=0.5, guarantee=0.9))
    assert promised.tier == "small"
    assert "but only" in promised.forecasts[1].verdict


def test_the_cost_of_narrower_keys(family: Family) -> None:
    profiles = family_profiles(family)
    reply = ExpectedReply(chosen=11.0, forced=0.0)
    cost = CostModel(profiles)
    plain = cost.cost("large", 1000, reply, cold=False)
    narrow = cost.cost("large", 1000, reply, cold=False, kv_type="q8_0")
    assert plain.seconds == pytest.approx(1.0 + 11 / 100)
    assert narrow.seconds == pytest.approx(1 / UNKNOWN_KV_SPEED.prefill + 11 / 100)
    measured = profiles["large"].model_copy(update={"kv_q8_0": KVSpeed(prefill=0.5, decode=2.0)})
    cost = CostModel({"large": measured})
    assert cost.cost("large", 1000, reply, cold=False, kv_type="q8_0").seconds == pytest.approx(
        1 / 0.5 + 11 / 200
    )


def test_load_changes_the_tier_between_two_calls_and_back(router: Router, machine: Machine) -> None:
    turns: list[Message] = []
    call = Call((Message("user", "is it so?"),), choices=("yes", "no"), max_tokens=4)
    for name in ("small", "large"):
        router.pool.acquire(name, context_tokens=100).release()
    seconds = router.decide(call).forecast.seconds
    router.budget = Budget(quality=1.0, seconds_per_call=1.5 * seconds)
    chosen, forecast = [], []
    for load in (None, 0.0, 1.0, 0.2, 0.9, 0.0):
        machine.others_load = load
        turns.append(Message("user", "is it so?"))
        decision = router.decide(replace(call, messages=tuple(turns[:1])))
        chosen.append(decision.tier)
        forecast.append(decision.forecasts[1].seconds / seconds)
    assert chosen == ["large", "large", "small", "large", "small", "large"]
    assert forecast == pytest.approx([1.0, 1.0, 2.0, 1.2, 1.9, 1.0])


def test_cores_that_are_free_slow_nobody_down(router: Router) -> None:
    def slowdown(others: float | None, cores: int) -> float:
        now = Resources(1, 1, 1, others_load=others, logical_cores=cores)
        return router.cost.slowdown("large", now)

    assert [slowdown(load, 4) for load in (None, 0.0, 0.5, 0.75, 1.0)] == [1, 1, 1, 1, 1.25]


def test_load_that_was_forecast_is_not_learned_once_more(family: Family) -> None:
    """Calls take twice as long, as they should while others have half of the cores."""
    call = Call((Message("user", "hello"),))
    usage = Usage(prompt_tokens=1000, completion_tokens=100, prefill_s=2.0, decode_s=2.0)
    told, blind = CostModel(family_profiles(family)), CostModel(family_profiles(family))
    for _ in range(50):
        told.observe("large", call, usage, 4.0, 4.0, 0.0, slowdown=2.0)
        blind.observe("large", call, usage, 4.0, 2.0, 0.0)
    reply = ExpectedReply(chosen=100.0, forced=0.0)
    assert told.cost("large", 1000, reply, cold=False).seconds == pytest.approx(2.0, abs=0.01)
    assert blind.cost("large", 1000, reply, cold=False).seconds == pytest.approx(4.0, abs=0.01)

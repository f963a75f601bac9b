"""Forecasts follow what calls really take, on each tier and in each of their parts."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tierwise.routing.cost import MOST, CostModel, ExpectedReply
from tierwise.runtime.chat import Call, Message, Tool, Usage
from tierwise.runtime.energy import WATTS_PER_CORE
from tierwise.runtime.profile import Profile

TEXT = Call((Message("user", "hi"),))


def with_tools(*names: str) -> Call:
    return replace(TEXT, tools=tuple(Tool(name, "", {"type": "object"}) for name in names))


def profile(prefill: float = 1000.0, decode: float = 100.0, load_s: float = 0.5) -> Profile:
    return Profile(
        tier_sha256="0" * 64,
        machine="0" * 16,
        threads=2,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        load_s=load_s,
        resident_bytes=1,
        context_tokens=512,
        measured_at="2025-01-01T00:00:00+00:00",
        runs=1,
        sequences_s={1: 0.01, 2: 0.012, 4: 0.016},
    )


def model() -> CostModel:
    return CostModel({"small": profile(), "large": profile(250.0, 50.0)})


REPLY = ExpectedReply(chosen=21, forced=100)


def test_a_call_is_its_load_prefill_and_decode() -> None:
    costs = model()
    warm = costs.cost("small", 500, REPLY, cold=False)
    assert warm.first_token_s == pytest.approx(0.5 + 0.01)
    assert warm.seconds == pytest.approx(0.5 + 0.1 + 0.21)
    assert warm.joules == pytest.approx(warm.seconds * 2 * WATTS_PER_CORE)
    cold = costs.cost("small", 500, REPLY, cold=True)
    assert cold.seconds - warm.seconds == pytest.approx(0.5)
    shared = costs.cost("small", 500, REPLY, cold=False, waiting=2)
    assert shared.seconds - warm.seconds == pytest.approx(21 * 0.002)
    assert costs.cost("large", 500, REPLY, cold=False).seconds > warm.seconds
    measured = CostModel({"small": profile()}, watts=3.0).cost("small", 500, REPLY, cold=False)
    assert measured.joules == pytest.approx(measured.seconds * 3)


def took(prefill: float, decode: float, read: int = 400, chosen: int = 30) -> tuple[Usage, float]:
    usage = Usage(
        prompt_tokens=read,
        completion_tokens=chosen,
        prefill_s=read / prefill,
        decode_s=chosen / decode,
    )
    return usage, read / prefill + chosen / decode


def test_a_machine_that_slows_down_is_forecast_so() -> None:
    costs = model()
    usage, seconds = took(prefill=400.0, decode=25.0)
    for _ in range(40):
        forecast = costs.cost("small", 400, ExpectedReply(30, 0), cold=False)
        costs.observe("small", TEXT, usage, seconds, forecast.seconds, 0.0)
    found = costs.cost("small", 400, ExpectedReply(30, 0), cold=False)
    assert found.seconds == pytest.approx(seconds, rel=0.02)
    # The other tier is another matter, and so is loading.
    assert costs.cost("large", 400, ExpectedReply(30, 0), cold=False).seconds == pytest.approx(2.2)
    cold = costs.cost("small", 400, ExpectedReply(30, 0), cold=True)
    assert cold.seconds - found.seconds == pytest.approx(0.5)


def test_the_error_is_of_the_latest_calls_and_shrinks_with_them() -> None:
    costs, rng = model(), random.Random(0)
    assert costs.error() is None
    errors = []
    for _ in range(120):
        noise = rng.uniform(0.85, 1.15)
        usage, seconds = took(prefill=300.0 * noise, decode=40.0 * noise)
        forecast = costs.cost("small", 400, ExpectedReply(30, 0), cold=False)
        costs.observe("small", TEXT, usage, seconds, forecast.seconds, 0.0)
        errors.append(costs.error() or 0.0)
    assert errors[0] > 0.6 and errors[-1] < 0.12


def test_one_absurd_call_does_not_ruin_the_forecasts() -> None:
    costs = model()
    usage, _ = took(prefill=1.0, decode=0.01)
    costs.observe("small", TEXT, usage, 1e6, 1.0, 0.0)
    found = costs.cost("small", 400, ExpectedReply(30, 0), cold=False)
    assert found.seconds < 0.7 * MOST
    usage, seconds = took(prefill=1000.0, decode=100.0, read=0, chosen=0)
    for _ in range(9):
        costs.observe("small", TEXT, usage, seconds, 0.1, 0.0)  # nothing to learn, no harm


def test_loading_is_learned_where_it_happened() -> None:
    costs = model()
    usage, seconds = took(1000.0, 100.0)
    for _ in range(30):
        costs.observe("small", TEXT, usage, seconds + 2.0, 1.0, 2.0)
    warm, cold = (costs.cost("small", 400, REPLY, cold=cold) for cold in (False, True))
    assert cold.seconds - warm.seconds == pytest.approx(2.0, rel=0.05)


def test_the_length_of_replies_is_learned_by_tools_then_by_kind() -> None:
    costs = model()
    before = costs.reply(with_tools("a")).chosen
    for _ in range(10):
        usage = Usage(completion_tokens=90, forced_tokens=30)
        costs.observe("small", with_tools("a", "b"), usage, 1.0, 1.0, 0.0)
        costs.observe("small", with_tools("c"), Usage(completion_tokens=8), 1.0, 1.0, 0.0)
    assert costs.reply(with_tools("a", "b")).chosen == pytest.approx(60, rel=0.1)
    assert costs.reply(with_tools("c")).chosen == pytest.approx(8, rel=0.3)
    assert 8 < costs.reply(with_tools("z")).chosen < 60 != before
    assert costs.reply(with_tools("a", "b"), limit=5).chosen == 5
    assert costs.reply(TEXT) == model().reply(TEXT)

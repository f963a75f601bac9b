"""`TierRoutingMiddleware` in real agents: budgets of runs, failing tools, other middleware."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calibration_factory import scripted_pair
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, ModelRetryMiddleware
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.tools import ToolException, tool

from tierwise import Budget, ChatTierwise, TierRoutingMiddleware
from tierwise.runtime.errors import ConfigError

LOST = "The outlook for Atlantis?"


def call(city: str) -> str:
    text = json.dumps({"name": "get_weather", "arguments": {"city": city}})
    return f"<tool_call>\n{text}\n</tool_call>"


SCRIPT = {
    "": "Hello there, friend.",
    "outlook": call("Atlantis"),
    "mainland": call("Oslo"),
    "celsius": "It is mild in Oslo.",
}


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    if city != "Oslo":
        raise ToolException("there is no such city; try the mainland, say Oslo")
    return "18 celsius"


get_weather.handle_tool_error = True

Make = Callable[..., ChatTierwise]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scripted_pair(tmp_path, SCRIPT, context=8192).folder


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    models: list[ChatTierwise] = []

    def one(**options: Any) -> ChatTierwise:
        models.append(ChatTierwise(family=str(folder), threads=1, **options))
        return models[-1]

    yield one
    for model in models:
        model.close()


def run(model: Any, *middleware: Any, question: str = LOST) -> list[AnyMessage]:
    agent: Any = create_agent(model, [get_weather], middleware=middleware)
    messages: list[AnyMessage] = agent.invoke({"messages": [("user", question)]})["messages"]
    return messages


def tiers(messages: list[AnyMessage]) -> list[str]:
    return [m.response_metadata["tier"] for m in messages if isinstance(m, AIMessage)]


def test_tools_that_keep_failing_call_for_the_best_tier(make: Make) -> None:
    model = make(budget=Budget(quality=0))
    assert tiers(run(model)) == ["small"] * 3
    messages = run(model, TierRoutingMiddleware(failures=1))
    assert tiers(messages) == ["small", "large", "large"]
    assert messages[-1].content == "It is mild in Oslo."
    # Other conversations: the first one would stay with the tier that it has come to.
    for number, failures in enumerate((2, None)):
        messages = run(
            model, TierRoutingMiddleware(failures=failures), question=f"{number}: {LOST}"
        )
        assert tiers(messages) == ["small"] * 3


def test_the_same_asynchronously(make: Make) -> None:
    model = make(budget=Budget(quality=0))
    agent: Any = create_agent(
        model, [get_weather], middleware=[TierRoutingMiddleware(failures=1, seconds_per_run=1e-6)]
    )
    state = asyncio.run(agent.ainvoke({"messages": [("user", LOST)]}))
    assert state["messages"][-1].content == "It is mild in Oslo."


def reply(seconds: float) -> AIMessage:
    return AIMessage("x", response_metadata={"total_s": seconds})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agent_keeps_its_tiers_loaded(make: Make, asynchronous: bool) -> None:
    """Though each call goes to a copy of the model, which nobody keeps."""
    agent: Any = create_agent(
        make(), [get_weather], middleware=[TierRoutingMiddleware(seconds_per_run=30)]
    )
    asked = {"messages": [("user", LOST)]}
    done = asyncio.run(agent.ainvoke(asked)) if asynchronous else agent.invoke(asked)
    replies = [m for m in done["messages"] if isinstance(m, AIMessage)]
    events = [r.response_metadata["attempts"][-1]["events"] for r in replies]
    used = [r.response_metadata["tier"] for r in replies]
    again = [at for at, tier in enumerate(used) if tier in used[:at]]
    assert again and not any(events[at] for at in again), "loaded already"
    assert all(replies[at].usage_metadata["input_token_details"]["cache_read"] for at in again)


def test_what_is_left_of_a_run_is_spread_over_its_steps() -> None:
    middleware = TierRoutingMiddleware(seconds_per_run=12.0, steps=4)
    granted = Budget(quality=0.8)
    earlier: list[AnyMessage] = [HumanMessage("hi"), reply(50.0), HumanMessage("and now?")]
    first = middleware.budget(earlier, granted)
    assert first.expected_seconds == 3.0 and first.quality == 0.8  # earlier runs do not count
    second = middleware.budget([*earlier, reply(1.5)], granted)
    assert second.expected_seconds == pytest.approx(3.5)
    late = middleware.budget([*earlier, *[reply(1.0)] * 6], granted)
    assert late.expected_seconds == pytest.approx(6.0)  # longer than expected: all for the next
    over = middleware.budget([*earlier, reply(13.0)], granted)
    assert over.expected_seconds is None and over.quality == 0.0
    tight = middleware.budget(earlier, Budget(seconds_per_call=1.0))
    assert tight.seconds_per_call == 1.0  # the model's own limit stays
    foreign = [*earlier, AIMessage("from elsewhere")]
    assert middleware.budget(foreign, granted).expected_seconds == pytest.approx(4.0)
    failed = ToolMessage("no", tool_call_id="1", status="error")
    assert middleware.budget([*earlier, failed], granted).quality == 0.8
    assert middleware.budget([*earlier, failed, failed], granted).quality == 1.0


def spent(seconds: float, joules: float, tokens: int) -> AIMessage:
    usage = UsageMetadata(input_tokens=500, output_tokens=tokens, total_tokens=500 + tokens)
    told = {"total_s": seconds, "total_joules": joules}
    return AIMessage("x", response_metadata=told, usage_metadata=usage)


def test_joules_and_tokens_of_a_run_are_spread_likewise() -> None:
    middleware = TierRoutingMiddleware(
        seconds_per_run=12.0, joules_per_run=120.0, tokens_per_run=400, steps=4
    )
    granted = Budget(quality=0.8, price_per_second=0.01)
    start: list[AnyMessage] = [HumanMessage("hi"), spent(9, 99, 99), HumanMessage("and now?")]
    first = middleware.budget(start, granted)
    limits = first.expected_seconds, first.joules_per_call, first.reply_tokens
    assert limits == (3.0, 30.0, 100) and first.price_per_second == 0.01
    second = middleware.budget([*start, spent(3.0, 60.0, 41)], granted)
    limits = second.expected_seconds, second.joules_per_call, second.reply_tokens
    assert limits == (3.0, 20.0, 119)  # of 359 tokens a third
    # What is used up is no limit any more, but then the cheapest has to do; the others stay.
    over = middleware.budget([*start, spent(3.0, 120.0, 397)], granted)
    limits = over.expected_seconds, over.joules_per_call, over.reply_tokens
    assert limits == (3.0, None, 1)
    assert over.quality == 0.0 and over.price_per_second == 0.0
    tight = middleware.budget(start, Budget(joules_per_call=5, reply_tokens=7))
    assert (tight.joules_per_call, tight.reply_tokens) == (5, 7)
    foreign = AIMessage("from elsewhere")
    assert middleware.budget([*start, foreign], granted).joules_per_call == pytest.approx(40.0)


def test_replies_tell_the_joules_that_they_took(make: Make) -> None:
    messages = run(make(), TierRoutingMiddleware(joules_per_run=1e6, tokens_per_run=3000))
    told = [m.response_metadata for m in messages if isinstance(m, AIMessage)]
    assert len(told) == 3
    for metadata in told:
        assert metadata["predicted_joules"] > 0 and metadata["total_joules"] > 0
        watts = metadata["predicted_joules"] / metadata["predicted_s"]
        # Both are rounded in the metadata.
        assert metadata["total_joules"] == pytest.approx(watts * metadata["total_s"], rel=0.05)
        assert metadata["attempts"][0]["joules"] > 0


def test_a_run_s_joules_choose_among_tiers(make: Make) -> None:
    model = make(budget=Budget(quality=1.0))
    dear = {f.tier: f.joules for f in model.explain(LOST, tools=[get_weather]).forecasts}
    assert dear["small"] < dear["large"]
    between = TierRoutingMiddleware(joules_per_run=dear["small"] + dear["large"], steps=2)
    assert tiers(run(model, between))[0] == "small"
    ample = TierRoutingMiddleware(joules_per_run=1e6, steps=2)
    assert tiers(run(model, ample, question=f"Again: {LOST}"))[0] == "large"


def test_the_tokens_of_a_run_bound_its_replies(make: Make) -> None:
    middleware = TierRoutingMiddleware(tokens_per_run=4, steps=1)
    (reply,) = [m for m in run(make(), middleware, question="Hello!") if isinstance(m, AIMessage)]
    assert reply.usage_metadata is not None and reply.usage_metadata["output_tokens"] <= 4
    assert reply.response_metadata["finish_reason"] == "length"


def test_a_run_goes_on_when_no_tier_can_keep_its_share(make: Make) -> None:
    for number, limit in enumerate(("seconds_per_run", "joules_per_run")):
        middleware = TierRoutingMiddleware(**{limit: 1e-6})
        messages = run(make(), middleware, question=f"{number}: {LOST}")
        assert messages[-1].content == "It is mild in Oslo."
        assert tiers(messages) == ["small"] * 3


@pytest.mark.parametrize("first", [True, False], ids=["outside", "inside"])
def test_among_fallback_and_retry(make: Make, tmp_path: Path, first: bool) -> None:
    gone = ChatTierwise(family=str(tmp_path / "gone"), threads=1)
    fallback = ModelFallbackMiddleware(make(budget=Budget(quality=0)))
    others = [ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False), fallback]
    own = TierRoutingMiddleware(failures=1, seconds_per_run=60.0)
    messages = run(gone, *([own, *others] if first else [*others, own]))
    assert messages[-1].content == "It is mild in Oslo."
    # Inside, it sees the model that took over; outside, it cannot.
    assert tiers(messages) == (["small"] * 3 if first else ["small", "large", "large"])


def test_models_of_others_are_left_alone() -> None:
    other = FakeListChatModel(responses=["I am someone else."])
    agent: Any = create_agent(other, [], middleware=[TierRoutingMiddleware(seconds_per_run=1.0)])
    state = agent.invoke({"messages": [("user", "Hi!")]})
    assert state["messages"][-1].content == "I am someone else."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds_per_run": 0.0}, "seconds_per_run must be above 0, got 0.0"),
        ({"joules_per_run": -1}, "joules_per_run must be above 0, got -1"),
        ({"tokens_per_run": 0}, "tokens_per_run must be above 0, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"failures": 0}, "failures must be above 0, got 0"),
        ({"seconds_per_run": "x"}, "seconds_per_run must be above 0, got 'x'"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TierRoutingMiddleware(**options)

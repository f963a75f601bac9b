"""LangChain agents over scripted families: real tools, a real graph, real tiers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from family_factory import TierSpec, make_family
from gguf_writer import CHATML, CHATML_TOOLS
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from openai_server import OpenAIServer, openai_server
from pydantic import BaseModel
from scripted_model import write_scripted_gguf

from tierwise import Budget, ChatTierwise
from tierwise.runtime.errors import NoFeasibleTierError, RemoteError
from tierwise.runtime.remote_tier import RemoteTier

MILD = "It is mild in Oslo."
QUESTION = "The forecast for Oslo?"
# What another question, or a tool's result, has a tier reply: see `script`.
LOST = "The outlook for Atlantis?"


class Report(BaseModel):
    """The weather, as data."""

    city: str
    degrees: int


REPORT = {"city": "Oslo", "degrees": 18}


def written(kind: str, name: str, arguments: dict[str, Any]) -> str:
    text = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call>" if kind == "native" else text


def script(kind: str, city: str = "Oslo") -> dict[str, str]:
    """By the keyword that stands last in the conversation."""
    return {
        "": "Hello there, friend.",
        "forecast": written(kind, "get_weather", {"city": city}),
        "celsius": MILD,
        "outlook": written(kind, "get_weather", {"city": "Atlantis"}),
        "mainland": written(kind, "get_weather", {"city": "Oslo"}),
        "kelvin": json.dumps(REPORT),
        "fahrenheit": written(kind, "Report", REPORT),
        "Messages to summarize": "They spoke of Oslo.",
        "conversation to date": "Where were we?",
    }


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    if city != "Oslo":
        raise ToolException("there is no such city; try the mainland, say Oslo")
    return "18 celsius"


get_weather.handle_tool_error = True


@tool("get_weather")
def weather_in_kelvin(city: str) -> str:
    """The weather in a city."""
    return f"291 kelvin in {city}"


@tool("get_weather")
def weather_in_fahrenheit(city: str) -> str:
    """The weather in a city."""
    return f"64 fahrenheit (18) in {city}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("families")
    made: dict[str, list[TierSpec]] = {}
    for kind, template in (("native", CHATML_TOOLS), ("plain", CHATML)):
        path = work / f"{kind}.gguf"
        write_scripted_gguf(path, script(kind), context=8192, chat_template=template)
        made[kind] = [TierSpec("only", path)]
    # The smaller tier takes the city from nowhere.
    small = write_scripted_gguf(work / "small.gguf", script("native", "Rome"), context=8192)
    made["pair"] = [TierSpec("small", small, kl=0.1), TierSpec("large", work / "native.gguf")]
    return {name: make_family(work / name, specs).folder for name, specs in made.items()}


Make = Callable[..., ChatTierwise]


@pytest.fixture
def make(folders: dict[str, Path]) -> Iterator[Make]:
    models: list[ChatTierwise] = []

    def one(kind: str = "native", **options: Any) -> ChatTierwise:
        family = str(folders.get(kind, kind))
        models.append(ChatTierwise(family=family, threads=1, **options))
        return models[-1]

    yield one
    for model in models:
        model.close()


@pytest.fixture(params=["native", "plain"])
def model(request: pytest.FixtureRequest, make: Make) -> ChatTierwise:
    return make(request.param)


def asked(question: str) -> Any:
    return {"messages": [("user", question)]}


def told(state: dict[str, Any]) -> list[Any]:
    """What was said, in short: calls as pairs, results of tools and texts as they are."""
    return [
        [(call["name"], call["args"]["city"]) for call in message.tool_calls] or message.content
        if isinstance(message, AIMessage)
        else message.content
        for message in state["messages"]
    ]


CONVERSATION = [QUESTION, [("get_weather", "Oslo")], "18 celsius", MILD]


def test_a_question_a_call_its_result_a_text(model: ChatTierwise) -> None:
    agent = create_agent(model, [get_weather])
    assert told(agent.invoke(asked(QUESTION))) == CONVERSATION
    assert told(agent.invoke(asked("Hi!"))) == ["Hi!", "Hello there, friend."]
    agent = create_agent(model, [get_weather], system_prompt="You are kind.")
    assert told(agent.invoke(asked(QUESTION))) == CONVERSATION


def test_the_same_asynchronously(model: ChatTierwise) -> None:
    agent = create_agent(model, [get_weather])
    assert told(asyncio.run(agent.ainvoke(asked(QUESTION)))) == CONVERSATION

    async def three() -> list[Any]:
        return await asyncio.gather(*(agent.ainvoke(asked(QUESTION)) for _ in range(3)))

    assert [told(state) for state in asyncio.run(three())] == [CONVERSATION] * 3


def test_tokens_are_streamed_out_of_the_agent(model: ChatTierwise) -> None:
    agent = create_agent(model, [get_weather])
    pieces = [
        str(message.content)
        for message, _ in agent.stream(asked(QUESTION), stream_mode="messages")
        if not isinstance(message, ToolMessage)
    ]
    assert "".join(pieces) == MILD and len([piece for piece in pieces if piece]) > 2


def test_every_reply_says_who_gave_it(make: Make) -> None:
    state = create_agent(make(), [get_weather]).invoke(asked(QUESTION))
    replies = [m for m in state["messages"] if isinstance(m, AIMessage)]
    assert [reply.response_metadata["tier"] for reply in replies] == ["only", "only"]
    assert [reply.response_metadata["finish_reason"] for reply in replies] == ["tool_calls", "stop"]
    first, second = (reply.usage_metadata for reply in replies)
    assert first is not None and second is not None
    cached = second["input_token_details"]["cache_read"]
    assert first["input_tokens"] <= cached < second["input_tokens"]


def test_a_tool_that_fails(model: ChatTierwise) -> None:
    state = create_agent(model, [get_weather]).invoke(asked(LOST))
    assert told(state) == [
        LOST,
        [("get_weather", "Atlantis")],
        "there is no such city; try the mainland, say Oslo",
        [("get_weather", "Oslo")],
        "18 celsius",
        MILD,
    ]
    results = [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert [result.status for result in results] == ["error", "success"]


def test_a_larger_tier_sets_a_call_right(make: Make) -> None:
    """The smaller tier asks for Rome, of which nobody spoke."""
    agent = create_agent(make("pair", budget=Budget(quality=0)), [get_weather])
    state = agent.invoke(asked(QUESTION))
    assert told(state) == CONVERSATION
    reply = state["messages"][1].response_metadata
    assert reply["escalated"] is True and reply["tier"] == "large"
    assert reply["reason"].startswith("escalated from small: the city for get_weather")
    assert not state["messages"][-1].response_metadata["escalated"]
    wrong = create_agent(make("pair", model="small"), [get_weather]).invoke(asked(QUESTION))
    assert told(wrong)[1] == [("get_weather", "Rome")]


# --- calls that cannot be made ----------------------------------------------------------


@pytest.fixture
def far(folders: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Path, OpenAIServer]]:
    """A family whose better tier is a server that breaks its calls off."""
    with openai_server() as server:
        server.mode, server.call = "bad call", ("get_weather", '{"city": "Oslo"}')
        specs = [TierSpec("only", folders["native"] / "only.gguf")]
        family = make_family(tmp_path / "family", specs)
        remote = RemoteTier(name="far", url=server.url, model="m", success=0.99)
        family.model_copy(update={"remotes": (remote,)}).save(family.folder)
        yield family.folder, server


@pytest.mark.parametrize("streamed", [False, True])
def test_an_unreadable_call_never_ends_a_run_silently(
    make: Make, far: tuple[Path, OpenAIServer], streamed: bool
) -> None:
    folder, server = far

    def run(model: ChatTierwise) -> Any:
        agent = create_agent(model, [get_weather])
        if not streamed:
            return agent.invoke(asked(QUESTION))
        return list(agent.stream(asked(QUESTION), stream_mode="values"))[-1]

    # Another tier is asked in its place.
    state = run(make(str(folder), budget=Budget(quality=1)))
    assert told(state) == CONVERSATION and server.asked
    assert state["messages"][1].response_metadata["tier"] == "only"
    # Where there is none, the run fails and says why.
    with pytest.raises(NoFeasibleTierError, match=r"far: .* tool call that cannot be read"):
        run(make(str(folder), tiers=("far",)))
    with pytest.raises(RemoteError, match="tool call that cannot be read"):
        run(make(str(folder), tiers=("far", "only"), model="far"))


def test_a_call_of_no_tool_is_a_problem(make: Make, far: tuple[Path, OpenAIServer]) -> None:
    folder, server = far
    server.mode, server.call = "ok", ("get_weather", "{}")
    model = make(str(folder), model="far").bind_tools([get_weather])
    reply = model.invoke(QUESTION)
    assert reply.response_metadata["problem"] == "the call of get_weather lacks city"
    server.call = ("get_climate", "{}")
    reply = model.invoke(QUESTION)
    assert "'get_climate' was called, which is no tool" in reply.response_metadata["problem"]
    assert isinstance(reply, AIMessage) and reply.tool_calls and not reply.invalid_tool_calls


def test_a_call_that_was_cut_off_is_seen(make: Make) -> None:
    """And set right, where there is a better tier: here all have as few tokens."""
    state = create_agent(make(max_tokens=30), [get_weather]).invoke(asked(QUESTION))
    last = state["messages"][-1]
    assert last.content.startswith("<tool_call>") and not last.tool_calls
    problem = last.response_metadata["problem"]
    assert problem == "a tool call that was cut off or cannot be read"


# --- structured responses ---------------------------------------------------------------


@pytest.mark.parametrize("tools", [[weather_in_kelvin], []], ids=["tools", "none"])
def test_a_structured_response(model: ChatTierwise, tools: list[BaseTool]) -> None:
    """LangChain takes the provider's own way, as the model's profile says that it has one."""
    agent = create_agent(model, tools, response_format=Report)
    question = QUESTION if tools else "How many kelvin?"
    state: Any = agent.invoke(asked(question))
    assert state["structured_response"] == Report(**REPORT)
    last = state["messages"][-1]
    assert isinstance(last, AIMessage) and json.loads(str(last.content)) == REPORT
    assert len(state["messages"]) == (4 if tools else 2)


def test_a_structured_response_by_a_tool_call(model: ChatTierwise) -> None:
    agent = create_agent(model, [weather_in_fahrenheit], response_format=ToolStrategy(Report))
    state: Any = agent.invoke(asked(QUESTION))
    assert state["structured_response"] == Report(**REPORT)


# --- middleware and memory --------------------------------------------------------------


def test_a_conversation_that_is_kept(make: Make) -> None:
    """Checkpoints hold messages with all their metadata."""
    agent = create_agent(make(), [get_weather], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke(asked("Hi!"), thread)
    state = agent.invoke(asked(QUESTION), thread)
    assert told(state) == ["Hi!", "Hello there, friend.", *CONVERSATION]
    assert state["messages"][1].response_metadata["decision"]["forecasts"][0]["tier"] == "only"


def test_fallback_to_another_model(make: Make, tmp_path: Path) -> None:
    gone = make(str(tmp_path / "gone"))
    agent = create_agent(gone, [get_weather], middleware=[ModelFallbackMiddleware(make())])
    assert told(agent.invoke(asked(QUESTION))) == CONVERSATION


def test_a_limit_of_calls(make: Make) -> None:
    limit = ModelCallLimitMiddleware(run_limit=1, exit_behavior="end")
    state = create_agent(make(), [get_weather], middleware=[limit]).invoke(asked(QUESTION))
    assert told(state)[:3] == CONVERSATION[:3] and MILD not in told(state)


@pytest.mark.parametrize(
    "trigger", [("messages", 5), ("tokens", 40), ("fraction", 0.005)], ids=lambda t: str(t[0])
)
def test_summaries(make: Make, trigger: Any) -> None:
    """A share of the context needs the profile; 8192 tokens are the scripted tiers' all."""
    model = make(max_tokens=64)
    assert model.profile is not None and model.profile["max_input_tokens"] == 8192
    summary = SummarizationMiddleware(model, trigger=trigger, keep=("messages", 1))
    agent = create_agent(model, [get_weather], middleware=[summary])
    talk = [HumanMessage("Hi!"), AIMessage("Hello there, friend."), HumanMessage("x" * 120)]
    state = agent.invoke({"messages": [*talk, AIMessage("Yes."), HumanMessage(QUESTION)]})
    told_first = state["messages"][0].content
    assert "They spoke of Oslo." in told_first
    assert all(message.content != "x" * 120 for message in state["messages"])
    assert state["messages"][-1].content

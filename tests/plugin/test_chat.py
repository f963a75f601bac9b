"""``ChatTierwise`` on families of scripted tiers: real files, pool, engine and grammar."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from family_factory import TierSpec, make_family
from gguf_writer import CHATML, CHATML_THINKING, CHATML_TOOLS
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import ContextOverflowError as LangChainOverflowError
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel, ConfigDict, ValidationError
from scripted_model import FRUIT, write_scripted_gguf
from tiny_models import write_tiny_gguf

from tierwise import Budget, ChatTierwise, Family
from tierwise.runtime.errors import (
    CallTimeoutError,
    ConfigError,
    ContextOverflowError,
    FamilyNotFoundError,
    NoFeasibleTierError,
    ToolSchemaError,
    UnsupportedContentError,
)

HELLO = "Hello there, friend."
THOUGHT = "A greeting? Or the weather, in Oslo?"
UMLAUTS = "Grüße aus Ålesund; 東京 🎉!"
MILD = "It is mild in Oslo."
TRIP = {"city": "Oslo", "days": 3}

OSLO = {"city": "Oslo"}
# The keyword that stands last in a prompt decides what the tiers reply.
CALL, RESULT = "forecast", "celsius"
ASK = [HumanMessage("The forecast for Oslo?")]
ASKED = [
    *ASK,
    AIMessage("", tool_calls=[{"name": "get_weather", "args": OSLO, "id": "1"}]),
    ToolMessage("18 celsius", tool_call_id="1"),
]
PLAN = "An itinerary: Oslo, 3 days."
BOOK = "A booking: Oslo, 3 days."


def written(kind: str, name: str, arguments: dict[str, Any]) -> str:
    """A call as a tier of that kind writes it."""
    text = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{text}\n</tool_call>" if kind == "native" else text


def script(kind: str, *, talk: str = HELLO, city: str = "Oslo") -> dict[str, str]:
    return {
        "": talk,
        "umlauts": UMLAUTS,
        CALL: written(kind, "get_weather", {"city": city}),
        RESULT: MILD,
        "itinerary": json.dumps(TRIP),
        "booking": written(kind, "Trip", TRIP),
        "nonsense": '{"town": 5}',
        **FRUIT,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Families by name: native (a template with tools), plain (one without), pair (the smaller
    of two tiers has a wrong idea of the city), babbler (random weights)."""
    work = tmp_path_factory.mktemp("families")
    made: dict[str, list[TierSpec]] = {}
    for kind, template in (("native", CHATML_TOOLS), ("plain", CHATML)):
        path = work / f"{kind}.gguf"
        write_scripted_gguf(path, script(kind), context=4096, chat_template=template)
        made[kind] = [TierSpec("only", path)]
    small = write_scripted_gguf(work / "small.gguf", script("native", talk="Hi.", city="Rome"))
    large = work / "native.gguf"
    made["pair"] = [TierSpec("small", small, kl=0.1), TierSpec("large", large)]
    thinker = write_scripted_gguf(
        work / "thinker.gguf",
        {
            "": f"<think>\n{THOUGHT}\n</think>\n\n{HELLO}",
            CALL: f"<think>\n{THOUGHT}\n</think>\n\n" + written("native", "get_weather", OSLO),
            RESULT: MILD,
        },
        context=4096,
        chat_template=CHATML_THINKING,
    )
    made["thinker"] = [TierSpec("only", thinker)]
    told = CHATML_THINKING.replace(
        "{% if add_generation_prompt %}",
        "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}"
        "{% if add_generation_prompt %}",
    )
    obedient = write_scripted_gguf(
        work / "obedient.gguf",
        {"": f"<think>\n{THOUGHT}\n</think>\n\n{HELLO}", "/no_think": "Hi."},
        context=4096,
        chat_template=told,
    )
    made["obedient"] = [TierSpec("only", obedient)]
    babbler = write_tiny_gguf(work / "babbler.gguf", seed=2, layers=1, context=2048)
    made["babbler"] = [TierSpec("only", babbler)]
    endless = script("native", talk="Round and round we go, ")
    circles = write_scripted_gguf(work / "circles.gguf", endless, context=4096, endless=[""])
    made["circles"] = [TierSpec("small", circles, kl=0.1), TierSpec("large", large)]
    return {name: make_family(work / name, specs).folder for name, specs in made.items()}


Make = Callable[..., ChatTierwise]


@pytest.fixture
def make(folders: dict[str, Path]) -> Iterator[Make]:
    models: list[ChatTierwise] = []

    def one(kind: str = "native", **options: Any) -> ChatTierwise:
        models.append(ChatTierwise(family=str(folders[kind]), **{"threads": 1, **options}))
        return models[-1]

    yield one
    for model in models:
        model.close()


@pytest.fixture(params=["native", "plain"])
def model(request: pytest.FixtureRequest, make: Make) -> ChatTierwise:
    """Whose template knows tools, and whose does not."""
    return make(request.param)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


class Trip(BaseModel):
    """Where to go."""

    city: str
    days: int


class TripDict(TypedDict):
    """Where to go."""

    city: str
    days: int


TripDict.__name__ = "Trip"  # as the scripted call has it

TRIP_SCHEMA = {
    "title": "Trip",
    "description": "Where to go.",
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}


def wanted(message: BaseMessage) -> list[tuple[str, dict[str, Any]]]:
    """The tool calls of a message, ids aside."""
    assert isinstance(message, AIMessage)
    return [(call["name"], call["args"]) for call in message.tool_calls]


# --- invoke, batch, and their async twins -----------------------------------------------


def test_a_text(model: ChatTierwise) -> None:
    reply = model.invoke("hi")
    assert reply.content == HELLO and reply.tool_calls == []
    assert model.invoke([SystemMessage("Be kind."), ("user", "umlauts")]).content == UMLAUTS
    assert asyncio.run(model.ainvoke("hi")).content == HELLO


def test_a_tool_call_and_its_result(model: ChatTierwise) -> None:
    bound = model.bind_tools([get_weather])
    asked = bound.invoke(ASK)
    assert wanted(asked) == [("get_weather", OSLO)] and asked.content == ""
    assert asked.tool_calls[0]["id"]
    result = ToolMessage("18 celsius", tool_call_id=asked.tool_calls[0]["id"] or "")
    told = bound.invoke([*ASK, asked, result])
    assert told.content == MILD and told.tool_calls == []
    assert wanted(asyncio.run(bound.ainvoke(ASK))) == [("get_weather", OSLO)]


def test_a_batch(model: ChatTierwise) -> None:
    questions: list[Any] = [f"Tell me of the {name}." for name in FRUIT]
    assert [reply.content for reply in model.batch(questions)] == [*FRUIT.values()]
    replies = asyncio.run(model.abatch(questions))
    assert [reply.content for reply in replies] == [*FRUIT.values()]


def test_a_batch_of_tool_calls_and_texts(model: ChatTierwise) -> None:
    bound = model.bind_tools([get_weather])
    replies = bound.batch([ASK, "The apple?", ASK, "The banana?", ASKED, ASK])
    assert [wanted(r) or r.content for r in replies] == [
        [("get_weather", OSLO)],
        FRUIT["apple"],
        [("get_weather", OSLO)],
        FRUIT["banana"],
        MILD,
        [("get_weather", OSLO)],
    ]


def test_at_the_end_of_a_chain(make: Make) -> None:
    chain = ChatPromptTemplate.from_messages([("user", "Tell me of the {what}.")]) | make()
    assert chain.invoke({"what": "durian"}).content == FRUIT["durian"]


# --- streaming --------------------------------------------------------------------------


def streamed(chunks: Sequence[BaseMessage]) -> AIMessageChunk:
    whole: Any = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert isinstance(whole, AIMessageChunk)
    return whole


def told(message: AIMessage) -> dict[str, Any]:
    """All that must not depend on how the reply was asked for."""
    metadata = message.response_metadata
    return {
        "content": message.content,
        "calls": wanted(message),
        "invalid": message.invalid_tool_calls,
        "usage": message.usage_metadata,
        "confidence": pytest.approx(metadata["confidence"], abs=1e-3),
        "keys": sorted(metadata),
        **{key: metadata[key] for key in ("model_name", "finish_reason", "tier", "escalated")},
    }


@pytest.mark.parametrize(
    ("options", "question"),
    [
        ({}, [HumanMessage("hi")]),
        ({}, [HumanMessage("umlauts")]),
        ({"max_tokens": 7}, [HumanMessage("hi")]),
        ({"stop": ["friend"]}, [HumanMessage("hi")]),
        ({"tools": [get_weather]}, ASK),
        ({"tools": [get_weather]}, ASKED),
        ({"tools": [get_weather], "tool_choice": "none"}, ASKED),
        ({"tools": [get_weather], "tool_choice": "any"}, ASK),
        ({"response_format": Trip}, [HumanMessage(PLAN)]),
        ({"tools": [get_weather], "response_format": Trip}, ASK),
        ({"tools": [get_weather], "response_format": Trip}, [HumanMessage(PLAN)]),
    ],
    ids=["text", "bytes", "cut", "stop", "call", "result", "none", "any", "json", "both", "both2"],
)
def test_chunks_add_up_to_what_invoke_returns(
    model: ChatTierwise, options: dict[str, Any], question: list[BaseMessage]
) -> None:
    model.invoke(question, **options)  # from here on all find the same prefix in the cache
    reply = model.invoke(question, **options)
    expected = told(reply)
    assert reply.content or reply.tool_calls

    async def all_chunks() -> list[AIMessageChunk]:
        return [chunk async for chunk in model.astream(question, **options)]

    for chunks in (list(model.stream(question, **options)), asyncio.run(all_chunks())):
        assert told(streamed(chunks)) == expected
        assert len([c for c in chunks if c.usage_metadata]) == 1
        assert [c.chunk_position for c in chunks] == [None] * (len(chunks) - 1) + ["last"]
        assert len({c.id for c in chunks}) == 1
        assert len(chunks) > 2 or reply.tool_calls or len(options) == 2
        assert all(c.content for c in chunks[:-1])


def test_a_text_comes_in_pieces(make: Make) -> None:
    pieces = [str(chunk.content) for chunk in make().stream("umlauts")]
    assert len(pieces) > 10 and "".join(pieces) == UMLAUTS
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_a_reply_that_is_given_up_is_not_streamed(make: Make) -> None:
    chunks = list(make("pair", budget=Budget(quality=0)).bind_tools([get_weather]).stream(ASK))
    whole = streamed(chunks)
    assert wanted(whole) == [("get_weather", OSLO)] and whole.content == ""
    assert whole.response_metadata["escalated"] is True


@pytest.mark.parametrize("how", ["model", "call"])
def test_streams_may_be_held_until_they_are_verified(make: Make, how: str) -> None:
    """The small tier talks in circles, and the large one does not."""
    options: dict[str, Any] = {"budget": Budget(quality=0), "max_tokens": 400}
    shown = streamed(list(make("circles", **options).stream("hi")))
    assert shown.response_metadata["problem"] == "the reply repeats itself"
    model = make("circles", **options, hold=how == "model")
    asked: dict[str, Any] = {"hold": True} if how == "call" else {}

    async def all_chunks() -> list[AIMessageChunk]:
        return [chunk async for chunk in model.astream(f"hi, {how}, again", **asked)]

    for chunks in (list(model.stream(f"hi, {how}", **asked)), asyncio.run(all_chunks())):
        assert [chunk.content for chunk in chunks if chunk.content] == [HELLO]
        told = streamed(chunks).response_metadata
        # Both are as quick, so that on a busy machine the large one may be asked at once.
        assert told["escalated"] is (told["attempts"][0]["tier"] == "small")
    assert model.invoke("hi", **asked).content == HELLO


def test_streaming_may_be_turned_off(make: Make) -> None:
    (whole,) = make(streaming=False).stream("hi")
    assert whole.content == HELLO


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.seen.append(token)


def test_callbacks_receive_the_text(make: Make) -> None:
    model = make(streaming=True)
    invoked, streaming, chatty = Tokens(), Tokens(), Tokens()
    assert model.invoke("hi", config={"callbacks": [invoked]}).content == HELLO
    list(model.stream("hi", config={"callbacks": [streaming]}))
    make().invoke("hi", config={"callbacks": [chatty]})
    assert "".join(invoked.seen) == "".join(streaming.seen) == HELLO
    assert len(invoked.seen) > 2
    assert chatty.seen == []


def test_callbacks_receive_the_usage(make: Make) -> None:
    usage = UsageMetadataCallbackHandler()
    reply = make().invoke("hi", config={"callbacks": [usage]})
    assert usage.usage_metadata == {"only": reply.usage_metadata}


def test_events(make: Make) -> None:
    async def events() -> list[Any]:
        return [event async for event in make().astream_events("hi", version="v2")]

    found = asyncio.run(events())
    pieces = [e["data"]["chunk"].content for e in found if e["event"] == "on_chat_model_stream"]
    assert "".join(pieces) == HELLO
    assert found[-1]["data"]["output"].content == HELLO


def test_events_of_the_newer_protocol(make: Make) -> None:
    """There the model itself must tell the callbacks."""
    tokens = Tokens()
    stream: Any = make().stream_events("hi", version="v3", config={"callbacks": [tokens]})
    kinds = [event["event"] for event in stream]
    assert kinds[0] == "message-start" and kinds[-1] == "message-finish"
    assert stream.output.text == "".join(tokens.seen) == HELLO
    assert stream.output.response_metadata["tier"] == "only"


@pytest.mark.parametrize("stream", [False, True])
def test_content_in_langchain_s_standard_blocks(make: Make, stream: bool) -> None:
    model = make(output_version="v1")
    bound = model.bind_tools([get_weather])
    text = streamed(list(model.stream("hi"))) if stream else model.invoke("hi")
    call = streamed(list(bound.stream(ASK))) if stream else bound.invoke(ASK)
    (block,) = text.content_blocks
    assert (block["type"], block.get("text")) == ("text", HELLO)
    (block,) = call.content_blocks
    assert (block["type"], block.get("name"), block.get("args")) == (
        "tool_call",
        "get_weather",
        OSLO,
    )


def leases(model: ChatTierwise) -> int:
    return sum(tier.leases for tier in model.router.pool.resident().values())


def test_closing_a_stream_frees_the_engine(make: Make) -> None:
    model = make("babbler", max_tokens=1500)
    stream = model.stream("hi")
    assert next(stream).content
    assert leases(model) == 1
    stream.close()  # type: ignore[attr-defined]
    assert leases(model) == 0
    with model.router.pool.acquire("only", context_tokens=100) as lease:
        deadline = time.monotonic() + 300
        while lease.tier.engine.busy and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not lease.tier.engine.busy
    assert model.invoke("hi", max_tokens=5).usage_metadata is not None


def test_leaving_an_async_stream_frees_the_engine(make: Make) -> None:
    model = make("babbler", max_tokens=1500)

    async def first() -> None:
        stream = model.astream("hi")
        async for chunk in stream:
            assert chunk.content
            break
        await stream.aclose()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 300
        while leases(model) and time.monotonic() < deadline:
            await asyncio.sleep(0.001)

    asyncio.run(first())
    assert leases(model) == 0


# --- options ----------------------------------------------------------------------------


def test_stop(make: Make) -> None:
    model = make(stop=["there"])
    assert model.invoke("hi").content == "Hello "
    assert model.invoke("hi", stop=["friend", "x"]).content == "Hello there, "
    assert model.invoke("hi", stop="friend").content == "Hello there, "  # type: ignore[arg-type]
    assert make(stop_sequences=["there"]).invoke("hi").content == "Hello "
    assert model.bind(stop=["llo"]).invoke("hi").content == "He"


def test_max_tokens(make: Make) -> None:
    cut = make(max_tokens=5).invoke("hi")
    assert cut.content == "Hello" and cut.response_metadata["finish_reason"] == "length"
    cut = make().invoke("hi", max_tokens=7)
    assert cut.content == "Hello t" and cut.response_metadata["finish_reason"] == "length"
    assert cut.usage_metadata is not None and cut.usage_metadata["output_tokens"] == 7
    assert make().invoke("hi").response_metadata["finish_reason"] == "stop"


def test_a_seed_repeats_the_draw(make: Make) -> None:
    model = make("babbler", temperature=1, seed=7, max_tokens=24)
    first = model.invoke("hi").content
    assert model.invoke("hi").content == first
    assert model.invoke("hi", seed=8).content != first
    assert model.invoke("hi", seed=7).content == first
    greedy = model.invoke("hi", temperature=0).content
    assert greedy != first
    assert model.invoke("hi", top_k=1, seed=9).content == greedy


@pytest.mark.parametrize(
    "option",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"max_tokens": "many"},
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"seed": "x"},
        {"timeout": 0},
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense(make: Make, option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"{name} cannot be {value!r}"):
        make().invoke("hi", **option)
    with pytest.raises(ValidationError):
        make(**option)


def test_an_option_that_is_not_known(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"'temprature'.*Known per call: tools"):
        make().invoke("hi", temprature=1)
    with pytest.raises(ConfigError, match="'temprature'"):
        list(make().stream("hi", temprature=1))
    with pytest.raises(ValidationError, match="temprature"):
        make(temprature=1)


def test_none_means_as_the_model_has_it(make: Make) -> None:
    reply = make(max_tokens=5).invoke("hi", max_tokens=None, temperature=None, model=None)
    assert reply.content == "Hello"


def test_a_deadline(make: Make) -> None:
    with pytest.raises(CallTimeoutError):
        make().invoke("hi", timeout=1e-6)
    with pytest.raises(CallTimeoutError):
        make(timeout=1e-6).invoke("hi")
    assert make(timeout=1e-6).invoke("hi", timeout=60).content == HELLO


def test_a_cache_tells_settings_apart(make: Make) -> None:
    cache = InMemoryCache()
    options = {"temperature": 1, "seed": 7, "max_tokens": 24, "cache": cache}
    replies = [make("babbler", **options, **more).invoke("hi").content for more in ({}, {})]
    assert replies[0] == replies[1]
    assert len(cache._cache) == 1
    for more in ({"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}, {"tiers": ("only",)}):
        make("babbler", **options, **more).invoke("hi")
    assert len(cache._cache) == 5


# --- what a reply tells of itself -------------------------------------------------------


def test_usage(model: ChatTierwise) -> None:
    question = [HumanMessage("hi")]
    reply = model.invoke(question)
    assert reply.usage_metadata is not None
    prompt = model.get_num_tokens_from_messages(question)
    assert reply.usage_metadata["input_tokens"] == prompt
    assert reply.usage_metadata["output_tokens"] == len(HELLO)  # a byte a token
    assert reply.usage_metadata["total_tokens"] == prompt + len(HELLO)
    assert reply.usage_metadata["input_token_details"] == {"cache_read": 0}
    later = model.invoke([*question, reply, HumanMessage("The apple?")])
    assert later.usage_metadata is not None
    cached = later.usage_metadata["input_token_details"]["cache_read"]
    assert prompt <= cached < later.usage_metadata["input_tokens"]


def test_metadata(model: ChatTierwise) -> None:
    first, second = (model.invoke("hi").response_metadata for _ in range(2))
    assert first["tier"] == first["model_name"] == "only"
    assert first["model_provider"] == "tierwise"
    assert "only is the quickest of 1" in first["reason"]
    assert first["predicted_s"] > 0 and first["actual_s"] > 0
    assert first["escalated"] is False and first["problem"] == ""
    assert first["attempts"][0]["events"][0].startswith("loaded only")
    assert second["attempts"][0]["events"] == []
    assert json.loads(json.dumps(first))["tier"] == "only"
    assert model.bind_tools([get_weather]).invoke(ASK).response_metadata["finish_reason"] == (
        "tool_calls"
    )


def test_metadata_of_an_escalation(make: Make) -> None:
    bound = make("pair", budget=Budget(quality=0)).bind_tools([get_weather])
    reply = bound.invoke(ASK)
    assert wanted(reply) == [("get_weather", OSLO)]
    metadata = json.loads(json.dumps(reply.response_metadata))
    assert metadata["escalated"] is True and metadata["tier"] == "large"
    assert metadata["reason"].startswith("escalated from small: the city for get_weather")
    assert [attempt["tier"] for attempt in metadata["attempts"]] == ["small", "large"]


# --- routing ----------------------------------------------------------------------------


def test_a_tier_by_name(make: Make) -> None:
    model = make("pair", budget=Budget(quality=0))
    assert model.invoke("hi").content == "Hi."
    large = model.invoke("hi", model="large")
    assert large.content == HELLO
    assert large.response_metadata["reason"] == "large was asked for by name"
    pinned = make("pair", model="small")
    wrong = pinned.bind_tools([get_weather]).invoke(ASK)
    assert wanted(wrong) == [("get_weather", {"city": "Rome"})]  # a pin never escalates
    assert wrong.response_metadata["escalated"] is False
    assert pinned.invoke("hi", model="large").content == HELLO
    assert make("pair", tier_name="large").invoke("hi").content == HELLO


def test_a_tier_that_is_not_there(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"no tier 'huge'; it has: small, large"):
        make("pair").invoke("hi", model="huge")
    with pytest.raises(ConfigError, match="'huge'"):
        make("pair", model="huge").invoke("hi")
    with pytest.raises(ConfigError, match="'huge'"):
        make("pair", tiers=["huge"]).invoke("hi")
    with pytest.raises(ConfigError, match="no tier to route to"):
        make("pair", tiers=[]).invoke("hi")


def test_some_tiers_only(make: Make) -> None:
    model = make("pair", budget=Budget(quality=0), tiers=["large"])
    assert model.invoke("hi").content == HELLO
    with pytest.raises(NoFeasibleTierError, match="not among the enabled tiers"):
        model.invoke("hi", model="small")


def test_budgets(make: Make) -> None:
    model = make(budget=Budget(reply_tokens=5))
    assert model.invoke("hi").content == "Hello"
    assert model.invoke("hi", budget=Budget()).content == HELLO
    assert model.invoke("hi", budget={"reply_tokens": 1}).content == "H"
    assert make(budget={"reply_tokens": 5}).invoke("hi").content == "Hello"
    with pytest.raises(NoFeasibleTierError, match="no tier fits the budget"):
        model.invoke("hi", budget={"memory": "1KB"})
    with pytest.raises(ConfigError, match="'speed'"):
        model.invoke("hi", budget={"speed": 1})
    with pytest.raises(ConfigError, match="'fast'"):
        model.invoke("hi", budget="fast")


def test_explain(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("pair", budget=Budget(quality=0))
    decision = model.explain(ASK, tools=[get_weather])
    shown = capsys.readouterr().out
    assert decision.tier == "small" and "→ small" in shown and "large" in shown
    assert decision.prompt_tokens == model.get_num_tokens_from_messages(ASK, tools=[get_weather])
    assert model.router.pool.resident() == {}
    assert model.explain("hi", model="large").tier == "large"
    assert "→ large" in capsys.readouterr().out
    assert make("pair", model="large").explain("hi").tier == "large"
    with pytest.raises(ConfigError, match="'temprature'"):
        model.explain("hi", temprature=1)


# --- tools ------------------------------------------------------------------------------


@tool("get_weather")
def weather_tool(city: str) -> str:
    """The weather in a city."""
    return city


class WeatherClass(BaseModel):
    """The weather in a city."""

    model_config = ConfigDict(title="get_weather")
    city: str


WEATHER_SCHEMA = {
    "title": "get_weather",
    "description": "The weather in a city.",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


@pytest.mark.parametrize(
    "form",
    [
        get_weather,
        weather_tool,
        WeatherClass,
        WEATHER_SCHEMA,
        {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}},
    ],
    ids=["function", "tool", "class", "schema", "openai"],
)
def test_every_form_of_a_tool_is_called(model: ChatTierwise, form: Any) -> None:
    assert wanted(model.bind_tools([form]).invoke(ASK)) == [("get_weather", OSLO)]


@pytest.mark.parametrize("choice", [None, "auto"])
def test_with_a_free_choice_a_text_is_a_text(model: ChatTierwise, choice: str | None) -> None:
    bound = model.bind_tools([get_weather, Trip], tool_choice=choice)
    assert bound.invoke("The apple?").content == FRUIT["apple"]
    assert wanted(bound.invoke(ASK)) == [("get_weather", OSLO)]
    assert wanted(bound.invoke(BOOK)) == [("Trip", TRIP)]


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_a_call_can_be_demanded(model: ChatTierwise, choice: str | bool) -> None:
    bound = model.bind_tools([get_weather, Trip], tool_choice=choice)
    assert wanted(bound.invoke(BOOK)) == [("Trip", TRIP)]
    ((name, _),) = wanted(bound.invoke("The apple?"))
    assert name in ("get_weather", "Trip")


@pytest.mark.parametrize(
    "choice",
    [
        "get_weather",
        {"type": "function", "function": {"name": "get_weather"}},
        {"type": "tool", "name": "get_weather"},
    ],
)
def test_one_tool_can_be_demanded(model: ChatTierwise, choice: Any) -> None:
    bound = model.bind_tools([Trip, get_weather], tool_choice=choice)
    assert wanted(bound.invoke(ASK)) == [("get_weather", OSLO)]
    assert [name for name, _ in wanted(bound.invoke(BOOK))] == ["get_weather"]


def test_calls_can_be_forbidden(model: ChatTierwise) -> None:
    bound = model.bind_tools([get_weather], tool_choice="none")
    reply = bound.invoke(ASK)
    assert reply.tool_calls == [] and reply.content
    assert bound.invoke(ASKED).content == MILD


def test_several_calls_may_be_allowed(model: ChatTierwise) -> None:
    bound = model.bind_tools([get_weather], parallel_tool_calls=True, strict=True)
    assert wanted(bound.invoke(ASK)) == [("get_weather", OSLO)]


def test_tools_that_cannot_be_bound(make: Make) -> None:
    with pytest.raises(ConfigError, match="bound: get_weather"):
        make().bind_tools([get_weather], tool_choice="get_time")
    with pytest.raises(ConfigError, match="web_search_preview"):
        make().bind_tools([{"type": "web_search_preview"}])
    with pytest.raises(ConfigError, match="bound: none"):
        make().invoke("hi", tool_choice="get_time")


def test_a_tool_whose_schema_cannot_be_compiled(model: ChatTierwise) -> None:
    odd = {"name": "get_time", "parameters": {"properties": {"zone": {"type": "strnig"}}}}
    with pytest.raises(ToolSchemaError, match="'get_time', property 'zone'"):
        model.bind_tools([get_weather, odd]).invoke(ASK)
    with pytest.raises(ToolSchemaError, match="response schema, property 'city'"):
        model.invoke("hi", response_format={"properties": {"city": {"type": "strnig"}}})
    assert model.invoke("hi").content == HELLO


def test_a_tool_with_boolean_schemas(model: ChatTierwise) -> None:
    anything = {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": True, "tags": {"type": "array", "items": True}},
            "required": ["city"],
        },
    }
    assert wanted(model.bind_tools([anything]).invoke(ASK)) == [("get_weather", OSLO)]


# --- structured output ------------------------------------------------------------------


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Trip, TripDict, TRIP_SCHEMA], ids=["class", "dict", "schema"])
def test_structured_output(
    model: ChatTierwise, schema: Any, method: Any, include_raw: bool
) -> None:
    structured = model.with_structured_output(schema, method=method, include_raw=include_raw)
    question = BOOK if method == "function_calling" else PLAN
    expected = Trip(**TRIP) if schema is Trip else TRIP
    found: Any = structured.invoke(question)
    if not include_raw:
        assert found == expected
        assert asyncio.run(structured.ainvoke(question)) == expected
        return
    assert sorted(found) == ["parsed", "parsing_error", "raw"]
    assert found["parsed"] == expected and found["parsing_error"] is None
    assert isinstance(found["raw"], AIMessage)
    assert found["raw"].response_metadata["tier"] == "only"


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize("schema", [Trip, TRIP_SCHEMA], ids=["class", "schema"])
def test_structured_output_that_was_cut_off(make: Make, schema: Any, method: Any) -> None:
    """LangChain's own parsers would make a trip to "Os" of it."""
    town: Any = {**TRIP_SCHEMA, "required": ["city"]} if schema is TRIP_SCHEMA else schema
    model = make(max_tokens=12)
    found: Any = model.with_structured_output(town, method=method, include_raw=True).invoke(PLAN)
    assert found["raw"].content == '{"city": "Os'
    assert found["parsed"] is None
    assert isinstance(found["parsing_error"], OutputParserException)
    with pytest.raises(OutputParserException, match="max_tokens"):
        model.with_structured_output(town, method=method).invoke(PLAN)


def test_structured_output_that_is_of_another_shape(make: Make) -> None:
    """In JSON mode the schema only parses."""
    structured = make().with_structured_output(Trip, method="json_mode", include_raw=True)
    found: Any = structured.invoke("nonsense")
    assert found["raw"].content == '{"town": 5}'
    assert found["parsed"] is None and "Trip" in str(found["parsing_error"])


def test_a_forced_call_that_was_cut_off_is_none(make: Make) -> None:
    model = make(max_tokens=20)
    structured = model.with_structured_output(Trip, method="function_calling", include_raw=True)
    found: Any = structured.invoke(BOOK)
    assert found["parsed"] is None and found["raw"].tool_calls == []
    assert found["raw"].response_metadata["problem"]


def test_structured_output_streams_partial_objects(make: Make) -> None:
    parts = list(make().with_structured_output(TRIP_SCHEMA).stream(PLAN))
    assert parts[-1] == TRIP and {"city": "Os"} in parts


def test_other_schemas_than_objects(make: Make) -> None:
    untitled = {key: value for key, value in TRIP_SCHEMA.items() if key != "title"}
    assert make().with_structured_output(untitled).invoke(PLAN) == TRIP
    either = {"anyOf": [{"type": "string"}, untitled]}
    assert make().with_structured_output(either).invoke(PLAN) == TRIP
    openai = {"type": "json_schema", "json_schema": {"name": "Trip", "schema": untitled}}
    assert json.loads(str(make().invoke(PLAN, response_format=openai).content)) == TRIP


def test_structured_output_as_it_cannot_be(make: Make) -> None:
    with pytest.raises(ConfigError, match="unknown method 'yaml'"):
        make().with_structured_output(Trip, method="yaml")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not know tools"):
        make().with_structured_output(Trip, tools=[])
    with pytest.raises(ConfigError, match="response_format"):
        make().with_structured_output("Trip").invoke("hi")  # type: ignore[arg-type]
    assert make().with_structured_output(Trip, strict=True).invoke(PLAN) == Trip(**TRIP)


def test_tools_and_a_response_format_together(model: ChatTierwise) -> None:
    """As ``create_agent`` binds them for its ProviderStrategy."""
    bound = model.bind_tools([get_weather], response_format=Trip)
    assert wanted(bound.invoke(ASK)) == [("get_weather", OSLO)]
    reply = bound.invoke(PLAN)
    assert json.loads(str(reply.content)) == TRIP and reply.tool_calls == []


# --- forms of a text --------------------------------------------------------------------


def test_a_text_that_matches_a_regex(make: Make) -> None:
    model = make()
    assert model.invoke("hi", regex=r"Hello [a-z]+, [a-z]+\.").content == HELLO
    assert str(model.invoke("hi", regex=r"[0-9]{3}").content).isdecimal()
    pieces = [str(chunk.content) for chunk in model.stream("hi", regex="Hello [a-z]{5}")]
    assert "".join(pieces) == "Hello there"


def test_a_text_that_is_one_of_a_few(make: Make) -> None:
    model = make()
    assert model.invoke("hi", choices=["Good day", HELLO]).content == HELLO
    assert model.bind(choices=["yes", "no"]).invoke("hi").content in ("yes", "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "choices": ["b"]}, "has regex and choices"),
        ({"regex": "a", "response_format": Trip}, "has response_schema and regex"),
        ({"choices": []}, "choices cannot be"),
        ({"choices": "yes"}, "choices cannot be 'yes'"),
        ({"regex": 5}, "regex cannot be 5"),
    ],
    ids=str,
)
def test_forms_that_make_no_sense(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().invoke("hi", **options)


# --- reasoning --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "v1"])
@pytest.mark.parametrize("question", ["hi", CALL])
def test_reasoning_comes_in_blocks_of_its_own(
    make: Make, question: str, version: str | None
) -> None:
    bound = make("thinker", output_version=version).bind_tools([get_weather])
    reply = bound.invoke(question)
    kinds = [block["type"] for block in reply.content_blocks]
    assert kinds == ["reasoning", "text" if question == "hi" else "tool_call"]
    assert reply.content_blocks[0].get("reasoning") == THOUGHT
    assert reply.text == (HELLO if question == "hi" else "")
    assert wanted(reply) == ([] if question == "hi" else [("get_weather", OSLO)])

    async def all_chunks() -> list[Any]:
        return [chunk async for chunk in bound.astream(question)]

    for chunks in (list(bound.stream(question)), asyncio.run(all_chunks())):
        whole = streamed(chunks)
        assert [block["type"] for block in whole.content_blocks] == kinds
        assert whole.content_blocks[0].get("reasoning") == THOUGHT
        assert whole.text == reply.text and wanted(whole) == wanted(reply)
        if version is None:
            assert whole.content == reply.content


def test_reasoning_is_streamed_where_nothing_can_take_it_back(make: Make) -> None:
    chunks = list(make("thinker").stream("hi"))
    thoughts = [c for c in chunks for block in c.content_blocks if block["type"] == "reasoning"]
    assert len(thoughts) > 10
    events: Any = make("thinker").stream_events("hi", version="v3")
    assert {event["event"] for event in events} >= {"message-start", "message-finish"}
    assert [block["type"] for block in events.output.content_blocks] == ["reasoning", "text"]


def test_reasoning_is_not_told_again(make: Make) -> None:
    model = make("thinker")
    first = model.invoke("hi")
    count = model.get_num_tokens_from_messages
    assert count([first]) == count([AIMessage(HELLO)])
    again = model.invoke([HumanMessage("hi"), first, HumanMessage(CALL)], tools=[get_weather])
    assert wanted(again) == [("get_weather", OSLO)]


def test_a_text_without_reasoning_stays_a_string(make: Make) -> None:
    told_only = make("thinker").bind_tools([get_weather]).invoke(ASKED)
    assert told_only.content == MILD


def test_structured_output_after_reasoning(make: Make) -> None:
    """The thoughts are no part of the JSON."""
    schema = {"title": "Greeting", "type": "object", "properties": {"x": {"const": 1}}}
    found = make("thinker").with_structured_output({**schema, "required": ["x"]}).invoke("hi")
    assert found == {"x": 1}


# --- logprobs ---------------------------------------------------------------------------


def test_logprobs(make: Make) -> None:
    model = make(logprobs=True, top_logprobs=2)
    reply = model.invoke("umlauts")
    told = json.loads(json.dumps(reply.response_metadata["logprobs"]["content"]))
    assert bytes(byte for token in told for byte in token["bytes"]) == UMLAUTS.encode()
    assert all(token["logprob"] > -0.1 for token in told)
    assert all(len(token["top_logprobs"]) == 2 for token in told)
    assert all(token["top_logprobs"][0]["bytes"] == token["bytes"] for token in told)
    whole = streamed(list(model.stream("umlauts")))
    assert len(whole.response_metadata["logprobs"]["content"]) == len(told)
    assert "logprobs" not in model.invoke("hi", logprobs=False).response_metadata
    alone = make(top_logprobs=1).invoke("hi").response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 1 for token in alone)


def test_what_could_not_be_done_is_not_ignored(make: Make) -> None:
    with pytest.raises(ValueError, match="log_text=True has no file to log to"):
        make(log_text=True)
    with pytest.raises(ConfigError, match="demands a call, and no tool is bound"):
        make().bind_tools([], tool_choice="any")
    for nothing in (None, list[int]):
        with pytest.raises(ConfigError, match="schema"):
            make().with_structured_output(nothing)


def test_logprobs_of_one_call(make: Make) -> None:
    reply = make().bind(logprobs=True).invoke("hi")
    told = reply.response_metadata["logprobs"]["content"]
    assert [token["token"] for token in told] == [*HELLO]
    assert all(token["top_logprobs"] == [] for token in told)
    assert "logprobs" not in make().invoke("hi").response_metadata
    with pytest.raises(ConfigError, match="top_logprobs cannot be 21"):
        make().invoke("hi", top_logprobs=21)


# --- tokens and content -----------------------------------------------------------------


def test_tokens(model: ChatTierwise) -> None:
    assert len(model.get_token_ids("hi there")) == model.get_num_tokens("hi there") == 8
    without = model.get_num_tokens_from_messages(ASK)
    with_tools = model.get_num_tokens_from_messages(ASK, tools=[get_weather])
    assert with_tools > without > 10
    reply = model.bind_tools([get_weather]).invoke(ASK)
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["input_tokens"] == with_tools


def test_messages_can_be_trimmed(make: Make) -> None:
    model = make()
    talk = [HumanMessage("x" * 100), AIMessage("y" * 100), HumanMessage("hi")]
    kept = trim_messages(talk, max_tokens=100, token_counter=model, start_on="human")
    assert kept == talk[-1:]


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "image_url"),
        ({"type": "image", "url": "https://example.org/a.png"}, "image"),
        ({"type": "audio", "base64": "aGk=", "mime_type": "audio/wav"}, "audio"),
        ({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}, "audio"),
    ],
)
def test_what_is_not_text_is_named(make: Make, block: dict[str, Any], kind: str) -> None:
    with pytest.raises(UnsupportedContentError, match=f"'{kind}'"):
        make().invoke([HumanMessage([{"type": "text", "text": "What is this?"}, block])])


def test_a_model_may_be_told_not_to_think(make: Make) -> None:
    for model in (make("obedient", reasoning=False), make("obedient")):
        reply = model.invoke("hi")
        thinks = model.reasoning is None
        assert reply.text == (HELLO if thinks else "Hi.")
        kinds = [block["type"] for block in reply.content_blocks]
        assert kinds == (["reasoning", "text"] if thinks else ["text"])
        assert model.invoke("hi", reasoning=False).text == "Hi."
        assert model.invoke("hi", reasoning=True).text == HELLO
        assert model.bind(reasoning="low").invoke("hi").text == HELLO
    with pytest.raises(ConfigError, match="reasoning cannot be 'hard'"):
        make("obedient").invoke("hi", reasoning="hard")


def test_a_conversation_that_is_too_long(make: Make) -> None:
    with pytest.raises(ContextOverflowError, match="Shorten the conversation"):
        make().invoke("x" * 5000)
    with pytest.raises(ContextOverflowError, match="lower max_tokens"):
        make().invoke("hi", max_tokens=5000)


async def test_langchain_knows_that_a_conversation_is_too_long(make: Make) -> None:
    """Its middleware that summarizes goes by its own error."""
    model, long = make(), "x" * 5000
    with pytest.raises(LangChainOverflowError) as caught:
        model.invoke(long)
    assert isinstance(caught.value, ContextOverflowError)
    with pytest.raises(LangChainOverflowError):
        await model.ainvoke(long)
    with pytest.raises(LangChainOverflowError):
        list(model.stream(long))
    with pytest.raises(LangChainOverflowError):
        [chunk async for chunk in model.astream(long)]


def test_a_conversation_that_is_trimmed(make: Make) -> None:
    talk = [m for n in range(40) for m in (HumanMessage(f"{n} " + "x" * 90), AIMessage("Yes."))]
    question = [SystemMessage("Be kind."), *talk, HumanMessage("The apple?")]
    with pytest.raises(ContextOverflowError):
        make().invoke(question)
    for reply in (make(overflow="trim").invoke(question), make().invoke(question, overflow="trim")):
        assert reply.content == FRUIT["apple"]
        assert reply.usage_metadata is not None
        assert 2000 < reply.usage_metadata["input_tokens"] < 4096
    with pytest.raises(ConfigError, match="overflow cannot be 'cut'"):
        make().invoke("hi", overflow="cut")


# --- life -------------------------------------------------------------------------------


def test_a_profile(make: Make, tmp_path: Path) -> None:
    for options, tokens in (({}, 2048), ({"tiers": ["large"]}, 4096)):
        profile = make("pair", **options).profile
        assert profile is not None
        assert profile["max_input_tokens"] == tokens
        assert profile["tool_calling"] and profile["structured_output"]
        assert not profile["image_inputs"]
    assert ChatTierwise(family=str(tmp_path)).profile is None


def test_forms_of_a_family(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders["native"]
    monkeypatch.setenv("TIERWISE_FAMILY", str(folder))
    for family in ({"family": folder}, {"family": Family.load(folder)}, {}):
        with ChatTierwise(**family, threads=1) as model:
            assert model.family == str(folder)
            assert model.invoke("hi").content == HELLO


def test_closing_and_using_again(make: Make) -> None:
    with make() as model:
        assert model.invoke("hi").content == HELLO
        assert list(model.router.pool.resident()) == ["only"]
        pool = model.router.pool
    assert pool.resident() == {}
    assert model.invoke("hi").content == HELLO
    model.close()
    model.close()


def test_a_family_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatTierwise(family=str(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(FamilyNotFoundError, match="tierwise build") as caught:
            model.invoke("hi")
        assert "nowhere" in str(caught.value)
    monkeypatch.delenv("TIERWISE_FAMILY", raising=False)
    with pytest.raises(ConfigError, match="TIERWISE_FAMILY"):
        ChatTierwise().invoke("hi")


def test_the_first_call_after_the_family_was_built(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    with ChatTierwise(family=str(tmp_path / "family"), threads=1) as model:
        with pytest.raises(FamilyNotFoundError):
            model.invoke("hi")
        make_family(tmp_path / "family", [TierSpec("only", folders["native"] / "only.gguf")])
        assert model.invoke("hi").content == HELLO


def test_nothing_is_loaded_by_construction(tmp_path: Path, folders: dict[str, Path]) -> None:
    """No tier (there is none that could be), and no library that only builds need."""
    source = folders["native"]
    (tmp_path / "family.json").write_bytes((source / "family.json").read_bytes())
    (tmp_path / "only.gguf").write_bytes(bytes((source / "only.gguf").stat().st_size))
    code = f"""
import sys
from tierwise import ChatTierwise, TierwiseError
model = ChatTierwise(family={str(tmp_path)!r})
model.bind_tools([]).with_config(tags=["x"])
print(model.profile["max_input_tokens"], {{"torch", "transformers", "gguf"}} & {{*sys.modules}})
try:
    model.invoke("hi")
except TierwiseError as error:
    print(type(error).__name__)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["4096 set()", "DamagedTierError"]


def test_secrets_are_not_shown(make: Make) -> None:
    model = make(api_key="sk-very-secret")
    assert "very-secret" not in repr(model) + str(model.model_dump())
    assert model.invoke("hi").content == HELLO

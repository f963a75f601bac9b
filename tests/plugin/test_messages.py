"""LangChain's messages, tools and schemas in the plain form, and replies back."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel

from tierwise.plugin.messages import (
    to_budget,
    to_messages,
    to_schema,
    to_tool_choice,
    to_tools,
)
from tierwise.routing.budget import Budget
from tierwise.runtime.chat import Message, ToolCall
from tierwise.runtime.errors import ConfigError, UnsupportedContentError


def plain(message: BaseMessage) -> Message:
    (only,) = to_messages([message])
    return only


# --- messages in ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HumanMessage("hi"), Message("user", "hi")),
        (HumanMessageChunk(content="hi"), Message("user", "hi")),
        (HumanMessage("hi", name="Ann"), Message("user", "hi")),
        (SystemMessage("be brief"), Message("system", "be brief")),
        (SystemMessageChunk(content="be brief"), Message("system", "be brief")),
        (AIMessage("hello"), Message("assistant", "hello")),
        (AIMessageChunk(content="hello"), Message("assistant", "hello")),
        (ChatMessage("hi", role="user"), Message("user", "hi")),
        (ChatMessage("hi", role="human"), Message("user", "hi")),
        (ChatMessage("hi", role="assistant"), Message("assistant", "hi")),
        (ChatMessage("hi", role="ai"), Message("assistant", "hi")),
        (ChatMessage("hi", role="system"), Message("system", "hi")),
        (ChatMessage("hi", role="developer"), Message("system", "hi")),
        (FunctionMessage("18", name="weather"), Message("tool", "18", tool_name="weather")),
        (HumanMessage(""), Message("user", "")),
    ],
)
def test_every_kind_of_message(message: BaseMessage, expected: Message) -> None:
    assert plain(message) == expected


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(UnsupportedContentError, match="'critic'"):
        to_messages([ChatMessage("hi", role="critic")])
    with pytest.raises(UnsupportedContentError, match="'remove'"):
        to_messages([RemoveMessage(id="1")])


def test_calls_and_their_results() -> None:
    calls = [
        {"name": "weather", "args": {"city": "Oslo"}, "id": "1"},
        {"name": "time", "args": {}, "id": "2"},
    ]
    asked, second, first, named = to_messages(
        [
            AIMessage("Let me see.", tool_calls=calls),
            ToolMessage("noon", tool_call_id="2"),
            ToolMessage("no such city", tool_call_id="1", status="error"),
            ToolMessage("18", tool_call_id="1", name="forecast"),
        ]
    )
    assert asked.content == "Let me see."
    assert asked.tool_calls == (
        ToolCall("weather", {"city": "Oslo"}, "1"),
        ToolCall("time", {}, "2"),
    )
    assert second == Message("tool", "noon", tool_call_id="2", tool_name="time")
    assert (first.tool_name, first.tool_failed) == ("weather", True)
    assert (named.tool_name, named.tool_failed) == ("forecast", False)


def test_a_result_whose_call_is_gone() -> None:
    """As after a summary of what came before."""
    assert plain(ToolMessage("18", tool_call_id="9")).tool_name == ""


def test_calls_streamed_in_chunks() -> None:
    whole = AIMessageChunk(content="", tool_call_chunks=[_chunk("weather", '{"ci', "1")])
    whole += AIMessageChunk(content="", tool_call_chunks=[_chunk(None, 'ty": "Oslo"}', None)])
    assert plain(whole).tool_calls == (ToolCall("weather", {"city": "Oslo"}, "1"),)


def _chunk(name: str | None, args: str, call_id: str | None) -> Any:
    return {"name": name, "args": args, "id": call_id, "index": 0, "type": "tool_call_chunk"}


def test_calls_without_an_id() -> None:
    asked = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": None}])
    assert plain(asked).tool_calls == (ToolCall("f", {}, ""),)


# --- content blocks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["one", "two"], "one\ntwo"),
        ([{"type": "text", "text": "one"}, "two"], "one\ntwo"),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "two"}], "two"),
        ([{"type": "text"}], ""),
        ([{"type": "json", "json": {"größe": 1}}], '{"größe": 1}'),
        ([], ""),
    ],
)
def test_blocks_of_text(content: list[Any], text: str) -> None:
    assert plain(HumanMessage(content)).content == text
    assert plain(ToolMessage(content, tool_call_id="1")).content == text


@pytest.mark.parametrize(
    "block",
    [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
        {"type": "tool_call", "id": "1", "name": "f", "args": {}},
        {"type": "tool_call_chunk", "id": "1", "name": "f", "args": "{}"},
        {"type": "input_json_delta", "input": "{}"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
    ],
)
def test_what_another_provider_s_replies_hold_besides_text(block: dict[str, Any]) -> None:
    """A conversation may have begun with another model (ModelFallbackMiddleware)."""
    assert plain(AIMessage([block, {"type": "text", "text": "Hello."}])).content == "Hello."


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
        {"type": "audio", "base64": "aGk=", "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
        {"type": "video", "url": "https://example.org/a.mp4"},
        {"type": "file", "base64": "aGk=", "mime_type": "application/pdf"},
        {"type": "hologram"},
    ],
)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage])
def test_what_no_tier_can_read_is_named(block: dict[str, Any], kind: Any) -> None:
    with pytest.raises(UnsupportedContentError, match=f"part of type '{block['type']}'"):
        to_messages([kind([{"type": "text", "text": "What is this?"}, block])])


def test_an_image_from_a_tool_is_named() -> None:
    shown = ToolMessage([{"type": "image", "url": "https://example.org"}], tool_call_id="1")
    with pytest.raises(
        UnsupportedContentError, match="a tool message holds a part of type 'image'"
    ):
        to_messages([shown])


# --- tools ------------------------------------------------------------------------------


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str


@tool
def weather_tool(city: str) -> str:
    """The weather in a city."""
    return city


def weather_function(city: str) -> str:
    """The weather in a city."""
    return city


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    GetWeather,
    weather_tool,
    weather_function,
    {"title": "weather", "description": "The weather in a city.", **CITY},
    {"name": "weather", "description": "The weather in a city.", "parameters": CITY},
    {"name": "weather", "description": "The weather in a city.", "input_schema": CITY},
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": CITY,
        },
    },
]


@pytest.mark.parametrize(
    "given",
    TOOLS,
    ids=["model", "tool", "function", "json-schema", "parameters", "input-schema", "openai"],
)
def test_every_form_of_a_tool(given: Any) -> None:
    (found,) = to_tools([given])
    assert found.name.lower().startswith(("weather", "getweather"))
    assert found.description == "The weather in a city."
    assert found.parameters["properties"]["city"]["type"] == "string"
    assert list(found.parameters["required"]) == ["city"]
    assert to_tools([found.to_openai()]) == (found,)


def test_a_tool_without_parameters_or_description() -> None:
    (found,) = to_tools([{"name": "stop"}])
    assert (found.name, found.description, found.parameters) == ("stop", "", {})


@pytest.mark.parametrize(
    "given",
    [
        {"type": "web_search_preview"},
        {"type": "function"},
        {"type": "function", "function": {}},
        CITY,
        {},
        "weather",
        5,
        int,
    ],
    ids=str,
)
def test_what_is_no_tool_is_named(given: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be bound as a tool") as caught:
        to_tools([given])
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "meaning"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ({"type": "auto"}, "auto"),
        ("any", "any"),
        ("required", "any"),
        (True, "any"),
        ({"type": "any"}, "any"),
        ({"type": "required"}, "any"),
        ("none", "none"),
        (False, "none"),
        ({"type": "none"}, "none"),
        ("weather", "weather"),
        ({"type": "function", "function": {"name": "weather"}}, "weather"),
        ({"type": "function", "name": "weather"}, "weather"),
        ({"type": "tool", "name": "weather"}, "weather"),
    ],
)
def test_every_spelling_of_a_tool_choice(choice: Any, meaning: str) -> None:
    assert to_tool_choice(choice, ["weather", "time"]) == meaning
    assert to_tool_choice(meaning, ["weather", "time"]) == meaning


@pytest.mark.parametrize(
    "choice",
    [
        "wether",
        "",
        7,
        ["weather"],
        {},
        {"type": "function"},
        {"type": "function", "function": {"name": "wether"}},
        {"type": "tool", "name": "wether"},
    ],
)
def test_a_choice_of_no_tool(choice: Any) -> None:
    with pytest.raises(ConfigError, match="bound: weather, time"):
        to_tool_choice(choice, ["weather", "time"])


# --- response formats -------------------------------------------------------------------


class Trip(BaseModel):
    """A trip."""

    city: str
    days: int = 1


class TripDict(TypedDict):
    """A trip."""

    city: str
    days: int


@pytest.mark.parametrize(
    "given",
    [
        Trip,
        TripDict,
        {"title": "Trip", **CITY},
        CITY,
        {"properties": CITY["properties"], "required": ["city"]},
        {"name": "Trip", "description": "A trip.", "parameters": CITY},
        {"type": "json_schema", "json_schema": {"name": "Trip", "schema": CITY, "strict": True}},
        {"type": "json_schema", "name": "Trip", "schema": CITY},
    ],
    ids=str,
)
def test_every_form_of_an_object_s_schema(given: Any) -> None:
    schema = to_schema(given)
    assert schema is not None
    assert schema["properties"]["city"]["type"] == "string"
    assert "city" in schema["required"]
    json.dumps(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"title": "Towns", "type": "array", "items": {"type": "string"}},
        {"type": "integer"},
        {"enum": ["yes", "no"]},
        {"const": 1},
        {"type": ["string", "null"]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"$ref": "#/$defs/Town", "$defs": {"Town": {"type": "string"}}},
    ],
    ids=str,
)
def test_a_schema_of_anything_else_stays_as_it_is(schema: Any) -> None:
    assert to_schema(schema) == schema


def test_formats_without_a_schema() -> None:
    assert to_schema(None) is None
    assert to_schema({"type": "text"}) is None
    anything = to_schema({"type": "json_object"})
    assert anything is not None
    assert anything["type"] == "object" and anything["additionalProperties"] is True


@pytest.mark.parametrize(
    "given",
    [
        "json",
        5,
        True,
        int,
        [],
        {},
        {"type": "nonsense"},
        {"type": ["string", "nonsense"]},
        {"type": {"a": 1}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": "Trip"},
        {"type": "json_schema", "json_schema": {"name": "Trip"}},
        {"type": "json_schema", "json_schema": {"name": "Trip", "schema": "x"}},
    ],
    ids=str,
)
def test_a_response_format_that_is_none(given: Any) -> None:
    with pytest.raises(ConfigError, match="response_format") as caught:
        to_schema(given)
    assert repr(given) in str(caught.value)


def test_budgets() -> None:
    budget = Budget(reply_tokens=5)
    assert to_budget(budget) is budget
    assert to_budget({"reply_tokens": 5}) == budget
    with pytest.raises(ConfigError, match="'fast'"):
        to_budget("fast")
    with pytest.raises(ConfigError, match="speed"):
        to_budget({"speed": 5})

"""Tools told in plain text."""

from __future__ import annotations

from typing import Any

import pytest

from tierwise.runtime.chat import Message, Tool, ToolCall
from tierwise.runtime.tool_format import JSON_LINES
from tierwise.runtime.tool_prompt import as_plain, signature, tool_prompt


def typed(schema: Any, **root: Any) -> str:
    """How the type of a property is told."""
    told = signature(Tool("f", "Does.", {"properties": {"a": schema}, **root}))
    assert told.startswith("- f(a?: ") and told.endswith("): Does.")
    return told.removeprefix("- f(a?: ").removesuffix("): Does.")


def test_a_signature() -> None:
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    }
    told = signature(Tool("weather", "What to\n  wear.", parameters))
    assert told == "- weather(city: string (where), days?: integer): What to wear."
    assert signature(Tool("stop", "Ends.", {})) == "- stop(): Ends."


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "number"}, "number"),
        ({"type": ["string", "null"]}, "string|null"),
        ({"enum": ["red", 2, None]}, "red|2|null"),
        ({"const": "x"}, "x"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "string or integer"),
        ({"type": "array", "items": {"type": "string"}}, "string[]"),
        ({"type": "array"}, "any[]"),
        ({"type": "object"}, "object"),
        (
            {"type": "object", "properties": {"x": {"type": "number"}, "y": {}}, "required": ["x"]},
            "{x: number, y?: any}",
        ),
        ({}, "any"),
    ],
)
def test_types(schema: Any, told: str) -> None:
    assert typed(schema) == told


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (True, "any"),
        (False, "none"),
        ({"type": "array", "items": True}, "any[]"),
        ({"type": "array", "items": False}, "none[]"),
        ({"anyOf": [True, {"type": "string"}]}, "any or string"),
        ({"type": "object", "properties": {"x": True}}, "{x?: any}"),
    ],
)
def test_boolean_schemas(schema: Any, told: str) -> None:
    """JSON schema has two that are no objects: true allows anything, false nothing."""
    assert typed(schema) == told


@pytest.mark.parametrize("word", ["items", "prefixItems"])
def test_a_schema_for_each_place_of_an_array(word: str) -> None:
    places = [{"type": "number"}, True, {"type": "array", "items": {"type": "string"}}]
    assert typed({"type": "array", word: places}) == "[number, any, string[]]"


def test_references() -> None:
    town = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert typed({"$ref": "#/$defs/Town"}, **{"$defs": {"Town": town}}) == "{name?: string}"
    assert typed({"$ref": "#/$defs/Gone"}) == "any"
    assert typed({"$ref": "#/$defs/Any"}, **{"$defs": {"Any": True}}) == "any"


def test_a_recursive_schema_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    told = typed({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}})
    assert told.startswith("{next?: {next?: ") and "any" in told


def test_braces_in_a_description_stay() -> None:
    assert "{x} {0}" in tool_prompt([Tool("f", "Gives {x} {0}.", {})])


def test_messages_in_plain_text() -> None:
    call = ToolCall("f", {"x": "{1}"}, id="1")
    assert as_plain(Message("assistant", tool_calls=(call,)), JSON_LINES).content == call.to_json()
    both = as_plain(Message("assistant", "Let me see.", tool_calls=(call, call)), JSON_LINES)
    assert both.content == f"Let me see.\n{call.to_json()}\n{call.to_json()}"
    result = as_plain(Message("tool", "{18}", tool_name="f"), JSON_LINES)
    assert result == Message("user", "Result of f: {18}")
    failure = as_plain(Message("tool", "no", tool_name="f", tool_failed=True), JSON_LINES)
    assert failure == Message("user", "Error of f: no")
    nameless = as_plain(Message("tool", "no"), JSON_LINES)
    assert nameless == Message("user", "Result of the function: no")
    assert as_plain(Message("user", "hi"), JSON_LINES) == Message("user", "hi")

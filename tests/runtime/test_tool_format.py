"""Tool calls as models write them, and as they are read back."""

from __future__ import annotations

import pytest

from tierwise.runtime.chat import ToolCall
from tierwise.runtime.tool_format import HERMES, JSON_LINES, ToolFormat

FORMATS = (HERMES, JSON_LINES)
TOOLS = {"get_weather", "add"}
WEATHER = ToolCall("get_weather", {"city": "Zürich", "days": [1, 2], "deep": {"a": None}})
ADD = ToolCall("add", {"a": 1, "b": -2.5})


def wrapped(tool_format: ToolFormat, body: str) -> str:
    return tool_format.opening + body + tool_format.closing


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize("calls", [(WEATHER,), (ADD, WEATHER), (ADD, ADD, ADD)])
def test_what_is_written_is_read(tool_format: ToolFormat, calls: tuple[ToolCall, ...]) -> None:
    assert tool_format.read(tool_format.write(calls), TOOLS) == ("", calls)


def test_the_forms_are_those_that_models_know() -> None:
    line = '{"name": "add", "arguments": {"a": 1, "b": -2.5}}'
    assert JSON_LINES.write([ADD, ADD]) == f"{line}\n{line}"
    assert HERMES.write([ADD]) == f"<tool_call>\n{line}\n</tool_call>"
    assert HERMES.tags == ("<tool_call>", "</tool_call>") and JSON_LINES.tags == ()


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize(
    "body",
    [
        "",
        "Hello!",
        "{",
        '{"name": "add", "arguments": {"a": 1}',
        '{"name": "add"}',
        '{"name": "add", "arguments": {}, "id": 1}',
        '{"name": "multiply", "arguments": {}}',
        '{"name": "add", "arguments": []}',
        '{"name": "add", "arguments": "a"}',
        '{"name": ["add"], "arguments": {}}',
        '{"name": {"a": 1}, "arguments": {}}',
        '{"name": null, "arguments": {}}',
        '["name", "arguments"]',
        "[" * 100_000,
        "1" * 10_000,
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_call_stays_text(tool_format: ToolFormat, body: str) -> None:
    text = wrapped(tool_format, body)
    assert tool_format.read(text, TOOLS) == (text, ())
    both = tool_format.write([ADD]) + tool_format.separator + text
    if body or tool_format is HERMES:
        assert tool_format.read(both, TOOLS) == (both, ())


def test_hermes_may_talk_before_it_calls() -> None:
    text = "Let me see. " + HERMES.write([ADD])
    assert HERMES.read(text, TOOLS) == ("Let me see.", (ADD,))


def test_hermes_may_forget_white_space_and_the_last_tag() -> None:
    assert HERMES.read('<tool_call>{"name": "add", "arguments": {}}', TOOLS) == (
        "",
        (ToolCall("add", {}),),
    )


def test_without_tools_nothing_is_a_call() -> None:
    assert JSON_LINES.read(ADD.to_json(), ()) == (ADD.to_json(), ())

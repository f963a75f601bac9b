"""Calls and replies survive being written down; what is no call is refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tierwise.runtime.chat import Call, Message, Reply, Tool, ToolCall
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.message_json import (
    call_from_json,
    call_to_json,
    reply_from_json,
    reply_to_json,
)

TOOL = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
CALLS = (ToolCall("add", {"a": 1, "b": [2, {"c": None}]}, id="x1"),)


@pytest.mark.parametrize(
    "call",
    [
        Call((Message("user", "Hi"),)),
        Call(
            (
                Message("system", "Be brief."),
                Message("user", "1 + 2?"),
                Message("assistant", tool_calls=CALLS),
                Message("tool", "no", tool_call_id="x1", tool_name="add", tool_failed=True),
            ),
            tools=(TOOL,),
            tool_choice="any",
            parallel_tool_calls=True,
            max_tokens=64,
        ),
        Call((Message("user", "As JSON"),), response_schema={"type": "object"}),
        Call((Message("user", "A number"),), regex="[0-9]+"),
        Call((Message("user", "Which?"),), choices=("this", "that"), reasoning="off"),
    ],
)
def test_a_call_is_the_same_once_it_was_written_and_read(call: Call) -> None:
    assert call_from_json(json.loads(json.dumps(call_to_json(call)))) == call


@pytest.mark.parametrize(
    "reply",
    [
        Reply("Hello."),
        Reply(tool_calls=CALLS, finish_reason="tool_calls"),
        Reply("half", finish_reason="length"),
    ],
)
def test_a_reply_is_the_same_once_it_was_written_and_read(reply: Reply) -> None:
    assert reply_from_json(json.loads(json.dumps(reply_to_json(reply)))) == reply


def test_a_bare_prompt_will_do() -> None:
    assert call_from_json({"prompt": "Hi"}) == Call((Message("user", "Hi"),))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "must be an object"),
        ({}, "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "robot"}]}, "role 'robot'"),
        ({"prompt": "x", "tools": {}}, "tools must be a list"),
        ({"prompt": "x", "tools": [{}]}, "no name"),
        ({"prompt": "x", "response_schema": 3}, "response_schema"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "regex": 3}, "regex"),
        ({"prompt": "x", "choices": "this"}, "choices"),
        ({"prompt": "x", "reasoning": True}, "reasoning must be one of off, on"),
    ],
)
def test_what_is_no_call_is_refused(data: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        call_from_json(data)

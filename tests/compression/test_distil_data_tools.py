"""Requests for tools: from the standard library, and from our own table."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import pytest

from tierwise.compression.distillation.agent_conversations import agent_conversations
from tierwise.compression.distillation.conversations import Conversation
from tierwise.compression.distillation.made_tools import made_clusters, made_tools, vary
from tierwise.compression.distillation.plain_questions import plain_conversations
from tierwise.compression.distillation.python_tools import (
    LEFT_OUT,
    first_sentence,
    python_tools,
)
from tierwise.compression.distillation.tool_requests import (
    Askable,
    AskedPython,
    python_clusters,
    tool_conversations,
)
from tierwise.compression.distillation.values import (
    Argument,
    draw_arguments,
    nested,
    real,
    say,
    several,
    tool_schema,
    truth,
    whole,
    words,
)
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tools_for_tests import TEST
from tierwise.runtime.schemas import check_schema


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of a schema, as far as ours go."""
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        return (
            isinstance(value, dict)
            and set(schema["required"]) <= set(value) <= set(properties)
            and all(fits(one, properties[name]) for name, one in value.items())
        )
    if kind == "array":
        return isinstance(value, list) and all(fits(one, schema["items"]) for one in value)
    if "enum" in schema:
        return value in schema["enum"]
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    python = {"string": str, "integer": int, "boolean": bool}[kind]
    return type(value) is python


def all_tools(seed: int) -> list[Askable]:
    rng = random.Random(seed)
    return [
        *(AskedPython(tool) for tool in python_tools()),
        *(vary(tool, rng) for tool in made_tools()),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_right_calls_fit_their_schemas(seed: int) -> None:
    rng = random.Random(seed)
    for tool in all_tools(seed):
        request, arguments = tool.ask(rng)
        assert arguments and fits(arguments, tool.tool.parameters), (tool.tool, arguments)
        assert request and not re.search(r"[{}]|\[\w*\?|  ", request), request
        json.dumps(arguments)


def test_requests_say_their_values() -> None:
    """Nothing that a call must hold has to be guessed."""
    rng = random.Random(3)
    small = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for one in value.values() for leaf in leaves(one)]
        return (
            [leaf for one in value for leaf in leaves(one)] if isinstance(value, list) else [value]
        )

    for tool in all_tools(3):
        request, arguments = tool.ask(rng)
        for value in leaves(arguments):
            if isinstance(value, bool):
                continue  # said by a clause, or as on and off
            said = [str(value)]
            if isinstance(value, int | float) and value >= 10_000:
                said.append(f"{value:,}")
            if isinstance(value, int) and 0 <= value <= 10:
                said.append(small[value])
            assert any(one in request or one.capitalize() in request for one in said), request


def test_schemas_compile() -> None:
    rng = random.Random(0)
    tools = rng.sample(all_tools(0), 60)
    for tool in tools:
        check_schema(tool.tool.name, tool.tool.parameters)


def test_the_standard_library_gives_hundreds_of_tools() -> None:
    tools = python_tools()
    names = [tool.tool.name for tool in tools]
    assert len(tools) > 400 and len(set(names)) == len(names)
    kinds = {
        schema["type"] for tool in tools for schema in tool.tool.parameters["properties"].values()
    }
    assert kinds == {"string", "integer", "number", "boolean", "array"}
    assert any(len(tool.arguments) > len(tool.tool.parameters["required"]) for tool in tools)
    assert {"math.sqrt", "textwrap.indent", "calendar.leapdays"} <= set(names)
    assert not set(names) & set(LEFT_OUT.split())
    shortest = next(tool for tool in tools if tool.tool.name == "calendar.leapdays")
    assert shortest.tool.description == "Return number of leap years in range [y1, y2)."


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of a and b.\n\nMore words.", "Return the sum of a and b"),
        ("f(x) -> int\n\nReturn x.", ""),
        ("join(a, b) -> str. Join two paths.", "Join two paths"),
        ("Return ``x`` as *text*; see below.", "Return x as text"),
        ("Like print, but different.", ""),
        ("Return {x: y}.", ""),
        ("Go.", ""),
        ("", ""),
    ],
)
def test_the_first_sentence_is_found(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


def test_the_table_is_whole() -> None:
    tools = made_tools()
    assert len(tools) > 100 and len({tool.name for tool in tools}) == len(tools)
    for tool in tools:
        known = {one.name for one in tool.arguments}
        assert tool.requests and tool.description, tool.name
        for request in tool.requests:
            named = set(re.findall(r"\{(\w+)\}", request)) | set(re.findall(r"\[(\w+)\?", request))
            assert named <= known, (tool.name, named - known)
            required = {one.name for one in tool.arguments if one.required}
            always = re.sub(r"\[[^\]]*\]", "", request)
            assert all(f"{{{name}}}" in always for name in required), (tool.name, request)
    kinds = {one.schema["type"] for tool in tools for one in tool.arguments}
    assert kinds == {"string", "integer", "number", "boolean", "array", "object"}


def test_a_default_is_not_asked_for() -> None:
    rng = random.Random(0)
    checked = 0
    for tool in made_tools():
        for _ in range(4):
            varied = vary(tool, rng)
            for one in varied.arguments:
                told = re.search(r"[Dd]efault (.+?)\)?$", one.schema.get("description", ""))
                if told and one.schema["type"] != "boolean":
                    checked += 1
                    assert str(one.draw(rng)) != told[1]
    assert checked > 50


def test_conversations_follow_their_tools() -> None:
    rng = random.Random(1)
    for clusters in (python_clusters(rng), made_clusters(rng)):
        taken = list(islice(tool_conversations(clusters, "made", rng), 200))
        calls = declined = 0
        for talk in taken:
            names = {tool.name: tool for tool in talk.tools}
            roles = [message.role for message in talk.messages]
            assert roles[0] == "user" and roles[-1] == "assistant"
            for before, message in zip(talk.messages, talk.messages[1:], strict=False):
                if message.tool_calls:
                    calls += 1
                    (call,) = message.tool_calls
                    assert fits(dict(call.arguments), names[call.name].parameters)
                    assert before.role == "user"
                elif message.role == "assistant" and before.role == "user":
                    declined += 1
                elif message.role == "tool":
                    assert message.tool_call_id == before.tool_calls[0].id
        assert calls > 8 * declined > 0
        assert {len(talk.tools) for talk in taken} == {1, 2, 3, 4}
        questions = [sum(m.role == "user" for m in talk.messages) for talk in taken]
        assert min(questions) == 1 and max(questions) > 5


def test_groups_share_no_tools() -> None:
    """So what is held out by groups is new to the student."""
    rng = random.Random(0)
    for clusters in (python_clusters(rng), made_clusters(rng)):
        groups: dict[str, set[str]] = {}
        for name, members in clusters:
            plain = {re.sub(r"\W|_", "", one.tool.description).lower()[:12] for one in members}
            groups.setdefault(name, set()).update(plain)
        assert len(groups) > 20
    made = [frozenset(one.tool.description[:9] for one in of) for _, of in made_clusters(rng, 4, 1)]
    assert sum(map(len, made)) == len(frozenset().union(*made)) or len(made) > 20


def test_agent_tasks_share_nothing_with_the_test() -> None:
    talks = list(islice(agent_conversations(0), 300))
    tested = {tool.name for domain in TEST.domains for tool in domain.tools}
    assert not tested & {tool.name for talk in talks for tool in talk.tools}
    asked = {task.call.messages[-1].content for task in generate_tasks(400, split="test")}
    said = {m.content for talk in talks for m in talk.messages if m.role == "user"}
    assert not asked & said
    assert any(sum(m.role == "user" for m in talk.messages) > 2 for talk in talks)
    assert any(talk.response_schema for talk in talks) and any(talk.asked for talk in talks)


def test_every_question_is_asked_once() -> None:
    talks: list[Conversation] = list(plain_conversations(0))
    first = [next(m.content for m in talk.messages if m.role == "user") for talk in talks]
    assert len(set(first)) == len(first) > 800
    assert all(len(talk.asked) in (1, 2) and not talk.tools for talk in talks)
    assert [t.messages for t in plain_conversations(0)] == [t.messages for t in talks]
    assert [t.messages for t in plain_conversations(1)] != [t.messages for t in talks]


def test_values_are_said() -> None:
    rng = random.Random(0)
    assert say("north", rng).strip("'\"") == "north"
    assert say("it's", rng) in ("it's", '"it\'s"')
    assert say(True, rng) in ("true", "on", "yes", "enabled")
    assert {say([1, 2, 3], rng) for _ in range(40)} >= {"[1, 2, 3]", "1, 2 and 3"}
    assert say({"a_b": 20, "c": "x"}, random.Random(1)).startswith("a b 20 and c ")
    assert "seven" in {say(7, rng) for _ in range(200)}


def test_at_least_one_argument_is_drawn() -> None:
    rng = random.Random(0)
    arguments = [
        Argument("a", *whole(1, 9), required=False),
        Argument("b", *several(real(0, 1)), required=False),
        Argument("c", *nested([Argument("d", *truth()), Argument("e", *words("x"))])),
    ]
    drawn = draw_arguments(arguments[:2], rng, optional=0.0)
    assert set(drawn) == {"a"}
    everything = draw_arguments(arguments, rng, optional=1.0)
    assert fits(everything, tool_schema(arguments)) and set(everything) == {"a", "b", "c"}

"""Structure alone: more of anything never looks easier, and no schema breaks it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tierwise.routing.difficulty import GRADE_AT, choices, structural_difficulty
from tierwise.runtime.chat import Call, Message, Tool, ToolCall


def tool(name: str = "look_up", arguments: int = 1) -> Tool:
    properties = {f"a{index}": {"type": "string"} for index in range(arguments)}
    return Tool(name, "Looks something up.", {"type": "object", "properties": properties})


def call(text: str = "hi", tools: Sequence[Tool] = (), **options: Any) -> Call:
    return Call((Message("user", text),), tools=tuple(tools), **options)


def rising(calls: Sequence[Call]) -> list[float]:
    found = [structural_difficulty(each) for each in calls]
    assert all(a <= b for a, b in itertools.pairwise(found)), found
    assert found[0] < found[-1]
    assert all(0 <= value <= 1 for value in found)
    return found


def test_a_greeting_is_the_easiest() -> None:
    assert structural_difficulty(call()) == 0
    assert structural_difficulty(Call(())) == 0


def test_more_tools_are_harder_up_to_seven() -> None:
    several = [call(tools=[tool(f"t{i}", 0) for i in range(count)]) for count in range(12)]
    found = rising(several)
    assert found[7] == pytest.approx(0.30)
    assert found[7:] == [found[7]] * 5


def test_more_arguments_are_harder() -> None:
    found = rising([call(tools=[tool(arguments=count)]) for count in range(10)])
    assert found[-1] - found[0] == pytest.approx(0.30)


def test_the_widest_tool_counts() -> None:
    both = call(tools=[tool("a", 1), tool("b", 5)])
    assert structural_difficulty(both) == structural_difficulty(
        call(tools=[tool("a", 5), tool("b", 5)])
    )


def test_a_longer_request_is_harder() -> None:
    found = rising([call("x" * length) for length in (1, 20, 21, 200, 2000, 20_000)])
    assert found[-1] == pytest.approx(0.20)


def test_only_the_last_user_turn_is_measured() -> None:
    long = Message("user", "x" * 5000)
    both = Call((long, Message("assistant", "yes"), Message("user", "thanks")))
    assert structural_difficulty(both) == 0


def test_steps_and_trouble_since_the_last_user_turn_are_harder() -> None:
    question = call()
    result = Message("tool", "4", tool_name="look_up")
    failure = replace(result, tool_failed=True)
    steps = rising([question.with_messages(*[result] * count) for count in range(6)])
    assert steps[-1] == pytest.approx(0.10)
    trouble = rising([question.with_messages(*[failure] * count) for count in range(6)])
    assert trouble[-1] == pytest.approx(0.20)
    assert trouble[1] > steps[1]
    old = question.with_messages(failure, failure, Message("user", "hi"))
    assert structural_difficulty(old) == 0


def test_everything_at_once_is_one() -> None:
    failed = [Message("tool", "no", tool_failed=True)] * 4
    tools = [tool(f"t{index}", 9) for index in range(9)]
    hardest = call("x" * 3000, tools).with_messages(*failed)
    assert structural_difficulty(hardest) == pytest.approx(1.0)


def test_a_response_schema_counts_as_arguments_do() -> None:
    schema = tool(arguments=3).parameters
    plain, asked = (
        structural_difficulty(call()),
        structural_difficulty(call(response_schema=schema)),
    )
    assert asked > plain
    # ... save where the reply must be a tool call and the schema has no say.
    forced = call(tools=[tool(arguments=1)], tool_choice="any")
    assert structural_difficulty(forced) == structural_difficulty(
        replace(forced, response_schema=schema)
    )


def test_tools_that_may_not_be_used_do_not_count() -> None:
    assert structural_difficulty(call(tools=[tool()], tool_choice="none")) == 0


def leaves(schema: Any) -> float:
    """Difficulty of one tool with this schema over that of a tool without arguments."""
    with_schema = structural_difficulty(call(tools=[Tool("t", "", schema)]))
    return with_schema - structural_difficulty(call(tools=[Tool("t", "", {})]))


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": None},
        {"type": "object", "properties": ["city"]},
        {"type": "object", "properties": {"any": True, "never": False}},
        {"type": "object", "properties": {"l": {"type": "array", "items": True}}},
        {"type": "object", "properties": {"l": {"type": "array", "items": False}}},
        {"type": "object", "properties": {"p": {"anyOf": [True, {"type": "null"}]}}},
        {"type": "object", "properties": {"p": {"$ref": "#/properties/p"}}},
        {"type": "object", "$defs": None, "anyOf": None, "allOf": {}},
    ],
)
def test_odd_schemas_do_no_harm(schema: dict[str, Any]) -> None:
    assert 0 <= leaves(schema) <= 0.30


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}, "$defs": {"node": NODE}},
        {"properties": {"n": {"$ref": "#/definitions/node"}}, "definitions": {"node": NODE}},
        {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
        {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, True]}}},
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}}}},
        {"properties": {"a": {"type": "array", "prefixItems": [{"type": "number"}, True]}}},
        {"properties": {"a": {"type": "array", "items": [{"type": "number"}]}}},
        {"allOf": [{"properties": {"a": {"type": "string"}}}]},
    ],
)
def test_values_are_found_wherever_they_stand(schema: dict[str, Any]) -> None:
    assert leaves(schema) == pytest.approx(0.10), json.dumps(schema)  # one value: log2(2) / 3


def test_nested_objects_add_up() -> None:
    def nested(depth: int) -> dict[str, Any]:
        inner = {"deeper": nested(depth - 1)} if depth else {}
        return {"type": "object", "properties": {"v": {"type": "string"}, **inner}}

    found = [leaves(nested(depth)) for depth in range(8)]
    assert found == sorted(found) and found[0] < found[2]


def test_the_scale_is_that_of_the_grades() -> None:
    assert list(GRADE_AT) == ["easy", "medium", "hard"]
    assert 0 < GRADE_AT["easy"] < GRADE_AT["medium"] < GRADE_AT["hard"] < 1
    assert choices(0) < choices(0.5) < choices(1)


def test_earlier_calls_of_the_model_do_not_count_as_steps() -> None:
    asked = Message("assistant", tool_calls=(ToolCall("look_up", {"a0": "x"}),))
    assert structural_difficulty(call().with_messages(asked)) == 0

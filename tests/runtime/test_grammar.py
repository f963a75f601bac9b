"""Grammars: which replies a call allows, and which part of a schema is at fault."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from tiny_models import write_scripted_gguf

from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.errors import CallError, EngineClosedError, ToolSchemaError
from tierwise.runtime.grammar import Constraint, GrammarCompiler, closed, constraint_for
from tierwise.runtime.llama import Model
from tierwise.runtime.tool_format import HERMES, JSON_LINES, ToolFormat


def tool(name: str, **properties: Any) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return Tool(name, "", schema)


ADD = tool("add", a={"type": "integer"}, b={"type": "integer"})
GREET = tool("greet", who={"type": "string"})
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
}
AUTO = Call((Message("user", "hi"),), tools=(ADD, GREET))
FORMATS = (HERMES, JSON_LINES)

ADDING = '{"name": "add", "arguments": {"a": 1, "b": -2}}'
GREETING = '{"name": "greet", "arguments": {"who": "Zoë \\"Z\\""}}'


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[Model]:
    with Model(tiny_gguf) as opened:
        yield opened


@pytest.fixture(scope="module")
def grammars(model: Model) -> GrammarCompiler:
    return GrammarCompiler(model)


class Accepts:
    """Whether a reply is one that the constraint of a call allows, from start to end."""

    def __init__(self, grammars: GrammarCompiler, model: Model, constraint: Constraint | None):
        assert constraint is not None
        self._grammars, self._model, self._lark = grammars, model, constraint.lark

    def __call__(self, reply: str) -> bool:
        matcher = self._grammars.matcher(self._lark)
        tokens = self._model.tokenize(reply, special=False)
        return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())


@pytest.fixture
def accepts(grammars: GrammarCompiler, model: Model) -> Any:
    def of(call: Call, tool_format: ToolFormat = JSON_LINES) -> Accepts:
        return Accepts(grammars, model, constraint_for(call, tool_format))

    return of


@pytest.fixture
def accepts_value(accepts: Any) -> Any:
    def of(schema: Any) -> Any:
        allowed = accepts(replace(AUTO, tools=(), response_schema=schema))
        return lambda value: allowed(json.dumps(value, ensure_ascii=False))

    return of


# --- What a call allows ---------------------------------------------------------------------------


def test_a_plain_call_is_free() -> None:
    assert constraint_for(replace(AUTO, tools=()), JSON_LINES) is None
    assert constraint_for(replace(AUTO, tool_choice="none"), HERMES) is None


@pytest.mark.parametrize(("tool_format", "trigger"), [(HERMES, "<tool_call>\n"), (JSON_LINES, "{")])
def test_only_auto_waits_for_a_trigger(tool_format: ToolFormat, trigger: str) -> None:
    def trigger_of(call: Call) -> str | None:
        constraint = constraint_for(call, tool_format)
        assert constraint is not None
        return constraint.trigger

    assert trigger_of(AUTO) == trigger
    assert trigger_of(replace(AUTO, tool_choice="any")) is None
    assert trigger_of(replace(AUTO, tool_choice="add")) is None
    assert trigger_of(replace(AUTO, response_schema=POINT)) is None


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_all_tools_may_be_called_once(accepts: Any, tool_format: ToolFormat, choice: str) -> None:
    allowed = accepts(replace(AUTO, tool_choice=choice), tool_format)
    adding, greeting = (tool_format.opening + c + tool_format.closing for c in (ADDING, GREETING))
    assert allowed(adding) and allowed(greeting)
    assert not allowed(adding + tool_format.separator + greeting)
    assert not allowed("Hello!")
    assert not allowed("")
    assert not allowed(adding[:-1])
    for wrong in (
        ADDING.replace("add", "subtract"),
        ADDING.replace('"a": 1', '"a": 1.5'),
        ADDING.replace(', "b": -2', ""),
        ADDING.replace('"b": -2', '"b": -2, "c": 3'),
        ADDING.replace(": ", ":"),
        ADDING.replace('"name": "add", ', ""),
    ):
        assert not allowed(tool_format.opening + wrong + tool_format.closing), wrong


@pytest.mark.parametrize("tool_format", FORMATS)
def test_a_named_tool_is_the_only_one(accepts: Any, tool_format: ToolFormat) -> None:
    allowed = accepts(replace(AUTO, tool_choice="greet"), tool_format)
    assert allowed(tool_format.opening + GREETING + tool_format.closing)
    assert not allowed(tool_format.opening + ADDING + tool_format.closing)


@pytest.mark.parametrize("tool_format", FORMATS)
def test_parallel_calls_may_be_many(accepts: Any, tool_format: ToolFormat) -> None:
    allowed = accepts(replace(AUTO, parallel_tool_calls=True), tool_format)
    calls = [tool_format.opening + c + tool_format.closing for c in (ADDING, GREETING, ADDING)]
    assert allowed(calls[0])
    assert allowed(tool_format.separator.join(calls))
    assert not allowed("".join(calls))
    assert not allowed(tool_format.separator.join(calls) + tool_format.separator)


def test_what_the_grammar_allows_is_what_the_format_reads(accepts: Any) -> None:
    allowed = accepts(replace(AUTO, parallel_tool_calls=True), HERMES)
    _, calls = HERMES.read(HERMES.opening + GREETING + HERMES.closing, {"greet"})
    assert allowed(HERMES.write(calls * 3))


def test_a_response_schema_holds_from_the_start(accepts_value: Any) -> None:
    allowed = accepts_value(POINT)
    assert allowed({"x": 1, "y": 2})
    assert not allowed({"x": 1}) and not allowed({"x": 1, "y": "2"}) and not allowed([1, 2])


def test_any_json_will_do_for_an_empty_schema(accepts_value: Any) -> None:
    allowed = accepts_value({})
    values: tuple[Any, ...] = ({}, {"a": [1, None, "ü"]}, [], "text", 3.5, None)
    for value in values:
        assert allowed(value)


def test_tools_and_a_response_schema_are_alternatives(accepts: Any) -> None:
    """What LangChain's provider strategy asks for."""
    both = replace(AUTO, response_schema=POINT)
    allowed = accepts(both)
    assert allowed(ADDING) and allowed('{"x": 1, "y": 2}')
    assert not allowed("Hello!") and not allowed('{"x": 1}')
    assert allowed(ADDING) and not allowed(ADDING.replace("add", "subtract"))
    must_call = accepts(replace(both, tool_choice="any"))
    assert must_call(ADDING) and not must_call('{"x": 1, "y": 2}')
    no_tools = accepts(replace(both, tool_choice="none"))
    assert no_tools('{"x": 1, "y": 2}') and not no_tools(ADDING)


@pytest.mark.parametrize(
    "value",
    [{"name": "add"}, {"name": "adding"}, {"name2": 1}, {"a": {"name": "add"}}, [], "add", 1],
)
def test_a_response_may_look_like_the_beginning_of_a_call(accepts: Any, value: Any) -> None:
    allowed = accepts(replace(AUTO, response_schema={}))
    assert allowed(json.dumps(value)) and allowed(ADDING)


def test_tools_without_parameters_take_none(accepts: Any) -> None:
    empty: dict[str, Any] = {"type": "object", "properties": {}}
    cases: list[dict[str, Any]] = [{}, empty, {"properties": {}}]
    for parameters in cases:
        allowed = accepts(Call(AUTO.messages, (Tool("now", "", parameters),), "any"))
        assert allowed('{"name": "now", "arguments": {}}')
        assert not allowed('{"name": "now", "arguments": {"a": 1}}')
        assert not allowed('{"name": "now", "arguments": 3}')


def test_names_and_texts_need_no_care(accepts: Any, accepts_value: Any) -> None:
    name = 'a"b\\c/d é%{}[]|'
    allowed = accepts(Call(AUTO.messages, (Tool(name, "", {}),), "any"))
    assert allowed(f'{{"name": {json.dumps(name)}, "arguments": {{}}}}')
    odd = {"type": "object", "properties": {name: {"const": "\n\t\u2028<|im_end|>"}}}
    assert accepts_value(odd)({name: "\n\t\u2028<|im_end|>"})


# --- Schemas --------------------------------------------------------------------------------------


class Leg(BaseModel):
    city: str
    nights: int = Field(ge=1, le=30)


class Trip(BaseModel):
    """A schema as pydantic writes it: ``$defs``, ``$ref``, ``anyOf`` with null, ``const``."""

    kind: Literal["trip"] = "trip"
    legs: list[Leg] = Field(min_length=1)
    first: Leg
    guide: Leg | None = None
    notes: dict[str, str] = {}
    pair: tuple[int, str] = (1, "a")
    parent: Trip | None = None


def test_schemas_of_pydantic_compile(accepts: Any, accepts_value: Any) -> None:
    schema = Trip.model_json_schema()
    leg = {"city": "Rom", "nights": 2}
    trip: dict[str, Any] = {
        "kind": "trip",
        "legs": [leg, leg],
        "first": leg,
        "guide": None,
        "notes": {"a": "b"},
    }
    trip |= {"pair": [1, "x"], "parent": {"legs": [leg], "first": leg}}
    Trip.model_validate(trip)
    allowed = accepts_value(schema)
    assert allowed(trip)
    assert not allowed({**trip, "legs": []})
    assert not allowed({**trip, "first": {"city": "Rom", "nights": 31}})
    assert not allowed({**trip, "first": {**leg, "extra": 1}})
    assert not allowed({**trip, "extra": 1})
    call = accepts(Call(AUTO.messages, (Tool("book", "", schema),), "any"))
    assert call(json.dumps({"name": "book", "arguments": trip}))


def test_tagged_unions_of_pydantic_compile(accepts_value: Any) -> None:
    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int

    class Dog(BaseModel):
        kind: Literal["dog"]
        tricks: list[str]

    class Pet(BaseModel):
        pet: Cat | Dog = Field(discriminator="kind")

    schema = Pet.model_json_schema()
    assert "oneOf" in json.dumps(schema)
    allowed = accepts_value(schema)
    assert allowed({"pet": {"kind": "cat", "lives": 7}})
    assert allowed({"pet": {"kind": "dog", "tricks": ["sit"]}})
    assert not allowed({"pet": {"kind": "cat", "tricks": []}})


def test_closed_objects_are_closed_at_every_depth() -> None:
    inner = {"type": "object", "properties": {"a": {}}}
    schema = closed(
        {
            "type": "object",
            "properties": {
                "list": {"items": inner},
                "either": {"anyOf": [inner, {"type": "null"}]},
            },
            "$defs": {"Inner": inner},
        }
    )
    shut = {**inner, "additionalProperties": False}
    assert schema == {
        "type": "object",
        "properties": {"list": {"items": shut}, "either": {"anyOf": [shut, {"type": "null"}]}},
        "$defs": {"Inner": shut},
        "additionalProperties": False,
    }
    assert "additionalProperties" not in inner  # what was given is left alone


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "string"},
        {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"enum": [{"properties": {"a": 1}}]},
        {"const": {"properties": {}}},
    ],
)
def test_some_schemas_are_closed_as_they_are(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_properties_may_be_called_properties(accepts_value: Any) -> None:
    allowed = accepts_value(
        {"type": "object", "properties": {"properties": {"type": "string"}}, "required": []}
    )
    assert allowed({"properties": "x"}) and not allowed({"additionalProperties": 1})


def test_values_in_a_schema_are_no_schemas(accepts_value: Any) -> None:
    allowed = accepts_value({"enum": [{"properties": {"a": 1}}, 2]})
    assert allowed({"properties": {"a": 1}}) and allowed(2)


@pytest.mark.parametrize(
    "schema",
    [
        {
            "allOf": [
                {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
                {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]},
            ]
        },
        {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
            "oneOf": [
                {"properties": {"y": {"type": "integer"}}, "required": ["y"]},
                {"properties": {"z": {"type": "integer"}}, "required": ["z"]},
            ],
        },
        {
            "allOf": [
                {"$ref": "#/$defs/Base"},
                {"type": "object", "properties": {"y": {"type": "integer"}}, "required": ["y"]},
            ],
            "$defs": {
                "Base": {
                    "type": "object",
                    "properties": {"x": {"type": "integer"}},
                    "required": ["x"],
                }
            },
        },
    ],
    ids=["allOf", "oneOf beside properties", "inheritance"],
)
def test_parts_of_one_object_do_not_shut_each_other_out(accepts_value: Any, schema: Any) -> None:
    allowed = accepts_value(schema)
    assert allowed({"x": 1, "y": 2})
    assert not allowed({"x": "1", "y": 2})


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "place", "reason"),
    [
        ({"a": {"type": "wurst"}}, "property 'a'", "wurst"),
        ({"a": {"type": "string", "pattern": "(?=x)"}}, "property 'a'", "look-around"),
        ({"ok": {}, "a": {"type": "string", "format": "zip"}}, "property 'a'", "zip"),
        (
            {"a": {"type": "object", "properties": {"b": {"not": {}}}}},
            "property 'a.b'",
            "not",
        ),
        (
            {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": 3}}}}},
            "property 'a.[].b'",
            "",
        ),
        ({"a": {"$ref": "#/$defs/Gone"}}, "property 'a'", "Gone"),
        ({"a": "string"}, "property 'a'", "expected a schema, got 'string'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_tool_property_and_reason(
    grammars: GrammarCompiler, schema: Any, place: str, reason: str
) -> None:
    bad = Tool("book", "", {"type": "object", "properties": schema})
    call = replace(AUTO, tools=(ADD, bad, GREET), tool_choice="any")
    constraint = constraint_for(call, JSON_LINES)
    assert constraint is not None
    with pytest.raises(ToolSchemaError):
        grammars.matcher(constraint.lark)
    with pytest.raises(ToolSchemaError) as caught:
        grammars.check(call)
    assert f"tool 'book', {place}" in str(caught.value)
    assert reason in str(caught.value)
    assert isinstance(caught.value, CallError) and isinstance(caught.value, ValueError)


def test_an_error_names_the_response_schema(grammars: GrammarCompiler) -> None:
    call = replace(AUTO, response_schema={"properties": {"a": {"type": "wurst"}}})
    with pytest.raises(ToolSchemaError, match="the response schema, property 'a'"):
        grammars.check(call)
    grammars.check(AUTO)


def test_parameters_must_be_an_object() -> None:
    call = Call(AUTO.messages, (Tool("book", "", {"type": "array", "items": {}}),))
    with pytest.raises(ToolSchemaError, match=r"tool 'book'.*type 'object', got type 'array'"):
        constraint_for(call, JSON_LINES)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_schemas_must_be_json(value: Any) -> None:
    bad = Tool("book", "", {"type": "object", "properties": {"a": {"default": value}}})
    with pytest.raises(ToolSchemaError, match="tool 'book': its schema is not JSON"):
        constraint_for(Call(AUTO.messages, (bad,)), JSON_LINES)
    with pytest.raises(ToolSchemaError, match="response schema"):
        constraint_for(Call(AUTO.messages, response_schema=bad.parameters), JSON_LINES)


# --- Compiling ------------------------------------------------------------------------------------


def test_each_matcher_is_fresh(grammars: GrammarCompiler, model: Model) -> None:
    first, second = (grammars.matcher('start: "ab"') for _ in range(2))
    assert first.consume_tokens(model.tokenize("ab"))
    assert first.is_stopped() and not second.is_stopped()
    assert not grammars.matcher('start: "ab"').is_stopped()


def test_only_the_latest_grammars_are_remembered(model: Model) -> None:
    compiler = GrammarCompiler(model, remembered=2)
    for text in ("a", "b", "a", "c"):
        compiler.matcher(f'start: "{text}"')
    assert list(compiler._compiled) == ['start: "a"', 'start: "c"']


def test_threads_may_compile_at_once(model: Model) -> None:
    compiler = GrammarCompiler(model)
    failed: list[str] = []

    def compile_some(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            text = rng.choice("abcd") * 3
            if not compiler.matcher(f'start: "{text}"').consume_tokens(model.tokenize(text)):
                failed.append(text)

    threads = [threading.Thread(target=compile_some, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_closed_compiler_does_not_touch_the_vocabulary(tiny_gguf: Path) -> None:
    model = Model(tiny_gguf)
    compiler = GrammarCompiler(model)
    compiler.matcher('start: "a"')
    compiler.close()
    model.close()
    for lark in ('start: "a"', 'start: "b"'):
        with pytest.raises(EngineClosedError):
            compiler.matcher(lark)


def test_tags_that_are_tokens_are_written_as_such(tmp_path: Path) -> None:
    """Qwen's vocabulary has ``<tool_call>`` as a token, and Qwen never spells it."""
    path = write_scripted_gguf(tmp_path / "a.gguf", {"": "hi", "<tool_call>": "ho"})
    constraint = constraint_for(replace(AUTO, tool_choice="any"), HERMES)
    assert constraint is not None
    with Model(path) as model:
        (tag,) = model.tokenize("<tool_call>")
        matcher = GrammarCompiler(model).matcher(constraint.lark)
        forced = matcher.compute_ff_tokens()
        assert forced == model.tokenize('<tool_call>\n{"name": "')
        assert forced[0] == tag
        assert matcher.consume_tokens(forced) and not matcher.is_error()


def test_control_tokens_are_no_text(model: Model, grammars: GrammarCompiler) -> None:
    """A string may hold the letters of ``<|im_end|>``, never the token."""
    end = model.tokenize("<|im_end|>")
    matcher = grammars.matcher(r'start: "\"" /[^"]*/ "\""')
    assert matcher.consume_tokens(model.tokenize('"a'))
    assert matcher.validate_tokens(end) == 0
    letters = model.tokenize('<|im_end|>"', special=False)
    assert matcher.consume_tokens(letters) and matcher.is_accepting()

    numbers = grammars.matcher("start: /[0-9]+/")
    assert numbers.validate_tokens(end) == 0
    assert numbers.consume_tokens(model.tokenize("12"))
    assert numbers.validate_tokens(end) == 1  # here it ends the reply

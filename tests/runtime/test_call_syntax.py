"""Calls whose arguments are no JSON object: what the grammar allows is what is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grammar_accepts import Accepts

from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import ToolSchemaError
from tierwise.runtime.grammar import GrammarCompiler, constraint_for
from tierwise.runtime.llama import Model
from tierwise.runtime.tagged_arguments import Tagged, value_of
from tierwise.runtime.tool_format import GEMMA, GLM, GLM_CLOSE, QWEN_CODER, ToolFormat

TEMPLATES = Path(__file__).parents[1] / "templates"
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "next": {"$ref": "#/$defs/Point"}},
    "required": ["x"],
}
ROOT: dict[str, Any] = {
    "type": "object",
    "properties": {},
    "$defs": {
        "Point": POINT,
        "Color": {"enum": ["red", "green"]},
        "Round": {"$ref": "#/$defs/It"},
        "Pair/~": {"oneOf": [{"type": "integer"}]},
    },
}

every_format = pytest.mark.parametrize(
    "tool_format", [QWEN_CODER, GLM, GLM_CLOSE, GEMMA], ids=lambda f: f.name
)
tagged_format = pytest.mark.parametrize(
    "tool_format", [QWEN_CODER, GLM, GLM_CLOSE], ids=lambda f: f.name
)


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[Model]:
    with Model(tiny_gguf) as opened:
        yield opened


@pytest.fixture(scope="module")
def allows(model: Model) -> Any:
    grammars = GrammarCompiler(model)

    def of(tool_format: ToolFormat, parameters: dict[str, Any], arguments: dict[str, Any]) -> bool:
        """Whether a call with these arguments may be replied; where it may, it is read as it is."""
        tool = Tool("do", "", parameters)
        call = Call((Message("user", "hi"),), (tool,), tool_choice="any")
        text = tool_format.write([ToolCall("do", arguments)])
        if not Accepts(grammars, model, constraint_for(call, tool_format))(text):
            return False
        assert tool_format.calls(text, {"do": parameters}) == (ToolCall("do", arguments),)
        return True

    return of


# Schemas of one argument, values that they allow, and values that they do not.
CASES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (
        {"type": "string"},
        [
            "",
            "5",
            "true",
            "null",
            '"quoted"',
            " a ",
            "\n\ntwo\nlines\n",
            "<b>&lt;</b>",
            "{}",
            "ü🎉",
        ],
        [],
    ),
    ({"type": "integer"}, [5, -2], ["", "five", 1.5, None]),
    ({"type": "number"}, [5, 1.5, -2e-7], ["", None]),
    ({"type": "boolean"}, [True, False], ["True", "yes", None]),
    ({"type": "null"}, [None], ["", 0]),
    (
        {"type": "array", "items": {"type": "string"}},
        [[], ["a", "5"], ["</arg_value>", "</tool_call>"]],
        ["a", [5]],
    ),
    ({"$ref": "#/$defs/Point"}, [{"x": 1}, {"x": 1, "next": {"x": 2}}], [{}, "x", {"x": "1"}]),
    ({"$ref": "#/$defs/Color"}, ["red", "green"], ["blue", "", "reds"]),
    ({"enum": ["a", "a\nb", 1, None]}, ["a", "a\nb", 1, None], ["b", 2]),
    ({"const": "only"}, ["only"], ["other"]),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["a", "5", "", None], []),
    ({"type": ["string", "integer"]}, ["a", "5.5", "[1]", 5], []),
    ({"type": ["string", "number"]}, ["NaN", "-Infinity", 5.5], []),
    ({"type": "array", "items": {"$ref": "#"}}, [[], [{"a": [{"a": [], "z": True}]}]], [[1], [{}]]),
    ({"type": "array", "items": {"$ref": "#/properties/z"}}, [[True]], [[1]]),
    ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Pair~1%7E0/oneOf/0"}]}, [None, 1], ["x"]),
    (
        {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
            "anyOf": [{"required": ["x"]}, {"required": ["y"]}],
        },
        [{"x": 1}, {"y": 2}],
        [{"x": "1"}],
    ),
    ({"type": "object", "additionalProperties": {}}, [{}, {"two words": 1}], ["x"]),
    (
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": {"type": "null"},
            "minItems": 1,
            "maxItems": 3,
        },
        [[1], [1, "a"], [1, "a", None]],
        [[], ["a", 1], [1, "a", "b"], [1, "a", None, None]],
    ),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": False},
        [[], [1]],
        [["a"], [1, 2]],
    ),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [3, None], ["three"]),
    ({"anyOf": [{"enum": ["auto"]}, {"type": "integer"}]}, ["auto", 5], ["manual", "", 1.5]),
    ({"oneOf": [{"$ref": "#/$defs/Color"}, {"$ref": "#/$defs/Point"}]}, ["red", {"x": 1}], ["no"]),
    ({"type": "string", "maxLength": 3}, ["", "abc", "a\nc"], ["abcd"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["", "a", "abcd"]),
    ({"type": "string", "pattern": r"^[a-z]/\d{2}$"}, ["a/12"], ["a/1", "xa/12", "a/12 "]),
    ({"type": "string", "pattern": "b"}, ["abc", "b"], []),
    ({"type": "string", "pattern": "^(asc|[|]{2})$"}, ["asc", "||"], ["desc", ""]),
    ({"type": "string", "pattern": r"^a|b$|^\$"}, ["a", "c"], []),
    ({"type": "string", "pattern": "^[a-z]{1,9999}$"}, ["a" * 2000], []),
    ({"type": "string", "minLength": 1, "maxLength": 100_000}, ["a" * 2000], [""]),
    ({"type": "string", "maxLength": 100_000}, ["a" * 2000, ""], []),
    ({"type": "string", "minLength": 100_000}, ["a"], []),
    ({"allOf": [{"type": "integer"}]}, [4], ["four"]),
    ({}, ["text", 5, [1], {"a": None}, True], []),
    ({"$ref": "#/$defs/Round"}, ["text", 5], []),
]


@every_format
@pytest.mark.parametrize(("schema", "right", "wrong"), CASES, ids=lambda value: str(value)[:50])
def test_arguments_are_what_their_schema_allows(
    allows: Any, tool_format: ToolFormat, schema: dict[str, Any], right: list[Any], wrong: list[Any]
) -> None:
    parameters = {**ROOT, "properties": {"a": schema, "z": {"type": "boolean"}}, "required": ["a"]}
    for value in right:
        assert allows(tool_format, parameters, {"a": value}), value
        assert allows(tool_format, parameters, {"a": value, "z": True}), value
    for value in wrong:
        assert not allows(tool_format, parameters, {"a": value}), value


@every_format
def test_arguments_come_in_order_and_optional_ones_may_be_left_out(
    allows: Any, tool_format: ToolFormat
) -> None:
    parameters = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in "abc"},
        "required": ["b"],
    }
    for given in ("b", "ab", "bc", "abc"):
        assert allows(tool_format, parameters, dict.fromkeys(given, 1)), given
    for given in ("", "a", "ac", "ba", "bd"):
        in_order = tool_format is GEMMA and given == "ba"  # whatever order they are given in
        assert allows(tool_format, parameters, dict.fromkeys(given, 1)) is in_order, given


@every_format
def test_other_arguments_where_the_schema_allows_them(allows: Any, tool_format: ToolFormat) -> None:
    closed: list[dict[str, Any]] = [{}, {"properties": {}}]
    for parameters in closed:
        assert allows(tool_format, parameters, {})
        assert not allows(tool_format, parameters, {"any": 1})
    anything: dict[str, Any] = {"type": "object"}
    assert allows(tool_format, anything, {}) and allows(tool_format, anything, {"a": 1, "b": "c"})
    numbers = {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "number"}}
    assert allows(tool_format, numbers, {"a": "x", "some": 1.5, "more": 2})
    assert not allows(tool_format, numbers, {"a": "x", "some": "text"})


WHOLE: list[dict[str, Any]] = [
    {"$ref": "#/$defs/Node"},
    {"allOf": [{"$ref": "#/$defs/Node"}]},
    {"allOf": [{"$ref": "#/$defs/Node"}, {"required": ["name"]}], "type": "object"},
    {"anyOf": [{"$ref": "#/$defs/Node"}, {"properties": {"name": {"type": "string"}}}]},
    {"properties": {"name": {"type": "string"}}, "oneOf": [{"$ref": "#/$defs/Node"}]},
]


@every_format
@pytest.mark.parametrize("schema", WHOLE, ids=lambda schema: ",".join(schema))
def test_properties_that_stand_elsewhere(
    allows: Any, tool_format: ToolFormat, schema: dict[str, Any]
) -> None:
    """As pydantic writes models that hold themselves, and others choices of objects."""
    node = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}},
        "required": ["name"],
    }
    parameters = {**schema, "$defs": {"Node": node}}
    assert allows(tool_format, parameters, {"name": "5"})
    assert allows(tool_format, parameters, {"name": "a", "next": {"name": "b"}})
    assert not allows(tool_format, parameters, {"name": "a", "next": {"name": 5}})
    assert not allows(tool_format, parameters, {"name": "a", "other": "b"})
    assert allows(tool_format, parameters, {}) is ("anyOf" in schema)


@every_format
@pytest.mark.parametrize("kind", ["anyOf", "allOf"])
def test_references_to_references_come_to_an_end(
    allows: Any, tool_format: ToolFormat, kind: str
) -> None:
    """A schema from elsewhere may go round in circles, ten ways at each turn."""
    wide = {f"D{i}": {kind: [{"$ref": f"#/$defs/D{(i + 1) % 20}"}] * 10} for i in range(20)}
    parameters = {"properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": wide}
    assert allows(tool_format, parameters, {"a": "x"})
    assert allows(tool_format, {"$ref": "#/$defs/D0", "$defs": wide}, {"a": "x"})


@every_format
def test_many_tools_may_have_the_same_large_parts(model: Model, tool_format: ToolFormat) -> None:
    parts = {
        f"P{i}": {
            "type": "object",
            "properties": {
                **{f"p{j}": {"type": "string"} for j in range(7)},
                "next": {"anyOf": [{"$ref": f"#/$defs/P{(i + 1) % 40}"}, {"type": "null"}]},
            },
        }
        for i in range(40)
    }
    tools = tuple(
        Tool(
            f"do_{number}",
            "",
            {"properties": {f"a{i}": {"$ref": f"#/$defs/P{i}"} for i in range(10)}, "$defs": parts},
        )
        for number in range(10)
    )
    constraint = constraint_for(Call((Message("user", "hi"),), tools), tool_format)
    assert constraint is not None
    matcher = GrammarCompiler(model).matcher(constraint.lark)
    deep = {"p0": "x", "next": {"next": {"p6": "y", "next": None}}}
    text = tool_format.write([ToolCall("do_9", {"a9": deep})])
    tokens = model.tokenize(text, special=False)
    assert matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@every_format
def test_names_of_any_kind(allows: Any, tool_format: ToolFormat) -> None:
    for key in (
        "a-b",
        "a.b",
        "a b",
        'a"b',
        "a:b",
        "a:b:",
        "<a>",
        "a{",
        "a,b",
        "a\\b",
        "ü",
        "$x",
        "",
    ):
        own = {"properties": {key: {"type": "integer"}, "a": {"type": "integer"}}}
        parameters = {"properties": {key: {"type": "string"}, "z": {"type": "object", **own}}}
        assert allows(tool_format, parameters, {key: "v", "z": {key: 1}}), key
        assert allows(tool_format, parameters, {key: "v", "z": {"a": 1}}), key


@every_format
def test_a_known_argument_is_no_other_one(allows: Any, tool_format: ToolFormat) -> None:
    parameters = {
        "properties": {"a": {"type": "boolean"}},
        "additionalProperties": {"type": "integer"},
    }
    assert allows(tool_format, parameters, {"a": True, "ab": 1})
    assert not allows(tool_format, parameters, {"a": 1})
    assert allows(tool_format, {"additionalProperties": {}}, {"a": "x", "b": [1]})


@every_format
@pytest.mark.parametrize("held", [{"minLength": 40}, {"pattern": r"^[\s\S]{40,60}$"}], ids=str)
def test_a_long_text_ends_where_it_is_read(
    model: Model, tool_format: ToolFormat, held: dict[str, Any]
) -> None:
    tool = Tool("do", "", {"properties": {"a": {"type": "string", **held}}})
    call = Call((Message("user", "hi"),), (tool,), tool_choice="any")
    constraint = constraint_for(call, tool_format)
    assert constraint is not None
    syntax = tool_format.syntax
    end = syntax.close if isinstance(syntax, Tagged) else '<|"|>'
    for text, right in (("b" * 40 + end[:-2], True), ("b" + end + "b" * 45, False)):
        matcher = GrammarCompiler(model).matcher(constraint.lark)
        tokens = model.tokenize(tool_format.write([ToolCall("do", {"a": text})]), special=False)
        assert (matcher.try_consume_tokens(tokens) == len(tokens)) is right, text


@tagged_format
def test_a_schema_that_cannot_be_is_named(tool_format: ToolFormat) -> None:
    tool = Tool("do", "", {"properties": {"a": {"enum": [{1}]}}})
    with pytest.raises(ToolSchemaError, match="tool 'do', property 'a': its schema is not JSON"):
        constraint_for(Call((Message("user", "hi"),), (tool,)), tool_format)


@tagged_format
def test_what_is_no_whole_call_is_none(tool_format: ToolFormat) -> None:
    tools = {"do": {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}}
    good = tool_format.write([ToolCall("do", {"a": 1, "b": "x"})])
    assert tool_format.calls(good, tools)
    for bad in (
        good.replace("\n1\n", "\none\n").replace(">1<", ">one<"),
        good.replace("do", "undo"),
        tool_format.write([ToolCall("do", {"a": 1})]).replace("a", "ä", 1),
        good[: good.index("x") + 1],
        good + " And so on.",
    ):
        assert bad != good and tool_format.calls(bad, tools) == (), bad
    assert isinstance(tool_format.syntax, Tagged)
    twice = tool_format.write([ToolCall("do", {"b": "x"})])
    one = twice[twice.index(tool_format.syntax.open) : twice.rindex(tool_format.syntax.end)]
    assert tool_format.calls(twice.replace(one, one * 2), tools) == ()


def test_what_may_be_text_and_something_else_is_read_as_that() -> None:
    either = {"type": ["string", "integer", "null"]}
    values = [value_of(text, either, {}) for text in ("5", "null", "5.5", "true", '"5"', "[")]
    assert values == [5, None, "5.5", "true", '"5"', "["]
    assert value_of("[" * 100_000, {}, {}) == "[" * 100_000  # nested too deep to be read
    with pytest.raises(ValueError, match="no JSON: 'five'"):
        value_of("five", {"type": "integer"}, {})
    endless = {"$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert value_of("x", {"$ref": "#/$defs/a"}, endless) == "x"
    assert value_of("x", {"$ref": "elsewhere.json"}, endless) == "x"
    # Keywords beside a choice hold for all of its parts.
    assert value_of("5", {"type": "string", "anyOf": [{"minLength": 1}, {"enum": [""]}]}, {}) == "5"


@pytest.mark.parametrize("name", ["qwen3-coder", "glm4.6"])
def test_history_is_written_as_the_reply_was(name: str) -> None:
    """So that no turn is read twice: the template alone would write True for true."""
    template = ChatTemplate((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    given = {"a": True, "b": None, "c": [1, {"d": False}], "e": "True", "f": 1.0}
    calls = (ToolCall("do", given, "1"), ToolCall("do", {}, "2"))
    tool = Tool("do", "Does it.", {"type": "object", "properties": {}})
    talk = (Message("user", "Go."), Message("assistant", tool_calls=calls))
    results = tuple(Message("tool", "done", tool_call_id=i, tool_name="do") for i in "12")
    prompt = template.render(Call((*talk, *results), (tool,)))
    assert template.tool_format.write(calls) in prompt


def test_tags_without_line_breaks() -> None:
    source = (TEMPLATES / "glm4.6.jinja").read_text(encoding="utf-8")
    begin, end = (
        source.index("{{ '\\n<tool_call>' + tc.name }}"),
        source.index("</tool_call>{% endfor %}"),
    )
    argument = "<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>"
    loop = f"{{% for k, v in tc.arguments.items() %}}{argument}{{% endfor %}}"
    changed = source[:begin] + "{{- '<tool_call>' + tc.name }}" + loop + source[end:]
    template = ChatTemplate(changed)
    assert template.tool_format is GLM_CLOSE
    calls = (ToolCall("do", {"a": 5, "b": "x\n"}, "1"), ToolCall("do", {}, "2"))
    text = (
        "<tool_call>do<arg_key>a</arg_key><arg_value>5</arg_value><arg_key>b</arg_key>"
        "<arg_value>x\n</arg_value></tool_call><tool_call>do</tool_call>"
    )
    assert GLM_CLOSE.write(calls) == text
    talk = (Message("user", "Go."), Message("assistant", tool_calls=calls))
    assert text in template.render(Call(talk, (Tool("do", "Does it.", {"type": "object"}),)))


# --- Gemma's own notation -------------------------------------------------------------------------

DEEP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "who": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "Age": {"type": "integer"}},
            "required": ["name"],
        },
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        "none": {"type": "array", "maxItems": 0},
        "two": {"type": "array", "items": {"type": "number"}, "minItems": 2},
        "other": {"type": "object", "additionalProperties": {"type": "boolean"}},
    },
}


def test_values_within_values(allows: Any) -> None:
    for right in (
        {},
        {"who": {"name": "Ann"}},
        {"who": {"Age": 5, "name": "{a:<b>,[c]}"}, "tags": ["a", "b", "a"]},
        {"none": [], "two": [1, 2.5, -3], "other": {"x": True, "y": False}},
        {"other": {}},
    ):
        assert allows(GEMMA, DEEP, right), right
    for wrong in (
        {"who": {}},
        {"who": {"name": "Ann", "Age": "5"}},
        {"who": {"name": "Ann", "more": 1}},
        {"tags": []},
        {"tags": ["a"] * 4},
        {"tags": ["c"]},
        {"none": [1]},
        {"two": [1]},
        {"other": {"x": 1}},
    ):
        assert not allows(GEMMA, DEEP, wrong), wrong


def test_the_notation_is_that_of_the_template() -> None:
    given = {"b": [1, "x", {"z": True, "A": 2.5}], "a": "<b> ü\n", "C": {}, "d": [None]}
    call = ToolCall("do", given)
    assert GEMMA.write([call, ToolCall("do", {})]) == (
        '<|tool_call>call:do{a:<|"|><b> ü\n<|"|>,b:[1,<|"|>x<|"|>,{A:2.5,z:true}],C:{},'
        "d:[null]}<tool_call|><|tool_call>call:do{}<tool_call|>"
    )
    template = ChatTemplate((TEMPLATES / "gemma4.jinja").read_text(encoding="utf-8"))
    talk = (
        Message("user", "Go."),
        Message("assistant", "I will.", (replace(call, id="1"), ToolCall("do", {}, "2"))),
        Message("tool", "done", tool_call_id="1", tool_name="do"),
        Message("tool", "again", tool_call_id="2", tool_name="do"),
    )
    prompt = template.render(Call(talk, (Tool("do", "Does.", {"type": "object"}),)))
    results = (
        f'<|tool_response>response:do{{value:<|"|>{text}<|"|>}}<tool_response|>'
        for text in ("done", "again")
    )
    calls = GEMMA.write([call, ToolCall("do", {})])
    assert f"I will.<turn|>\n<|turn>model\n{calls}{''.join(results)}" in prompt


def test_templates_that_find_the_results_themselves() -> None:
    """Later versions look for them among the messages that follow."""
    source = (TEMPLATES / "gemma4.jinja").read_text(encoding="utf-8")
    old = "{{- '<|turn>' + role + '\\n' }}"
    new = "{%- if role == 'tool' -%}{{ '<|tool_response>' + message['content'] }}{%- endif -%}"
    assert old in source
    template = ChatTemplate(source.replace(old, new + old))
    assert template.tool_format is GEMMA
    call = Message("assistant", tool_calls=(ToolCall("do", {}, "1"),))
    talk = (Message("user", "Go."), call, Message("tool", "done", (), "1", "do"))
    prompt = template.render(Call(talk, (Tool("do", "", {}),)))
    assert "<|tool_response>done<|turn>tool" in prompt and "response:do" not in prompt


def test_what_is_no_whole_call_of_gemma_is_none() -> None:
    tools: dict[str, Any] = {"do": {}}
    assert GEMMA.calls("<|tool_call>call:do{a:1}<tool_call|>", tools)
    for bad in (
        *("do", "do{", "do{a}", "do{a:}", "do{a:1", "do{a:1,}", "do{a:1 b:2}", "do{a:1,a:2}"),
        *('do{a:<|"|>x}', "do{a:x}", "do{a:[1}", "do{a:[1,]}", "undo{}", "do{a:" + "[" * 5000),
    ):
        assert GEMMA.calls(f"<|tool_call>call:{bad}<tool_call|>", tools) == (), bad

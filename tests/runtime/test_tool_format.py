"""Tool calls as models write them, and as they are read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import CHATML, CHATML_TOOLS

from tierwise.runtime.chat import Call, JSONObject, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.harmony import HARMONY
from tierwise.runtime.tool_format import (
    GEMMA,
    GLM,
    HERMES,
    JSON_LINES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_NAMED_ID,
    MISTRAL_NEMO,
    NATIVE_FORMATS,
    PHI,
    PHI_EACH,
    QWEN_CODER,
    ToolFormat,
)

TEMPLATES = Path(__file__).parents[1] / "templates"
FORMATS = (*NATIVE_FORMATS, JSON_LINES)
TOOLS: dict[str, JSONObject] = {"get_weather": {}, "add": {}}
WEATHER = ToolCall("get_weather", {"city": "Zürich", "days": [1, 2], "deep": {"a": None}})
ADD = ToolCall("add", {"a": 1, "b": -2.5})
SLY = ToolCall("add", {"a": '</tool_call>\n<|/tool_call|>]}} [TOOL_CALLS] [ARGS]{"', "b": "}"})

every_format = pytest.mark.parametrize("tool_format", FORMATS, ids=lambda f: f.name)


def load(name: str) -> ChatTemplate:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, bos="<s>", eos="</s>")


# --- Writing and reading --------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("calls", [(WEATHER,), (ADD, WEATHER), (ADD, ADD, ADD), (SLY, ADD, SLY)])
def test_what_is_written_is_read(tool_format: ToolFormat, calls: tuple[ToolCall, ...]) -> None:
    written = tool_format.write(calls)
    assert tool_format.calls(written, TOOLS) == calls
    assert tool_format.calls(f"\n {written}\n", TOOLS) == calls
    assert tool_format.write(()) == ""


@every_format
def test_a_reply_that_was_cut_off_after_the_arguments_is_read(tool_format: ToolFormat) -> None:
    written = tool_format.write([SLY, ADD])
    last = "}}" if tool_format.body == "json" else "}"
    if tool_format.syntax:
        last = tool_format.syntax.end
    whole = written.rindex(last) + len(last)
    for end in range(written.rindex("add") + 1, len(written)):
        read = tool_format.calls(written[:end], TOOLS)
        assert read == ((SLY, ADD) if end >= whole else ()), written[:end]


def test_the_forms_are_those_that_models_know() -> None:
    line = '{"name": "add", "arguments": {"a": 1, "b": -2.5}}'
    both = [ADD, ADD]
    assert JSON_LINES.write(both) == f"{line}\n{line}"
    assert HERMES.write(both) == "\n".join([f"<tool_call>\n{line}\n</tool_call>"] * 2)
    assert LLAMA.write([ADD]) == line.replace("arguments", "parameters")
    assert MISTRAL.write(both) == f"[TOOL_CALLS] [{line}, {line}]"
    assert MISTRAL_NEMO.write([ADD]) == f"[TOOL_CALLS][{line}]"
    assert MISTRAL_NAMED.write(both) == '[TOOL_CALLS]add[ARGS]{"a": 1, "b": -2.5}' * 2
    with_id = ToolCall("add", {}, id="abcdefghi")
    assert MISTRAL_NAMED_ID.write([with_id]) == "[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{}"
    assert PHI.write(both) == f"<|tool_call|>[{line}, {line}]<|/tool_call|>"
    assert PHI_EACH.write(both) == f"<|tool_call|>{line}<|/tool_call|>" * 2


def test_tags_and_triggers() -> None:
    assert HERMES.tags == ("<tool_call>", "</tool_call>") and HERMES.trigger == "<tool_call>"
    assert JSON_LINES.tags == () and JSON_LINES.trigger == ""
    assert LLAMA.tags == ("<|python_tag|>",) and LLAMA.trigger == ""
    assert MISTRAL.tags == MISTRAL_NEMO.tags == ("[TOOL_CALLS]",)
    assert MISTRAL_NEMO.trigger == MISTRAL_NAMED.trigger == "[TOOL_CALLS]"
    assert MISTRAL_NAMED_ID.tags == ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    assert PHI.tags == ("<|tool_call|>", "<|/tool_call|>") and PHI.trigger == "<|tool_call|>"


@every_format
@pytest.mark.parametrize(
    "body",
    [
        "",
        "Hello!",
        "{",
        '{"name": "add", "arguments": {"a": 1}',
        '{"name": "add"}',
        '{"name": "add", "arguments": {}, "id": 1}',
        '{"name": "add", "arguments": {}, "more": 1}',
        '{"name": "multiply", "arguments": {}}',
        '{"name": "add", "arguments": []}',
        '{"name": "add", "arguments": "a"}',
        '{"name": ["add"], "arguments": {}}',
        '{"name": {"a": 1}, "arguments": {}}',
        '{"name": null, "arguments": {}}',
        '["name", "arguments"]',
        "[" * 100_000,
        "1" * 10_000,
        "multiply[ARGS]{}",
        "add[ARGS][]",
        "add[ARGS]",
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_call_is_none(tool_format: ToolFormat, body: str) -> None:
    body = body.replace("arguments", tool_format.arguments_key)
    text = tool_format.first + tool_format.opening + body + tool_format.closing + tool_format.last
    assert tool_format.calls(text, TOOLS) == ()
    assert tool_format.calls(tool_format.write([ADD]) + " Bye.", TOOLS) == ()
    assert tool_format.calls(tool_format.write([ADD]), {}) == ()


def test_white_space_and_ids_are_free() -> None:
    told = '<tool_call>{"name": "add", "id": "7", "arguments": {}}</tool_call>'
    assert HERMES.calls(told, TOOLS) == (ToolCall("add", {}, id="7"),)
    spread = '[TOOL_CALLS]\n[ {"name":"add","arguments":{},"id":"abcdefghi"} ,\n{"name":"add",'
    assert [call.id for call in MISTRAL.calls(spread + '"arguments":{}}\n]', TOOLS)] == [
        "abcdefghi",
        "",
    ]
    assert LLAMA.calls(f"<|python_tag|>{LLAMA.write([ADD])}", TOOLS) == (ADD,)


# --- The real templates ---------------------------------------------------------------------------

FOUND = {
    "qwen2.5": HERMES,
    "qwen3": HERMES,
    "qwen3-coder": QWEN_CODER,
    "glm4.6": GLM,
    "gpt-oss": HARMONY,
    "hermes2-pro": HERMES,
    "hermes3": HERMES,
    "llama3.1": LLAMA,
    "llama3.2": LLAMA,
    "mistral-nemo": MISTRAL_NEMO,
    "mistral-small3.2": MISTRAL_NAMED_ID,
    "devstral": MISTRAL_NAMED,
    "phi4-mini": PHI,
    "phi3.5": JSON_LINES,
    "gemma2": JSON_LINES,
    "gemma3": JSON_LINES,
    "gemma4": GEMMA,
    "smollm2": JSON_LINES,
    "smollm3": JSON_LINES,
    "deepseek-r1-distill": JSON_LINES,
}

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where."}},
    "required": ["city"],
}
GET_WEATHER = Tool("get_weather", "Tells the weather.", CITY)
KOELN = ToolCall("get_weather", {"city": "Köln </tool_call>"}, id="a1b2c3d4e")
TALK = (
    Message("system", "Be brief."),
    Message("user", "Weather in Köln?"),
    Message("assistant", tool_calls=(KOELN,)),
    Message("tool", "12 degrees", tool_call_id="a1b2c3d4e", tool_name="get_weather"),
    Message("assistant", "It is 12 degrees."),
    Message("user", "Thank you."),
)


def test_every_template_is_tried() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_the_format_is_what_the_template_writes(name: str) -> None:
    template = load(name)
    tool_format = template.tool_format
    assert tool_format is FOUND[name]
    prompt = template.render(Call(TALK, tools=(GET_WEATHER,)))
    # The system prompt, the tool, the call, its result and the answer, in this order.
    said = ["12 degrees", "It is 12 degrees.", "Thank you."]
    spots = [prompt.index(text) for text in ("Weather in Köln?", *said)]
    assert spots == sorted(spots)
    assert "Be brief." in prompt and "get_weather" in prompt and "Tells the weather" in prompt
    call = tool_format.write([KOELN])
    told = prompt.replace(', "id": "a1b2c3d4e"', "")
    at = told.index(call)
    assert told.index("Weather in Köln?") < at < told.index("12 degrees")
    if tool_format is not HARMONY:  # which its own parser reads
        assert tool_format.calls(call, {"get_weather": {}})[0].arguments == KOELN.arguments


@pytest.mark.parametrize("name", FOUND)
def test_ids_and_several_calls_of_a_turn_need_no_care(name: str) -> None:
    """LangChain's ids are long; Mistral wants nine characters, Llama 3 one call a turn."""
    twice = tuple(ToolCall("get_weather", {"city": city}, id=f"call_{city}") for city in "AB")
    results = tuple(
        Message("tool", f"{city} is wet", tool_call_id=f"call_{city}", tool_name="get_weather")
        for city in "AB"
    )
    talk = (*TALK[:2], Message("assistant", tool_calls=twice), *results)
    template = load(name)
    prompt = template.render(Call(talk, tools=(GET_WEATHER,)))
    both = [template.tool_format.write([replace(call, id="")]) for call in twice]
    if not template.tool_format.syntax:
        both = ['"city": "A"', '"city": "B"']
    told = [prompt.index(text) for text in (*both, "A is wet", "B is wet")]
    if template.tool_format.many:
        assert told == sorted(told)
    else:
        assert sorted(told) == [told[0], told[2], told[1], told[3]]
    assert prompt.count("is wet") == 2


@pytest.mark.parametrize("name", FOUND)
def test_without_tools_none_are_told(name: str) -> None:
    prompt = load(name).render(Call(TALK[:2], tools=(GET_WEATHER,), tool_choice="none"))
    assert prompt == load(name).render(Call(TALK[:2])) and "get_weather" not in prompt


def test_tool_formats_are_found_by_what_is_written_not_by_words() -> None:
    assert ChatTemplate(CHATML_TOOLS).tool_format is HERMES
    assert ChatTemplate(CHATML).tool_format is JSON_LINES
    for odd in (
        # Knows other tags, or tells of tools and writes no calls, or the other way round.
        "{% if tools %}{{ tools }}{% endif %}[TOOL_CALLS] <tool_call>",
        CHATML + "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}",
        CHATML_TOOLS.replace("{{ tool | tojson }}", ""),
        # The calls of Qwen3-Coder: the same tag, another language.
        CHATML_TOOLS.replace('{\\"name\\": ', "<function=").replace('{"name": ', "<function="),
    ):
        assert ChatTemplate(odd).tool_format is JSON_LINES, odd


def test_a_second_template_may_be_there_for_tools() -> None:
    """As in the GGUF files of Hermes 2 and 3."""
    template = ChatTemplate(CHATML, tool_source=CHATML_TOOLS)
    assert template.tool_format is HERMES
    plain = ChatTemplate(CHATML).render(Call(TALK[:2]))
    assert template.render(Call(TALK[:2])) == plain
    with_tools = Call(TALK, tools=(GET_WEATHER,))
    assert template.render(with_tools) == ChatTemplate(CHATML_TOOLS).render(with_tools)

"""Replies taken apart: the same result however the text is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.reply_parser import Parsed, Piece, ReplyParser
from tierwise.runtime.tool_format import (
    HERMES,
    JSON_LINES,
    LLAMA,
    MISTRAL_NAMED,
    NATIVE_FORMATS,
    Thinking,
    ToolFormat,
)

FORMATS = (*NATIVE_FORMATS, JSON_LINES)
TOOLS = (Tool("add", "", {}), Tool("get_weather", "", {}))
CALL = Call((Message("user", "hi"),), tools=TOOLS)
ADD = ToolCall("add", {"a": 1, "b": "</tool_call> </think> }}"})
WEATHER = ToolCall("get_weather", {"city": "Zürich"})

every_format = pytest.mark.parametrize("tool_format", FORMATS, ids=lambda f: f.name)


def parse(
    text: str,
    tool_format: ToolFormat = HERMES,
    thinking: Thinking = "no",
    *,
    cuts: tuple[int, ...] = (),
    **fields: Any,
) -> tuple[list[Piece], Parsed]:
    """All pieces, and the result."""
    parser = ReplyParser(
        Call(**{"messages": CALL.messages, "tools": TOOLS} | fields), tool_format, thinking
    )
    pieces: list[Piece] = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        pieces += parser.push(text[start:end])
    parsed = parser.finish()
    return [*pieces, *parsed.pieces], parsed


def whole(text: str, *args: Any, **fields: Any) -> tuple[str, str, tuple[ToolCall, ...]]:
    _, parsed = parse(text, *args, **fields)
    return parsed.text, parsed.reasoning, parsed.tool_calls


def shown(text: str, *args: Any, **fields: Any) -> str:
    """The text that is given out before the end."""
    tools = fields.pop("tools", TOOLS)
    parser = ReplyParser(Call(CALL.messages, tools=tools), *args)
    return "".join(piece.text for letter in text for piece in parser.push(letter))


# --- However it is cut ----------------------------------------------------------------------------


def snippets(tool_format: ToolFormat) -> list[str]:
    calls = tool_format.write([ADD]), tool_format.write([ADD, WEATHER])
    unknown = tool_format.write([ToolCall("nothing", {})])
    begin, end = tool_format.thoughts.open, tool_format.thoughts.close
    return [
        *("", " ", "\n\n", "Hello! ", "ä🎉", "{", "}", "[", '{"x": 1}', '{"name": "ad', "<", "<t"),
        *(begin, end, f"{begin}\nWell.\n{end}\n\n", end[:5], tool_format.trigger),
        *(tool_format.trigger[:4], tool_format.lead, unknown, calls[1][:-3], "\n"),
        *(*calls, f"{end}{calls[0]}", f"{end}\n{calls[1]}"),
    ]


@every_format
@pytest.mark.parametrize("thinking", ["no", "may", "open"])
@pytest.mark.parametrize("tools", [(), TOOLS], ids=["no tools", "tools"])
def test_streams_and_whole_replies_agree(
    tool_format: ToolFormat, thinking: Thinking, tools: tuple[Tool, ...]
) -> None:
    rng = random.Random(f"{tool_format.name}{thinking}{len(tools)}")
    parts = snippets(tool_format)
    called = 0
    for _ in range(200):
        text = "".join(rng.choices(parts, k=rng.randint(0, 5)))
        expected = whole(text, tool_format, thinking, tools=tools)
        for _ in range(4):
            cuts = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, len(text)))))
            pieces, parsed = parse(text, tool_format, thinking, cuts=cuts, tools=tools)
            assert (parsed.text, parsed.reasoning, parsed.tool_calls) == expected, text
            for reasoning, merged in ((False, parsed.text), (True, parsed.reasoning)):
                told = "".join(piece.text for piece in pieces if piece.reasoning is reasoning)
                assert told == merged, text
            assert all(piece.text for piece in pieces)
        # Nothing is lost but white space, tags and calls; nothing is there twice.
        out, thought = ("".join(part.split()) for part in expected[:2])
        if not expected[2]:
            form = tool_format.thoughts
            ends = ("", form.close)
            told = {f"{begin}{thought}{end}{out}" for begin in ("", form.open) for end in ends}
            assert "".join(text.split()) in told, text
        called += bool(expected[2])
    assert called > 0 if tools else called == 0


# --- Calls ----------------------------------------------------------------------------------------


@every_format
def test_calls_are_held_back_and_read(tool_format: ToolFormat) -> None:
    written = tool_format.write([ADD, WEATHER])
    assert whole(written, tool_format) == ("", "", (ADD, WEATHER))
    assert shown(written, tool_format) == ""
    assert whole(f" \n{written}\n", tool_format) == ("", "", (ADD, WEATHER))


@pytest.mark.parametrize("tool_format", [f for f in FORMATS if f.trigger], ids=lambda f: f.name)
def test_words_may_come_before_tagged_calls(tool_format: ToolFormat) -> None:
    text = "  Let me see. \n" + tool_format.write([ADD])
    assert whole(text, tool_format) == ("  Let me see.", "", (ADD,))
    assert shown(text, tool_format) == "  Let me see."


@pytest.mark.parametrize("tool_format", [JSON_LINES, LLAMA], ids=lambda f: f.name)
def test_bare_calls_stand_at_the_beginning_only(tool_format: ToolFormat) -> None:
    text = "Let me see. " + tool_format.write([ADD])
    assert whole(text, tool_format) == (text, "", ())
    assert shown(text, tool_format) == text


def test_llama_may_begin_with_its_tag() -> None:
    text = "<|python_tag|>" + LLAMA.write([ADD])
    for cuts in ((), tuple(range(1, len(text)))):
        assert whole(text, LLAMA, cuts=cuts) == ("", "", (ADD,))
    assert whole("<|python_tag|>print(1)", LLAMA) == ("<|python_tag|>print(1)", "", ())


@every_format
@pytest.mark.parametrize("end", [" and so on", "", "\n"])
def test_what_is_no_call_becomes_text(tool_format: ToolFormat, end: str) -> None:
    unknown = "Well: " * bool(tool_format.trigger) + tool_format.write([ToolCall("no", {})]) + end
    assert whole(unknown, tool_format) == (unknown, "", ())
    known = tool_format.write([ADD]) + " and so on"
    assert whole(known, tool_format) == (known, "", ())


def test_json_that_is_no_call_is_shown_at_once() -> None:
    """A reply that follows a response schema, where tools were offered too."""
    for text in ('{"x": 1, "y": [2]}', '{"name": "Ann", "age": 3}', '{"name": "add", "b": 1}'):
        assert shown(text, JSON_LINES) == text
    assert shown("[1]", JSON_LINES) == "[1]" == shown("[1]", HERMES)


def test_without_tools_nothing_is_held_back() -> None:
    for text in (JSON_LINES.write([ADD]), HERMES.write([ADD]), "a <tool_", "a \n"):
        assert shown(text, HERMES, tools=()) == text
        assert whole(text, JSON_LINES, tools=()) == (text, "", ())
        assert whole(text, HERMES, tool_choice="none") == (text, "", ())


def test_only_the_named_tool_is_called() -> None:
    text = HERMES.write([WEATHER])
    assert whole(text, tool_choice="get_weather")[2] == (WEATHER,)
    assert whole(text, tool_choice="add") == (text, "", ())


def test_ids_of_the_model_are_kept() -> None:
    text = '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1}'
    assert whole(text, MISTRAL_NAMED)[2] == (ToolCall("add", {"a": 1}, id="abcdefghi"),)


# --- Reasoning ------------------------------------------------------------------------------------


def test_reasoning_is_apart() -> None:
    text = "<think>\nLet me <think> about {it}.\n\nYes.\n</think>\n\nHello! \n"
    expected = ("Hello! \n", "Let me <think> about {it}.\n\nYes.", ())
    assert whole(text, HERMES, "may") == expected
    assert whole("\n" + text, HERMES, "may") == expected
    assert whole(text.removeprefix("<think>"), HERMES, "open") == expected
    assert whole(text, HERMES, "no") == (text, "", ())


def test_an_empty_think_block_is_nothing() -> None:
    assert whole("<think>\n\n</think>\n\nHi", HERMES, "may") == ("Hi", "", ())
    assert whole("\n</think>Hi", HERMES, "open") == ("Hi", "", ())


def test_a_think_block_is_optional_and_comes_first() -> None:
    assert whole(" Hi", HERMES, "may") == (" Hi", "", ())
    assert whole("Hi <think>a</think>", HERMES, "may") == ("Hi <think>a</think>", "", ())
    assert whole("<thin", HERMES, "may") == ("<thin", "", ())


def test_a_thought_that_was_cut_off_is_reasoning() -> None:
    assert whole("<think>\nWell, </thi", HERMES, "may") == ("", "Well, </thi", ())
    assert whole("Well,\n ", HERMES, "open") == ("", "Well,", ())


@every_format
def test_calls_may_follow_a_thought_that_speaks_of_calls(tool_format: ToolFormat) -> None:
    thought = f"I write {tool_format.write([WEATHER])} here."
    text = f"{thought}\n{tool_format.thoughts.close}\n\n{tool_format.write([ADD])}"
    # The arguments of `ADD` hold a closing tag too, which ends nothing there.
    assert whole(text, tool_format, "open") == ("", thought, (ADD,))


def test_reasoning_is_shown_as_it_comes() -> None:
    parser = ReplyParser(CALL, HERMES, "may")
    assert parser.push("<think>\nOne ") == [Piece("One", reasoning=True)]
    assert parser.push("two.\n</th") == [Piece(" two.", reasoning=True)]
    assert parser.push("ink>\n") == [] and parser.push("\nHi") == [Piece("Hi")]

"""Whole calls on a loaded tier: template, grammar, engine and parser together."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_models import CHATML, CHATML_TOOLS, write_scripted_gguf, write_tiny_gguf

from tierwise.runtime.chat import Call, Message, Sampling, Tool, ToolCall
from tierwise.runtime.errors import (
    CallTimeoutError,
    ContextOverflowError,
    DamagedModelError,
    EngineClosedError,
    EngineError,
    ModelNotFoundError,
    ToolSchemaError,
    UnsupportedModelError,
)
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.reply_parser import Piece
from tierwise.runtime.tool_format import HERMES, JSON_LINES

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("get_weather", "Tells the weather.", CITY)
ONLY_OSLO = replace(
    WEATHER,
    parameters={
        "type": "object",
        "properties": {"city": {"const": "Oslo"}},
        "required": ["city"],
    },
)
NOTE = Tool("make_note", "Keeps a note.", {"type": "object", "properties": {}})
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
}
OSLO = ToolCall("get_weather", {"city": "Oslo"})
CALLED = {"json": OSLO.to_json(), "hermes": HERMES.write([OSLO])}
TEMPLATES = {"json": CHATML, "hermes": CHATML_TOOLS}
BOTH = pytest.mark.parametrize("form", ["json", "hermes"])

Open = Callable[..., LoadedTier]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Open]:
    """Opens a tier that answers with a known text."""
    with ExitStack() as opened:

        def open_tier(replies: Any, form: str = "json", **fields: Any) -> LoadedTier:
            path = write_scripted_gguf(
                tmp_path / "scripted.gguf", replies, chat_template=TEMPLATES[form], **fields
            )
            return opened.enter_context(LoadedTier(path, n_ctx=2048, threads=1))

        yield open_tier


@pytest.fixture
def tiny(tiny_gguf: Path) -> Iterator[LoadedTier]:
    with LoadedTier(tiny_gguf, n_ctx=512, threads=1) as tier:
        yield tier


def text_of(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def user(text: str = "hi", **fields: Any) -> Call:
    return Call((Message("user", text),), **fields)


# --- Text -----------------------------------------------------------------------------------------


def test_a_plain_call_is_answered(scripted: Open) -> None:
    tier = scripted("Hello, wörld! 🎉")
    reply = tier.reply(user())
    assert (reply.text, reply.tool_calls, reply.finish_reason) == ("Hello, wörld! 🎉", (), "stop")
    assert reply.usage.prompt_tokens == len(tier.prompt(user()))
    assert tier.load_s > 0


def test_text_is_streamed_and_kept(scripted: Open) -> None:
    with scripted("Hello, wörld!").stream(user()) as stream:
        assert text_of(stream) == "Hello, wörld!"
        assert stream.reply() is stream.reply()
        assert stream.reply().text == "Hello, wörld!"


def test_a_reply_is_whole_however_much_of_it_was_read_before(scripted: Open) -> None:
    tier = scripted({"": "one two three four five six seven"})
    with tier.stream(user()) as stream:
        pieces = iter(stream)
        first = next(pieces)
        reply = stream.reply()
    assert reply.text.startswith(first.text) and first.text
    assert reply.text == tier.reply(user()).text == "one two three four five six seven"


def test_options_of_a_call_reach_the_engine(scripted: Open, tiny: LoadedTier) -> None:
    tier = scripted("one two three")
    assert tier.reply(user(stop=(" three",))).text == "one two"
    limited = tier.reply(user(max_tokens=7))
    assert (limited.text, limited.finish_reason) == ("one two", "length")
    with pytest.raises(CallTimeoutError):
        tier.reply(user(timeout_s=0.0))
    assert tier.reply(user(timeout_s=600.0)).text == "one two three"

    def drawn(seed: int) -> str:
        return tiny.reply(user(sampling=Sampling(1.5, seed=seed), max_tokens=20)).text

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_prompt_may_be_brought_along(scripted: Open) -> None:
    tier = scripted({"": "nothing", "KEY": "something"})
    prompt = tier.prompt(user("KEY"))
    assert tier.stream(user(), prompt).reply().text == "something"


def test_a_conversation_uses_the_prefix_cache(scripted: Open) -> None:
    tier = scripted({"": "First.", "KEY": "Second."})
    call = user()
    first = tier.reply(call)
    call = call.with_messages(Message("assistant", first.text), Message("user", "KEY"))
    second = tier.reply(call)
    assert second.text == "Second."
    assert second.usage.cached_tokens == first.usage.prompt_tokens + len("First.")


async def test_a_reply_can_be_awaited(scripted: Open) -> None:
    tier = scripted({"": "Hello, wörld!", "KEY": CALLED["json"]})
    stream = tier.stream(user())
    assert text_of([piece async for piece in stream]) == "Hello, wörld!"
    assert (await stream.areply()).text == "Hello, wörld!" == stream.reply().text
    replies = await asyncio.gather(
        *(tier.stream(user(f"{i} KEY", tools=(WEATHER,))).areply() for i in range(12))
    )
    assert [reply.tool_calls for reply in replies] == [(OSLO,)] * 12


async def test_whole_replies_wake_their_reader_once(scripted: Open) -> None:
    """Nobody who waits for the end is woken for every token."""
    tier = scripted("one two three four five six seven")
    wakes = 0
    loop = asyncio.get_running_loop()
    real = loop.call_soon_threadsafe

    def counted(*args: Any, **fields: Any) -> Any:
        nonlocal wakes
        wakes += 1
        return real(*args, **fields)

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    assert (await tier.stream(user()).areply()).text == "one two three four five six seven"
    assert wakes <= 1


# --- Tools ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("choice", ["auto", "any", "get_weather"])
def test_a_call_of_a_tool_is_parsed(scripted: Open, form: str, choice: str) -> None:
    tier = scripted(CALLED[form], form)
    assert tier.template.tool_format is {"json": JSON_LINES, "hermes": HERMES}[form]
    with tier.stream(user(tools=(WEATHER, NOTE), tool_choice=choice)) as stream:
        assert list(stream) == []  # no half calls are shown
        reply = stream.reply()
    assert (reply.text, reply.tool_calls, reply.finish_reason) == ("", (OSLO,), "tool_calls")
    assert reply.usage.forced_tokens > 20


@BOTH
def test_text_stays_text_where_tools_are_optional(scripted: Open, form: str) -> None:
    with scripted("It is <cold> {today}.", form).stream(user(tools=(WEATHER,))) as stream:
        assert text_of(stream) == "It is <cold> {today}."
        assert stream.reply().tool_calls == () and stream.reply().finish_reason == "stop"


@BOTH
def test_a_model_that_will_not_call_is_made_to(scripted: Open, form: str) -> None:
    reply = scripted("I'd rather not.", form).reply(user(tools=(WEATHER,), tool_choice="any"))
    (call,) = reply.tool_calls
    assert call.name == "get_weather" and set(call.arguments) == {"city"}


@BOTH
def test_a_call_that_starts_well_is_made_to_end_well(scripted: Open, form: str) -> None:
    """Free, this reply would name an unknown tool and end in the midst of it."""
    start = '<tool_call>\n{"name": "weat' if form == "hermes" else '{"name": "weat'
    tier = scripted(start, form)
    assert tier.reply(user()).text == start
    reply = tier.reply(user(tools=(WEATHER, NOTE)))
    assert reply.finish_reason == "tool_calls"
    assert reply.tool_calls[0].name in ("get_weather", "make_note")


def test_several_calls_come_only_where_they_may(scripted: Open) -> None:
    """A model that would go on calling for ever."""
    tier = scripted(CALLED["json"] + "\n")
    two = len(f"{CALLED['json']}\n{CALLED['json']}")
    call = user(tools=(ONLY_OSLO,), parallel_tool_calls=True, max_tokens=two)
    assert tier.reply(call).tool_calls == (OSLO, OSLO)
    assert tier.reply(replace(call, parallel_tool_calls=False)).tool_calls == (OSLO,)


def test_a_call_that_is_cut_off_stays_text(scripted: Open) -> None:
    reply = scripted(CALLED["json"]).reply(user(tools=(WEATHER,), max_tokens=20))
    assert (reply.text, reply.finish_reason) == (CALLED["json"][:20], "length")
    assert reply.tool_calls == ()


def test_tools_that_may_not_be_used_are_no_calls(scripted: Open) -> None:
    with scripted(CALLED["json"]).stream(user(tools=(WEATHER,), tool_choice="none")) as stream:
        assert text_of(stream) == CALLED["json"] == stream.reply().text
        assert stream.reply().tool_calls == ()


@pytest.mark.parametrize("kind", ["user-defined", "control"])
def test_tags_may_be_tokens(tmp_path: Path, kind: str) -> None:
    """Qwen's ``<tool_call>`` is one token; where it is a control token, it has no text."""
    path = write_scripted_gguf(tmp_path / "a.gguf", {"": "hi", "<tool_call>": "ho"})
    if kind == "control":
        types = gguf.GGUFReader(path, "r+").get_field("tokenizer.ggml.token_type")
        assert types is not None and types.parts[types.data[-1]][0] == gguf.TokenType.USER_DEFINED
        types.parts[types.data[-1]][0] = gguf.TokenType.CONTROL
    with LoadedTier(path, n_ctx=1024, threads=1) as tier:
        (tag,) = tier.model.tokenize("<tool_call>")
        assert tier.model.piece(tag) == b"<tool_call>"
        call = user(tools=(ONLY_OSLO,), tool_choice="any")
        reply = tier.reply(call)
        assert (reply.tool_calls, reply.finish_reason) == ((OSLO,), "tool_calls")
        # As the template writes it into the next prompt.
        after = call.with_messages(Message("assistant", tool_calls=reply.tool_calls))
        written = tier.model.tokenize(HERMES.write([OSLO]))
        prompt = list(tier.prompt(after))
        assert any(prompt[i : i + len(written)] == written for i in range(len(prompt)))


# --- Structured answers ---------------------------------------------------------------------------


@BOTH
def test_a_schema_is_kept(scripted: Open, form: str) -> None:
    call = user(response_schema=POINT)
    with scripted('{"x": 1, "y": -20}', form).stream(call) as stream:
        assert text_of(stream) == '{"x": 1, "y": -20}' == stream.reply().text
        assert stream.reply().finish_reason == "stop"


@BOTH
def test_a_schema_beside_tools_leaves_the_choice(scripted: Open, form: str) -> None:
    tier = scripted({"": '{"x": 3, "y": 4}', "KEY": CALLED[form]}, form)
    call = user(tools=(WEATHER,), response_schema=POINT)
    assert json.loads(tier.reply(call).text) == {"x": 3, "y": 4}
    assert tier.reply(call).tool_calls == ()
    calling = replace(call, messages=(Message("user", "KEY"),))
    assert tier.reply(calling).tool_calls == (OSLO,)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_even_random_weights_call_tools_rightly(tmp_path: Path, temperature: float) -> None:
    bounded = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["city", "days"],
    }
    tools = (replace(WEATHER, parameters=bounded), NOTE)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=1024)
    replies = []
    with LoadedTier(path, n_ctx=1024, threads=1) as tier:
        for seed in range(6):
            sampling = Sampling(temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
            call = user(str(seed), tools=tools, tool_choice="any", sampling=sampling)
            replies.append(tier.reply(call))
    for reply in replies:
        (asked,) = reply.tool_calls
        assert asked.name in ("get_weather", "make_note")
        if asked.name == "get_weather":
            assert len(asked.arguments["city"]) <= 8 and 1 <= asked.arguments["days"] <= 99
        else:
            assert asked.arguments == {}


# --- What goes wrong ------------------------------------------------------------------------------


def test_a_bad_schema_names_tool_and_property(tiny: LoadedTier) -> None:
    bad = Tool("book", "", {"type": "object", "properties": {"when": {"format": "stardate"}}})
    with pytest.raises(ToolSchemaError, match=r"tool 'book', property 'when'.*stardate"):
        tiny.stream(user(tools=(WEATHER, bad)))
    assert tiny.reply(user(max_tokens=1)).usage.completion_tokens == 1


def test_a_prompt_that_is_too_long_says_so(tiny: LoadedTier) -> None:
    with pytest.raises(ContextOverflowError, match="Shorten the conversation"):
        tiny.reply(user("q" * 600))
    assert tiny.reply(user(max_tokens=1)).usage.completion_tokens == 1


def test_a_context_may_be_longer_than_what_one_call_can_use(tiny_gguf: Path) -> None:
    """It is for many calls; one ends where the model was trained to."""
    with LoadedTier(tiny_gguf, n_ctx=1024, threads=1) as tier:
        assert tier.n_ctx == 1024
        with pytest.raises(ContextOverflowError, match="the context 512"):
            tier.reply(user("q" * 600))
        streams = [tier.stream(user("q" * 300, max_tokens=2)) for _ in range(3)]
        assert [stream.reply().usage.completion_tokens for stream in streams] == [2] * 3


def test_files_that_cannot_answer_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LoadedTier(tmp_path / "nowhere.gguf", n_ctx=256, threads=1)
    (tmp_path / "half.gguf").write_bytes(tiny_gguf.read_bytes()[:200_000])
    with pytest.raises(DamagedModelError):
        LoadedTier(tmp_path / "half.gguf", n_ctx=256, threads=1)
    write_tiny_gguf(tmp_path / "base.gguf", chat_template=None)
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        LoadedTier(tmp_path / "base.gguf", n_ctx=256, threads=1)
    write_tiny_gguf(tmp_path / "broken.gguf", chat_template="{% if %}")
    with pytest.raises(UnsupportedModelError, match="broken"):
        LoadedTier(tmp_path / "broken.gguf", n_ctx=256, threads=1)


def test_a_closed_tier_answers_no_more(tiny_gguf: Path) -> None:
    tier = LoadedTier(tiny_gguf, n_ctx=512, threads=1)
    call = user(tools=(WEATHER,), tool_choice="any")
    prompt = tier.prompt(call)
    running = tier.stream(user(max_tokens=400))
    tier.close()
    tier.close()
    with pytest.raises(EngineClosedError):
        running.reply()
    with pytest.raises(EngineClosedError):
        tier.stream(call, prompt)
    with pytest.raises(EngineError):  # not a crash: the vocabulary is gone
        tier.stream(call)


def test_leaving_a_stream_frees_the_tier(tiny: LoadedTier) -> None:
    with tiny.stream(user()) as stream:
        next(iter(stream))
    began = time.monotonic()
    reply = tiny.reply(user(max_tokens=2, timeout_s=60.0))
    assert reply.usage.completion_tokens == 2 and time.monotonic() - began < 60
    with pytest.raises(EngineClosedError, match="cancelled"):
        stream.reply()

"""Replies as LangChain wants them, whole and in chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import add_ai_message_chunks

from tierwise.plugin.messages import to_messages
from tierwise.plugin.replies import ChunkMaker, to_ai_message, to_logprobs, to_usage
from tierwise.routing.answer import Answer, Attempt
from tierwise.routing.decision import Decision, Forecast
from tierwise.runtime.chat import Reply, TokenLogprob, ToolCall, Usage
from tierwise.runtime.reply_parser import Piece


def answered(reply: Reply) -> Answer:
    forecast = Forecast("small", 0.9, 1.5, 0.5, 18.0, 1000, 20, False, True, "chosen")
    decision = Decision("small", "it will do", 0.2, 20, (forecast,))
    return Answer((Attempt(decision, reply, 2.0, ""),))


def test_a_text_as_a_message() -> None:
    usage = Usage(prompt_tokens=20, cached_tokens=12, completion_tokens=5)
    message = to_ai_message(answered(Reply("Hello.", usage=usage, margins=(0.5, 0.123456))))
    assert message.content == "Hello." and message.tool_calls == []
    assert message.usage_metadata == {
        "input_tokens": 20,
        "output_tokens": 5,
        "total_tokens": 25,
        "input_token_details": {"cache_read": 12},
    }
    told = message.response_metadata
    assert (told["model_provider"], told["model_name"]) == ("tierwise", "small")
    assert (told["finish_reason"], told["confidence"]) == ("stop", 0.1235)
    assert (told["tier"], told["reason"]) == ("small", "it will do")
    assert (told["predicted_s"], told["actual_s"], told["escalated"]) == (1.5, 2.0, False)
    assert json.loads(json.dumps(told))["decision"]["forecasts"][0]["tier"] == "small"


def test_calls_as_a_message() -> None:
    calls = (ToolCall("f", {"x": 1}), ToolCall("f", {"x": 1}))
    message = to_ai_message(answered(Reply("", calls, "tool_calls")))
    assert [(c["name"], c["args"], c["type"]) for c in message.tool_calls] == [
        ("f", {"x": 1}, "tool_call"),
        ("f", {"x": 1}, "tool_call"),
    ]
    first, second = (c["id"] for c in message.tool_calls)
    assert first and second and first != second
    assert to_messages([message])[0].tool_calls == (
        ToolCall("f", {"x": 1}, first),
        ToolCall("f", {"x": 1}, second),
    )


def test_no_usage_is_zero() -> None:
    assert to_usage(Usage())["total_tokens"] == 0


# --- reasoning --------------------------------------------------------------------------

CALL = ToolCall("f", {"x": "ü"})
THOUGHT = [Piece("First ", True), Piece("think.", True)]
SAID = [Piece("Then "), Piece("speak.")]


def joined(events: list[Piece | Answer]) -> AIMessageChunk:
    maker = ChunkMaker()
    messages = [maker.chunk(event).message for event in events]
    assert all(isinstance(message, AIMessageChunk) for message in messages)
    return add_ai_message_chunks(*messages)  # type: ignore[arg-type]


def without_ids(value: Any) -> Any:
    """Of the same calls, made twice."""
    return json.loads(json.dumps(value), object_hook=lambda d: {**d, "id": ""} if "id" in d else d)


@pytest.mark.parametrize("calls", [(), (CALL,), (CALL, CALL)], ids=["text", "call", "calls"])
@pytest.mark.parametrize("said", [[], SAID], ids=["mute", "said"])
@pytest.mark.parametrize("thought", [[], THOUGHT], ids=["plain", "thought"])
def test_chunks_add_up_to_the_message(
    thought: list[Piece], said: list[Piece], calls: tuple[ToolCall, ...]
) -> None:
    text = "".join(piece.text for piece in said)
    reasoning = "".join(piece.text for piece in thought)
    done = answered(Reply(text, calls, reasoning=reasoning, usage=Usage(20, 12, 5)))
    whole, message = joined([*thought, *said, done]), to_ai_message(done)
    assert whole.content == message.content
    assert without_ids(whole.tool_calls) == without_ids(message.tool_calls)
    assert without_ids(whole.content_blocks) == without_ids(message.content_blocks)
    assert whole.usage_metadata == message.usage_metadata
    assert whole.response_metadata == message.response_metadata
    assert whole.chunk_position == "last"
    assert [c["id"] for c in whole.tool_calls] == [c["id"] for c in whole.tool_call_chunks]
    assert isinstance(message.content, list) == bool(thought)
    assert message.text == whole.text == text


def test_reasoning_is_a_content_block() -> None:
    done = answered(Reply("Then speak.", (CALL,), reasoning="First think."))
    message = to_ai_message(done)
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text", "tool_call"]
    assert message.content_blocks[0].get("reasoning") == "First think."
    (back,) = to_messages([message])
    assert back.content == "Then speak." and back.tool_calls[0].arguments == {"x": "ü"}


# --- logprobs ---------------------------------------------------------------------------


def test_logprobs_are_told_as_openai_does() -> None:
    tokens = (
        TokenLogprob(b"Hi", -0.1, ((b"Hi", -0.1), (b"Ho", -2.5))),
        TokenLogprob("ü".encode()[:1], -0.2),
    )
    assert to_logprobs(tokens) == {
        "content": [
            {
                "token": "Hi",
                "bytes": [72, 105],
                "logprob": -0.1,
                "top_logprobs": [
                    {"token": "Hi", "bytes": [72, 105], "logprob": -0.1},
                    {"token": "Ho", "bytes": [72, 111], "logprob": -2.5},
                ],
            },
            {"token": "\ufffd", "bytes": [195], "logprob": -0.2, "top_logprobs": []},
        ]
    }
    told = to_ai_message(answered(Reply("Hi", logprobs=tokens))).response_metadata
    assert told["logprobs"] == to_logprobs(tokens)
    assert "logprobs" not in to_ai_message(answered(Reply("Hi"))).response_metadata

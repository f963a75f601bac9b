"""A reply, as LangChain wants it: one message, or chunks that add up to the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCall, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from tierwise.routing.answer import Answer
from tierwise.runtime.chat import Reply, TokenLogprob, Usage
from tierwise.runtime.reply_parser import Piece

Content = str | list[str | dict[Any, Any]]


def to_ai_message(answer: Answer) -> AIMessage:
    """The whole reply; ``response_metadata`` tells how it came about."""
    reply = answer.reply
    return AIMessage(
        content=_content(reply.reasoning, reply.text),
        tool_calls=_tool_calls(reply),
        usage_metadata=to_usage(reply.usage),
        response_metadata=to_metadata(answer),
    )


class ChunkMaker:
    """Turns what `stream_answer` yields into the chunks of one message."""

    def __init__(self) -> None:
        self._thought = False

    def chunk(self, event: Piece | Answer) -> ChatGenerationChunk:
        """The chunk for a piece, or for the answer, which is the last one."""
        if isinstance(event, Answer):
            return ChatGenerationChunk(message=self._last(event))
        if event.reasoning:
            self._thought = True
            message = AIMessageChunk(content=_content(event.text, ""))
        else:
            content: Content = [_text_block(event.text)] if self._thought else event.text
            message = AIMessageChunk(content=content)
        return ChatGenerationChunk(message=message)

    @staticmethod
    def _last(answer: Answer) -> AIMessageChunk:
        return AIMessageChunk(
            content="",
            tool_call_chunks=[
                tool_call_chunk(
                    name=call["name"],
                    args=json.dumps(call["args"], ensure_ascii=False),
                    id=call["id"],
                    index=index,
                )
                for index, call in enumerate(_tool_calls(answer.reply))
            ],
            usage_metadata=to_usage(answer.reply.usage),
            response_metadata=to_metadata(answer),
            chunk_position="last",
        )


def to_metadata(answer: Answer) -> dict[str, Any]:
    """How the reply came about: who gave it, why, what was predicted and what it took."""
    reply = answer.reply
    metadata = {
        "model_provider": "tierwise",
        "model_name": answer.final.decision.tier,
        "finish_reason": reply.finish_reason,
        "confidence": round(reply.confidence, 4),
        **answer.to_json(),
    }
    if reply.logprobs:
        metadata["logprobs"] = to_logprobs(reply.logprobs)
    return metadata


def to_usage(usage: Usage) -> UsageMetadata:
    """Token counts; prompt tokens that were cached are told apart."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def to_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """In the shape of OpenAI's chat completions."""
    return {
        "content": [
            {
                **_token(token.piece, token.logprob),
                "top_logprobs": [_token(piece, logprob) for piece, logprob in token.top],
            }
            for token in tokens
        ]
    }


def _token(piece: bytes, logprob: float) -> dict[str, Any]:
    text = piece.decode(errors="replace")  # a token may be part of a letter
    return {"token": text, "bytes": list(piece), "logprob": logprob}


def _content(reasoning: str, text: str) -> Content:
    """Plain text as it is; with reasoning, LangChain's standard content blocks."""
    if not reasoning:
        return text
    block = {"type": "reasoning", "reasoning": reasoning, "index": 0}
    return [block, _text_block(text)] if text else [block]


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "index": 1}


def _tool_calls(reply: Reply) -> list[ToolCall]:
    return [
        tool_call(name=call.name, args=dict(call.arguments), id=f"call_{uuid.uuid4().hex[:24]}")
        for call in reply.tool_calls
    ]

"""Messages in the shapes that chat templates were written for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tierwise.runtime.chat import Message, ToolCall
from tierwise.runtime.tagged_arguments import as_text
from tierwise.runtime.tool_format import ToolFormat


def as_openai(message: Message) -> dict[str, Any]:
    """The form of OpenAI's API, which templates take."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        out["tool_call_id"] = message.tool_call_id
        out["name"] = message.tool_name
    return out


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """``text`` at the end of the system message, which is made where there is none."""
    if not text:
        return list(messages)
    if messages and messages[0].role == "system":
        first = messages[0]
        return [replace(first, content=f"{first.content}\n\n{text}".strip()), *messages[1:]]
    return [Message("system", text), *messages]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """System messages at the beginning of the first user turn, for models that know no others."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return rest
    if rest and rest[0].role == "user":
        return [replace(rest[0], content=f"{system}\n\n{rest[0].content}"), *rest[1:]]
    return [Message("user", system), *rest]


def one_system(messages: Sequence[Message]) -> list[Message]:
    """System messages at the beginning as one, and later ones as what the user says: for models
    that know only the one at the beginning."""
    count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    system = "\n\n".join(message.content for message in messages[:count])
    rest = [replace(m, role="user") if m.role == "system" else m for m in messages[count:]]
    return [Message("system", system), *rest] if count else rest


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Neighbouring plain turns of one role become one turn."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        plain = message.role != "tool" and last and not (last.tool_calls or message.tool_calls)
        if last and plain and last.role == message.role:
            out[-1] = replace(last, content=f"{last.content}\n\n{message.content}")
        else:
            out.append(message)
    return out


def single_calls(messages: Sequence[Message]) -> list[Message]:
    """Turns with several calls become a turn for each, its result behind it (Llama 3)."""
    out: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.tool_calls) < 2:
            out.append(message)
            continue
        results: list[Message] = []
        while rest and rest[0].role == "tool":
            results.append(rest.pop(0))
        for index, call in enumerate(message.tool_calls):
            part = replace(message, content="", reasoning="") if index else message
            out.append(replace(part, tool_calls=(call,)))
            own = [result for result in results if result.tool_call_id == call.id][:1]
            out += own
            results = [result for result in results if result not in own]
        out += results
    return out


def short_ids(messages: Sequence[Message]) -> list[Message]:
    """Ids of calls as Mistral's templates demand them: nine letters or digits."""

    return [
        replace(message, tool_call_id=_short(message.tool_call_id))
        if message.role == "tool"
        else message
        for message in _with_calls(messages, lambda call: replace(call, id=_short(call.id)))
    ]


def arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    """Arguments that are no text as JSON: some templates write Python's ``True`` instead."""

    def told(call: ToolCall) -> ToolCall:
        return replace(call, arguments={k: as_text(v) for k, v in call.arguments.items()})

    return _with_calls(messages, told)


NULL_MARK = "\ue000null\ue001"
"""Stands for null while a template runs."""


def nulls_marked(messages: Sequence[Message]) -> list[Message]:
    """Arguments with a mark for null, of which Gemma's template writes Python's ``None``."""

    def marked(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: marked(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [marked(one) for one in value]
        return NULL_MARK if value is None else value

    return _with_calls(messages, lambda call: replace(call, arguments=marked(call.arguments)))


def _with_calls(
    messages: Sequence[Message], changed: Callable[[ToolCall], ToolCall]
) -> list[Message]:
    return [
        replace(message, tool_calls=tuple(map(changed, message.tool_calls)))
        if message.tool_calls
        else message
        for message in messages
    ]


def with_results(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results as a part of the turn that called, as Gemma 4 takes them. Words before a call are a
    turn of their own: the template would put them behind."""
    out: list[dict[str, Any]] = []
    for turn in turns:
        calling = "tool_calls" in turn
        if turn["role"] == "tool" and out and "tool_calls" in out[-1]:
            result = {"name": turn["name"], "response": turn["content"]}
            out[-1]["tool_responses"] = [*out[-1].get("tool_responses", ()), result]
        elif calling and turn["content"]:
            out.append({key: value for key, value in turn.items() if key != "tool_calls"})
            out.append({**turn, "content": ""})
        else:
            out.append(dict(turn))
    return out


def _short(call_id: str) -> str:
    if re.fullmatch("[a-zA-Z0-9]{9}", call_id):
        return call_id
    return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]


def calls_as_text(message: Message, tool_format: ToolFormat) -> Message:
    """A turn's calls as part of its text, for templates that write none."""
    if not message.tool_calls:
        return message
    text = tool_format.write(message.tool_calls)
    return Message(message.role, f"{message.content}\n{text}" if message.content else text)

"""The user's own conversations: LangChain's or OpenAI's messages, one conversation a line.

``{"messages": [...], "tools": [...]}``; a bare list of messages will do too. Messages are read in
the forms of LangChain's ``message_to_dict``, ``dumpd`` and ``model_dump`` and of OpenAI's chat
completions; tools in OpenAI's form, in LangChain's (``name``, ``description``, ``args_schema`` or
``parameters``), in Anthropic's (``input_schema``), or as a bare JSON schema with a title.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tierwise.compression.distillation.conversations import Conversation, identified
from tierwise.runtime.chat import Message, Role, Tool, ToolCall
from tierwise.runtime.errors import ConfigError

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "systemmessage": "system",
    "user": "user",
    "human": "user",
    "humanmessage": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "aimessage": "assistant",
    "aimessagechunk": "assistant",
    "tool": "tool",
    "toolmessage": "tool",
    "function": "tool",
}
_SHAPE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", ...}]}'


def read_transcripts(path: Path) -> Iterator[Conversation]:
    """The conversations of a JSON-lines file, in its order; empty lines do not count.

    Raises:
        ConfigError: The file cannot be read, or a line is no conversation: names file, line and
            what to do about it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the transcripts {str(path)!r} cannot be read: {error}. Give a file of JSON lines "
            "in UTF-8, one conversation a line."
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _conversation(json.loads(line), f"transcripts-{path.name}-{number}")
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{str(path)!r}, line {number}: not JSON ({error.msg} at column {error.colno}). "
                f"Each line must be one whole conversation such as {_SHAPE}; mend or remove it."
            ) from error
        except ConfigError as error:
            raise ConfigError(f"{str(path)!r}, line {number}: {error}") from error


def _conversation(data: Any, group: str) -> Conversation:
    if isinstance(data, list):
        data = {"messages": data}
    entries = data.get("messages") if isinstance(data, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"there are no messages in it. Write it as {_SHAPE}.")
    messages = list(identified([_message(entry) for entry in entries]))
    if not any(message.role == "assistant" for message in messages):
        raise ConfigError(
            "no message of it is the assistant's, so there is nothing to learn. Remove the line."
        )
    tools = data.get("tools") or []
    if not isinstance(tools, list):
        raise ConfigError(f"its tools must be a list, not {tools!r}.")
    return Conversation(
        tuple(messages), "transcripts", group, tools=tuple(_tool(tool) for tool in tools)
    )


def _message(entry: Any) -> Message:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{entry!r} is no message. Write it as {_SHAPE}.")
    fields = entry
    kind = entry.get("role") or entry.get("type")
    if kind == "constructor":  # LangChain's `dumpd`
        kind, fields = (entry.get("id") or [""])[-1], entry.get("kwargs") or {}
    elif isinstance(entry.get("data"), Mapping):  # LangChain's `message_to_dict`
        fields = entry["data"]
    role = _ROLES.get(str(kind).lower())
    if role is None:
        known = "system, user (human), assistant (ai), tool"
        raise ConfigError(f"a message has the role {kind!r}; known are {known}. Rename it.")
    calls = fields.get("tool_calls") or (fields.get("additional_kwargs") or {}).get("tool_calls")
    return Message(
        role,
        _text(fields.get("content")),
        tool_calls=tuple(_call(call) for call in calls or ()) if role == "assistant" else (),
        tool_call_id=str(fields.get("tool_call_id") or "") if role == "tool" else "",
        tool_name=str(fields.get("name") or "") if role == "tool" else "",
        tool_failed=role == "tool" and fields.get("status") == "error",
    )


def _text(content: Any) -> str:
    """A message's text; of content in blocks, the text ones."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [one if isinstance(one, str) else _block(one) for one in content]
        return "".join(part for part in parts if part)
    raise ConfigError(f"a message's content is {content!r}; it must be a text or a list of blocks.")


def _block(block: Any) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "text":
        return str(block.get("text") or "")
    if kind in ("tool_use", "tool_call", "thinking", "reasoning"):  # told elsewhere, or not at all
        return ""
    raise ConfigError(
        f"a message has content of type {kind!r}, which a text model cannot read. Remove it."
    )


def _call(call: Any) -> ToolCall:
    """LangChain's ``{"name", "args", "id"}`` or OpenAI's ``{"function": {...}, "id"}``."""
    function = call.get("function") if isinstance(call, Mapping) else None
    body = function if isinstance(function, Mapping) else call
    name = body.get("name") if isinstance(body, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ConfigError(f'a tool call has no name: {call!r}. Write {{"name": ..., "args": ...}}.')
    arguments = body.get("args", body.get("arguments", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise ConfigError(
                f"the arguments of the call of {name!r} are not JSON: {arguments!r}. Mend them, "
                "or remove the line."
            ) from error
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"the arguments of the call of {name!r} are no object: {arguments!r}.")
    return ToolCall(name, dict(arguments), id=str(call.get("id") or ""))


def _tool(tool: Any) -> Tool:
    body = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = (body.get("name") or body.get("title")) if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(name, str):
        raise ConfigError(f"{tool!r} is no tool: it has no name. Write it in OpenAI's form.")
    parameters = (
        body.get("parameters") or body.get("input_schema") or body.get("args_schema") or None
    )
    if parameters is None:
        found = body.get("properties") or body.get("args") or {}
        parameters = {"properties": found, "required": body.get("required") or []}
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"the parameters of tool {name!r} are no JSON schema: {parameters!r}.")
    return Tool(name, str(body.get("description") or ""), {"type": "object", **parameters})

"""LangChain's messages, tools and schemas, in the plain form that a `Call` holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from tierwise.routing.budget import Budget
from tierwise.runtime.chat import JSONObject, Message, Role, Tool, ToolCall
from tierwise.runtime.errors import ConfigError, UnsupportedContentError
from tierwise.runtime.schemas import without_nulls

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
}
# Parts of a message that say nothing new to the model: calls are in `tool_calls` already.
_SILENT_BLOCKS = {
    *("reasoning", "thinking", "redacted_thinking"),
    *("tool_call", "tool_call_chunk", "tool_use", "input_json_delta", "function_call"),
}
_SCHEMA_WORDS = {"type", "properties", "items", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def to_messages(messages: Iterable[BaseMessage]) -> tuple[Message, ...]:
    """LangChain's messages in the plain form.

    Raises:
        UnsupportedContentError: A part is an image, audio, a file, or of an unknown kind.
    """
    names: dict[str, str] = {}
    out: list[Message] = []
    for message in messages:
        text = _text(message)
        if isinstance(message, AIMessage):
            calls = tuple(
                ToolCall(name=c["name"], arguments=c["args"], id=c["id"] or "")
                for c in message.tool_calls
            )
            names |= {call.id: call.name for call in calls}
            out.append(Message("assistant", text, tool_calls=calls, reasoning=_reasoning(message)))
        elif isinstance(message, ToolMessage):
            out.append(
                Message(
                    "tool",
                    text,
                    tool_call_id=message.tool_call_id,
                    tool_name=message.name or names.get(message.tool_call_id, ""),
                    tool_failed=message.status == "error",
                )
            )
        elif isinstance(message, FunctionMessage):
            out.append(Message("tool", text, tool_name=message.name))
        else:
            out.append(Message(_role(message), text))
    return tuple(out)


def _role(message: BaseMessage) -> Role:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, SystemMessage):
        return "system"
    name = message.role if isinstance(message, ChatMessage) else message.type
    if name not in _ROLES:
        raise UnsupportedContentError(
            f"a message has the role {name!r}; known are {', '.join(sorted(_ROLES))} and tool"
        )
    return _ROLES[name]


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
            continue
        kind = block.get("type")
        if kind == "text":
            parts.append(str(block.get("text", "")))
        elif kind == "json":  # content of some tool results
            parts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif kind not in _SILENT_BLOCKS:
            raise UnsupportedContentError(
                f"a {message.type} message holds a part of type {kind!r}; the tiers of a family "
                "read text only. Remove it, or describe it in words."
            )
    return "\n".join(part for part in parts if part)


def _reasoning(message: AIMessage) -> str:
    """What the model thought, in LangChain's standard blocks; some templates show it again."""
    if isinstance(message.content, str):
        return ""
    blocks = (block for block in message.content if isinstance(block, dict))
    return "\n".join(
        str(block.get("reasoning", "")) for block in blocks if block.get("type") == "reasoning"
    )


def to_tools(
    tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
) -> tuple[Tool, ...]:
    """Anything LangChain takes for a tool.

    Raises:
        ConfigError: One is no tool, or one that runs on a provider's servers.
    """
    functions = [_function(tool) for tool in tools]
    return tuple(
        Tool(
            name=function["name"],
            description=function.get("description") or "",
            parameters=without_nulls(function.get("parameters") or {}),
        )
        for function in functions
    )


def _function(tool: Any) -> dict[str, Any]:
    try:
        function: dict[str, Any] = convert_to_openai_tool(tool)["function"]
        return {"name": function["name"], **function}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".").rpartition("\n")[2]
        raise ConfigError(
            f"{tool!r} cannot be bound as a tool: {reason}. Use a function, a pydantic class, a "
            "LangChain tool, or a JSON schema with a title; tools that run on a provider's "
            "servers do not exist here."
        ) from error


def to_tool_choice(choice: Any, names: Sequence[str]) -> str:
    """LangChain's many spellings of a tool choice: "auto", "any", "none" or a name.

    Raises:
        ConfigError: It names no tool that is bound.
    """
    if choice is None or choice == "auto":
        return "auto"
    if choice is True or choice in ("any", "required"):
        if not names:
            raise ConfigError(f"tool_choice {choice!r} demands a call, and no tool is bound")
        return "any"
    if choice is False or choice == "none":
        return "none"
    name = choice
    if isinstance(choice, Mapping):
        if choice.get("type") in ("auto", "any", "none", "required"):
            return to_tool_choice(choice["type"], names)
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if name not in names:
        known = ", ".join(names) or "none"
        raise ConfigError(
            f"tool_choice {choice!r} names no tool that is bound (bound: {known}). Use auto, any, "
            "none, or one of those names."
        )
    return str(name)


def to_schema(response_format: Any) -> JSONObject | None:
    """A response format (OpenAI's dictionary, a JSON schema, a pydantic class) as JSON schema.

    Raises:
        ConfigError: It is none of these.
    """
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind == "json_object":
            return {"type": "object", "additionalProperties": True, "properties": {}}
        if kind == "text":
            return None
        if kind == "json_schema":
            inner = response_format.get("json_schema", response_format)
            schema = inner.get("schema") if isinstance(inner, Mapping) else None
            if isinstance(schema, Mapping):
                return schema
        elif _is_schema(response_format):
            return response_format
    try:
        converted: JSONObject = convert_to_json_schema(response_format)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"response_format {response_format!r} is no JSON schema, pydantic class, or "
            '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}'
        ) from error
    return converted


def _is_schema(value: Mapping[str, Any]) -> bool:
    kind = value.get("type", "object")
    kinds = kind if isinstance(kind, list) else [kind]
    return bool(_SCHEMA_WORDS & value.keys()) and all(one in _SCHEMA_TYPES for one in kinds)


def to_budget(budget: Any) -> Budget:
    """A budget, or its fields as a dictionary.

    Raises:
        ConfigError: It is neither, or a field makes no sense.
    """
    if isinstance(budget, Mapping):
        return Budget(**budget)
    if not isinstance(budget, Budget):
        raise ConfigError(f"budget {budget!r} is neither a Budget nor a dictionary of its fields")
    return budget

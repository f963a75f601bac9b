"""Messages and tools as JSON: read in the forms that people have them in, written in one.

Messages are read in the forms of LangChain's ``message_to_dict``, ``dumpd`` and ``model_dump`` and
of OpenAI's chat completions; tools in OpenAI's form, in LangChain's (``name``, ``description``,
``args_schema`` or ``parameters``), in Anthropic's (``input_schema``), or as a bare JSON schema with
a title. They are written in OpenAI's form, save that arguments are objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from tierwise.runtime.chat import Call, Message, Reasoning, Reply, Role, Tool, ToolCall
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.schemas import without_nulls

SHAPE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", ...}]}'

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


def message_from(entry: Any) -> Message:
    """One message.

    Raises:
        ConfigError: It is none; says what is wrong with it.
    """
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{entry!r} is no message. Write it as {SHAPE}.")
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
        tool_calls=tuple(tool_call_from(call) for call in calls or ())
        if role == "assistant"
        else (),
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


def tool_call_from(call: Any) -> ToolCall:
    """LangChain's ``{"name", "args", "id"}`` or OpenAI's ``{"function": {...}, "id"}``.

    Raises:
        ConfigError: It has no name, or its arguments are no object.
    """
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


def tool_from(tool: Any) -> Tool:
    """One tool.

    Raises:
        ConfigError: It has no name, or its parameters are no JSON schema.
    """
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
    parameters = without_nulls({"type": "object", **parameters})
    return Tool(name, str(body.get("description") or ""), parameters)


def message_to_json(message: Message) -> dict[str, Any]:
    """A message as `message_from` reads it; empty fields are left out."""
    fields = {
        "content": message.content,
        "tool_calls": _calls_to_json(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "name": message.tool_name,
        "status": "error" if message.tool_failed else "",
    }
    return {"role": message.role, **{key: value for key, value in fields.items() if value}}


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """What a reply says and how it ended; not how long it took."""
    data: dict[str, Any] = {"finish_reason": reply.finish_reason}
    if reply.text:
        data["text"] = reply.text
    if reply.tool_calls:
        data["tool_calls"] = _calls_to_json(reply.tool_calls)
    return data


def reply_from_json(data: Mapping[str, Any]) -> Reply:
    """A reply as `reply_to_json` writes it.

    Raises:
        ConfigError: A tool call in it is none.
    """
    return Reply(
        text=str(data.get("text") or ""),
        tool_calls=tuple(map(tool_call_from, data.get("tool_calls") or ())),
        finish_reason=data.get("finish_reason", "stop"),
    )


def _calls_to_json(calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
    return [{"name": one.name, "args": dict(one.arguments), "id": one.id} for one in calls]


def call_to_json(call: Call) -> dict[str, Any]:
    """What routing looks at in a call: messages, tools and what is asked of the reply."""
    data: dict[str, Any] = {"messages": [message_to_json(one) for one in call.messages]}
    if call.tools:
        data["tools"] = [tool.to_openai() for tool in call.tools]
    if call.tool_choice != "auto":
        data["tool_choice"] = call.tool_choice
    if call.parallel_tool_calls:
        data["parallel_tool_calls"] = True
    if call.response_schema is not None:
        data["response_schema"] = dict(call.response_schema)
    if call.regex is not None:
        data["regex"] = call.regex
    if call.choices:
        data["choices"] = list(call.choices)
    if call.reasoning is not None:
        data["reasoning"] = call.reasoning
    if call.max_tokens is not None:
        data["max_tokens"] = call.max_tokens
    return data


def call_from_json(data: Any) -> Call:
    """A call as `call_to_json` writes it; a bare "prompt" will do instead of messages.

    Raises:
        ConfigError: It is no call; says what is wrong with it.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"a call must be an object, not {data!r}. Write it as {SHAPE}.")
    entries = data.get("messages")
    if entries is None and isinstance(data.get("prompt"), str):
        entries = [{"role": "user", "content": data["prompt"]}]
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f'there are no messages in it. Write it as {SHAPE}, or as {{"prompt": "Hi"}}.'
        )
    tools, schema = data.get("tools", []), data.get("response_schema")
    most, regex, choices = data.get("max_tokens"), data.get("regex"), data.get("choices") or []
    if not isinstance(tools, list):
        raise ConfigError(f"its tools must be a list, not {tools!r}.")
    if schema is not None and not isinstance(schema, Mapping):
        raise ConfigError(f"its response_schema must be a JSON schema, not {schema!r}.")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ConfigError(f"its max_tokens must be a whole number above 0, not {most!r}.")
    if regex is not None and not isinstance(regex, str):
        raise ConfigError(f"its regex must be a text, not {regex!r}.")
    reasoning = data.get("reasoning")
    if reasoning not in (None, *get_args(Reasoning)):
        known = ", ".join(get_args(Reasoning))
        raise ConfigError(f"its reasoning must be one of {known}, not {reasoning!r}.")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        raise ConfigError(f"its choices must be a list of texts, not {choices!r}.")
    return Call(
        tuple(message_from(entry) for entry in entries),
        tools=tuple(tool_from(tool) for tool in tools),
        tool_choice=str(data.get("tool_choice") or "auto"),
        parallel_tool_calls=bool(data.get("parallel_tool_calls")),
        response_schema=schema,
        regex=regex,
        choices=tuple(choices),
        max_tokens=most,
        reasoning=reasoning,
    )

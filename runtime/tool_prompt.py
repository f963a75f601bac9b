"""Tools for models whose chat template knows nothing of them: told in plain text.

Tools are described by their signatures, which take two thirds of the tokens of their JSON
schemas and were answered no worse (SmolLM2-135M at Q8_0, 54 generated tool tasks: 23 right and
464 prompt tokens on average, against 21 and 730).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tierwise.runtime.chat import JSONObject, Message, Tool, ToolCall
from tierwise.runtime.tool_format import ToolFormat

# What a model is told that was never trained on tools. Small models follow examples far better
# than rules, so a short made-up conversation shows when to call and when to answer; the same
# for every tool choice, so that all calls of a conversation share one cached prefix. Of eight
# conversations tried with SmolLM2-135M at Q8_0 this one made it call a tool on 18 of 20 requests
# that needed one (the others: 2 to 16), and tell the result on 20 of 20; its price is that it
# also calls one on 11 of 14 requests that need none.
_PROMPT = """You can use these functions:
{tools}
To use a function, answer with a JSON object {{"name": ..., "arguments": {{...}}}}. When no \
function is needed, answer with plain words."""
_RESULT = "Result of {name}: {content}"
_FAILURE = "Error of {name}: {content}"
DEMONSTRATION = (
    Message("user", "Hi there!"),
    Message("assistant", "Hello! How can I help you?"),
    Message("user", "What is the phone number of Ann Lee?"),
    Message("assistant", tool_calls=(ToolCall("find_contact", {"name": "Ann Lee"}),)),
    Message("tool", "555-0134", tool_name="find_contact"),
    Message("assistant", "The phone number of Ann Lee is 555-0134."),
    Message("user", "Tell me something about Rome."),
    Message("assistant", "Rome is the capital of Italy."),
    Message("user", "What is the weather in Oslo?"),
    Message("assistant", tool_calls=(ToolCall("get_weather", {"city": "Oslo"}),)),
    Message("tool", "4 degrees and rain", tool_name="get_weather"),
    Message("assistant", "It is 4 degrees in Oslo, with rain."),
    Message("user", "How much is 36 / 4?"),
    Message("assistant", tool_calls=(ToolCall("solve", {"problem": "36 / 4"}),)),
    Message("tool", "9", tool_name="solve"),
    Message("assistant", "36 / 4 is 9."),
)


def tool_prompt(tools: Iterable[Tool]) -> str:
    """The text for the system prompt that tells the model of its tools."""
    return _PROMPT.format(tools="\n".join(map(signature, tools)))


def signature(tool: Tool) -> str:
    """One line: ``- name(argument: type, optional?: type (its meaning)): description``."""
    properties = tool.parameters.get("properties") or {}
    required = set(tool.parameters.get("required") or ())
    parts = []
    for name, schema in properties.items():
        optional = "" if name in required else "?"
        text = schema.get("description") if isinstance(schema, Mapping) else None
        meaning = f" ({text})" if text else ""
        parts.append(f"{name}{optional}: {_type(schema, tool.parameters)}{meaning}")
    description = " ".join(tool.description.split())
    return f"- {tool.name}({', '.join(parts)}): {description}"


def _type(schema: Any, root: JSONObject, depth: int = 0) -> str:
    """A schema in a word or a few: ``number``, ``red|green``, ``{city: string}[]``."""
    if isinstance(schema, list):  # `items` before draft 2020-12: a schema for each place
        return "[" + ", ".join(_type(part, root, depth + 1) for part in schema) + "]"
    if not isinstance(schema, Mapping):  # true allows anything, false nothing
        return "none" if schema is False else "any"
    if "$ref" in schema and depth < 8:  # a recursive schema has no finite text
        return _type(_resolve(str(schema["$ref"]), root), root, depth + 1)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return "|".join(v if isinstance(v, str) else json.dumps(v) for v in values)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(part, root, depth + 1) for part in schema[several])
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("prefixItems") or schema.get("items", True)
        of = _type(items, root, depth + 1)
        return of if isinstance(items, list) else f"{of}[]"
    if kind == "object" and schema.get("properties"):
        required = set(schema.get("required") or ())
        inner = ", ".join(
            f"{name}{'' if name in required else '?'}: {_type(part, root, depth + 1)}"
            for name, part in schema["properties"].items()
        )
        return f"{{{inner}}}"
    return "|".join(kind) if isinstance(kind, list) else str(kind)


def _resolve(reference: str, root: JSONObject) -> JSONObject:
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part, {}) if isinstance(node, dict) else {}
    return node if isinstance(node, dict) else {}


def as_plain(message: Message, tool_format: ToolFormat) -> Message:
    """A message for a template without tools: calls as text, results as user turns."""
    if message.tool_calls:
        text = tool_format.write(message.tool_calls)
        content = f"{message.content}\n{text}" if message.content else text
        return Message(role="assistant", content=content)
    if message.role == "tool":
        name = message.tool_name or "the function"
        form = _FAILURE if message.tool_failed else _RESULT
        return Message(role="user", content=form.format(name=name, content=message.content))
    return message

"""Grammar rules for calls whose arguments stand between tags (`tagged_arguments`)."""

from __future__ import annotations

from collections.abc import Mapping

from tierwise.runtime.chat import JSONObject, Tool
from tierwise.runtime.lark import literal, pattern
from tierwise.runtime.schemas import json_rule, object_schema
from tierwise.runtime.tagged_arguments import (
    ANY,
    ANY_TEXT,
    Tagged,
    alternatives,
    argument_schema,
    is_text,
    text_regex,
)

_KEY = r"/[^<>\n]+/"
"""An argument that the schema does not name, where it allows such."""


def tagged_rules(rule: str, tool: Tool, tags: Tagged) -> list[str]:
    """The rules of a tool's call, of which the first has the name ``rule``.

    Arguments come in the schema's order, those that are not required may be left out. Text is
    held to the schema's ``enum``, ``const``, lengths, and a ``pattern`` that is anchored at both
    ends; its other keywords (``format``) are not.

    Raises:
        ToolSchemaError: The parameters are no object, or the schema is not JSON.
    """
    schema = object_schema(tool)
    properties: Mapping[str, object] = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    parts, rules = [literal(tags.head(tool.name))], []
    for number, key in enumerate(properties):
        name = f"{rule}_{number}"
        begin = literal(f"{tags.open}{key}{tags.middle}")
        rules += _argument(name, begin, tool, schema, key, tags)
        parts.append(name if key in required else f"{name}?")
    if schema.get("additionalProperties", "properties" not in schema):
        begin = f"{literal(tags.open)} {_KEY} {literal(tags.middle)}"
        rules += _argument(f"{rule}_more", begin, tool, schema, "", tags)
        parts.append(f"{rule}_more*")
    return [f"{rule}: {' '.join(parts)} {literal(tags.end)}", *rules]


def _argument(
    rule: str, begin: str, tool: Tool, schema: JSONObject, key: str, tags: Tagged
) -> list[str]:
    """One argument from its first tag to its last."""
    values, rules = list[str](), list[str]()
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    parts = [*alternatives(argument_schema(schema, key), schema)]
    if any(not part or (is_text(part) and text_regex(part) == ANY_TEXT) for part in parts):
        parts = [ANY]  # text of any kind: whatever else is allowed is that, too
    for number, part in enumerate(parts):
        if part and not is_text(part):
            owner = f"tool {tool.name!r}, property {key!r}"
            values.append(f"{json_rule(owner, {**part, **shared})} {literal(tags.close)}")
        elif "enum" in part:
            texts = " | ".join(literal(text + tags.close) for text in part["enum"])
            values.append(f"({texts})")
        else:
            # Up to the first closing tag, as it is read.
            lexeme = f"{rule}_{number}"
            rules.append(f"{lexeme}[lazy]: /{text_regex(part)}{pattern(tags.close)}/")
            values.append(lexeme)
    return [f"{rule}: {begin} ({' | '.join(values)})", *rules]

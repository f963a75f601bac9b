"""Grammar rules for calls whose arguments stand between tags (`tagged_arguments`)."""

from __future__ import annotations

from collections.abc import Mapping

from tierwise.runtime.chat import JSONObject, Tool
from tierwise.runtime.lark import literal, other_than
from tierwise.runtime.schema_parts import (
    ANY,
    ANY_TEXT,
    alone,
    alternatives,
    argument_schema,
    is_text,
    merged,
    others_of,
    text_lexeme,
    text_regex,
)
from tierwise.runtime.schemas import json_rule, object_schema
from tierwise.runtime.tagged_arguments import Tagged

_KEY = r"/[^<>\n]+/"
"""An argument that the schema does not name, where it allows such."""


def tagged_rules(rule: str, tool: Tool, tags: Tagged, shared: dict[str, str]) -> list[str]:
    """The rules of a tool's call, of which the first has the name ``rule``.

    Arguments come in the schema's order, those that are not required may be left out. Text is
    held to the schema's ``enum``, ``const``, lengths, and a ``pattern`` that is anchored at both
    ends; its other keywords (``format``) are not.

    Args:
        rule: Its name.
        tool: The tool.
        tags: How its call is written.
        shared: Filled with the names of rules for JSON, by what they say. Tools of one server often
            have the same large parts, of which a grammar has room for few.

    Raises:
        ToolSchemaError: The parameters are no object, or the schema is not JSON.
    """
    root = object_schema(tool)
    schema = merged(root, root)
    properties: Mapping[str, object] = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    parts, rules = [literal(tags.head(tool.name))], list[str]()

    def owner(key: str) -> str:
        return f"tool {tool.name!r}, property {key!r}"

    for number, key in enumerate(properties):
        name = f"{rule}_{number}"
        begin = literal(f"{tags.open}{key}{tags.middle}")
        rules += _argument(
            name, begin, argument_schema(schema, key), root, tags, owner(key), shared
        )
        parts.append(name if key in required else f"{name}?")
    if (others := others_of(schema)) is not None:
        name = f"{rule}_key".upper()
        rules.append(f"{name}: {_KEY}{other_than(properties)}")
        begin = f"{literal(tags.open)} {name} {literal(tags.middle)}"
        rules += _argument(f"{rule}_more", begin, others, root, tags, owner(""), shared)
        parts.append(f"{rule}_more*")
    return [f"{rule}: {' '.join(parts)} {literal(tags.end)}", *rules]


def _argument(
    rule: str,
    begin: str,
    schema: JSONObject,
    root: JSONObject,
    tags: Tagged,
    owner: str,
    shared: dict[str, str],
) -> list[str]:
    """One argument from its first tag to its last."""
    values, rules = list[str](), list[str]()
    parts = alternatives(schema, root)
    if any(not part or (is_text(part) and text_regex(part) == ANY_TEXT) for part in parts):
        parts = [ANY]  # text of any kind: whatever else is allowed is that, too
    for number, part in enumerate(parts):
        if part and not is_text(part):
            value = json_rule(owner, alone(part, root))
            if value not in shared:
                shared[value] = f"json_{len(shared)}"
                rules.append(f"{shared[value]}: {value}")
            values.append(f"{shared[value]} {literal(tags.close)}")
        elif "enum" in part:
            texts = " | ".join(literal(text + tags.close) for text in part["enum"])
            values.append(f"({texts})")
        else:
            lexeme = f"{rule}_{number}"
            rules.append(f"{lexeme}[lazy]: {text_lexeme('', part, tags.close)}")
            values.append(lexeme)
    return [f"{rule}: {begin} ({' | '.join(values)})", *rules]

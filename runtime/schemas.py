"""JSON schemas as rules of a grammar, and which part of one is at fault."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance

from tierwise.runtime.chat import JSONObject, Tool
from tierwise.runtime.errors import ToolSchemaError

# Fixed white space, so that everything but the values is forced and can be fast-forwarded.
_JSON_STYLE = {
    "whitespace_flexible": False,
    "key_separator": ": ",
    "item_separator": ", ",
    "coerce_one_of": True,  # pydantic writes tagged unions so
}

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_PARTS = {*_NAMED, "required", "items", "prefixItems", "additionalProperties"}
_PARTS |= {"allOf", "anyOf", "oneOf"}


def json_rule(owner: str, schema: JSONObject) -> str:
    rule = {**closed(schema), "x-guidance": _JSON_STYLE}
    try:
        return "%json " + json.dumps(rule, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ToolSchemaError(f"{owner}: its schema is not JSON ({error})") from error


def object_schema(tool: Tool) -> JSONObject:
    if not tool.parameters:
        return {"type": "object", "properties": {}}
    if tool.parameters.get("type", "object") != "object":
        raise ToolSchemaError(
            f"tool {tool.name!r}: its parameters must be a JSON schema of type 'object', "
            f"got type {tool.parameters['type']!r}"
        )
    return {"type": "object", **tool.parameters}


def without_nulls(schema: JSONObject) -> JSONObject:
    """The schema without keywords that are null, as some servers (those in Go) write what is empty;
    null as a value (``default``, ``enum``) stays."""
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if value is None and key in _PARTS:
            continue
        if key in _NAMED and isinstance(value, Mapping):
            value = {name: _without_nulls(one) for name, one in value.items()}
        elif key in _PARTS:
            value = _without_nulls(value)
        out[key] = value
    return out


def _without_nulls(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_nulls(one) for one in part]
    return without_nulls(part) if isinstance(part, Mapping) else part


def closed(schema: JSONObject) -> JSONObject:
    """The schema with every object that lists its properties closed to others.

    JSON schema allows unknown properties by default, and a small model will invent them.
    Objects that say ``additionalProperties`` themselves are left as they are. So is the whole
    schema where several parts of it describe one object (say ``allOf``): closing one part would
    forbid what the others list.
    """
    return schema if _has_mixture(schema) else _closed(schema)


def _has_mixture(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        parts = sum(key in schema for key in ("properties", "$ref", "anyOf", "oneOf"))
        parts += len(schema.get("allOf") or ())
        return parts > 1 or any(map(_has_mixture, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_has_mixture, schema))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("enum", "const", "default", "examples"):  # values, not schemas
            out[key] = value
        elif key in _NAMED:
            items = value.items() if isinstance(value, Mapping) else ()
            out[key] = {name: _closed(one) for name, one in items} or value
        else:
            out[key] = _closed(value)
    if out.get("properties") is not None:
        out.setdefault("additionalProperties", False)
    return out


def check_schema(owner: str, schema: JSONObject) -> None:
    reason = _compile_error(schema)
    if reason is None:
        return
    path, reason = _culprit(schema, schema, reason, ())
    place = f", property {'.'.join(path)!r}" if path else ""
    raise ToolSchemaError(
        f"{owner}{place} cannot be compiled: {reason}. Simplify that part of the schema "
        "(supported: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md)."
    )


def _culprit(
    root: JSONObject, schema: JSONObject, reason: str, path: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """Goes down to the innermost property that fails alone; definitions come along."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    children = dict(schema.get("properties") or {})
    if isinstance(schema.get("items"), Mapping):
        children["[]"] = schema["items"]
    for name, child in children.items():
        if isinstance(child, bool):  # true allows anything, false nothing
            continue
        if not isinstance(child, Mapping):
            return (*path, name), f"expected a schema, got {child!r}"
        child_reason = _compile_error({**shared, **child})
        if child_reason is not None:
            return _culprit(root, child, child_reason, (*path, name))
    return tuple(path), reason


def _compile_error(schema: JSONObject) -> str | None:
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps({**closed(schema), "x-guidance": _JSON_STYLE})
        )
    except (TypeError, ValueError) as error:
        return f"it is not JSON ({error})"
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(messages[0].split()) if failed else None

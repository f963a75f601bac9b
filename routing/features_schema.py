"""Tools and response schemas in numbers. Agents offer the same ones call after call, so what was
counted of the latest is kept."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tierwise.runtime.chat import JSONObject, Tool
from tierwise.runtime.latest import Latest

SCHEMA_COLUMNS = (
    "depth",
    "leaves",
    "required",
    "optional",
    "listed_values",
    "largest_list",
    "texts",
    "numbers",
    "flags",
    "arrays",
    "objects",
    "alternatives",
)
"""Of one schema: its depth in objects and arrays, all others log(1 + count). Required and optional
arguments are those of all objects, listed values those of enums, alternatives those of anyOf."""

TOOL_COLUMNS = ("tools", "likeness", "all_leaves", "description_words", "forms")
"""Of a list of tools: their number, how alike the two most alike ones are (0..1, by the words of
name and description), leaves of all schemas, words of all descriptions, and whether any argument
has a pattern or a format."""

_DEEPEST = 32
"""Schemas that nest deeper are not followed further."""

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TYPES = {
    "string": "texts",
    "integer": "numbers",
    "number": "numbers",
    "boolean": "flags",
    "array": "arrays",
    "object": "objects",
}


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """What was counted of one list of tools.

    Attributes:
        columns: `TOOL_COLUMNS`, then for each of `SCHEMA_COLUMNS` the largest of all tools.
        words: Of each tool's name, description and arguments' names, in lower case.
    """

    columns: tuple[float, ...]
    words: tuple[frozenset[str], ...]


class ToolCounter:
    """Counts lists of tools, and schemas; safe to use from many threads."""

    def __init__(self) -> None:
        self._tools = Latest(count_tools)
        self._schema = Latest(count_schema)

    def of_tools(self, tools: tuple[Tool, ...]) -> ToolFacts:
        """What `count_tools` makes of them."""
        return self._tools(tools) if tools else _NO_TOOLS

    def of_schema(self, schema: JSONObject | None) -> tuple[float, ...]:
        """What `count_schema` makes of it; zeros for none."""
        return _NOTHING if schema is None else self._schema(schema)


def count_tools(tools: tuple[Tool, ...]) -> ToolFacts:
    """What `TOOL_COLUMNS` and `SCHEMA_COLUMNS` name."""
    counted = [count_schema(tool.parameters) for tool in tools]
    most = tuple(max(column) for column in zip(*counted, strict=True)) if counted else _NOTHING
    about = [frozenset(words(f"{tool.name} {tool.description}")) for tool in tools]
    alike = (len(a & b) / max(1, len(a | b)) for i, a in enumerate(about) for b in about[:i])
    leaves = SCHEMA_COLUMNS.index("leaves")
    own = (
        math.log1p(len(tools)),
        max(alike, default=0.0),
        math.log1p(sum(math.expm1(schema[leaves]) for schema in counted)),
        math.log1p(sum(len(tool.description.split()) for tool in tools)),
        float(any(_has_form(tool.parameters) for tool in tools)),
    )
    named = (frozenset(words(" ".join(_names(tool.parameters)))) for tool in tools)
    return ToolFacts((*own, *most), tuple(a | b for a, b in zip(about, named, strict=True)))


def count_schema(schema: JSONObject) -> tuple[float, ...]:
    """What `SCHEMA_COLUMNS` name; definitions and alternatives add up."""
    found: Counter[str] = Counter()
    for part, depth in _parts(schema):
        kind = part.get("type")
        found["depth"] = max(found["depth"], depth)
        for name in kind if isinstance(kind, list | tuple) else (kind,):
            found[_TYPES.get(name, "")] += 1
        listed = part.get("enum")
        listed_values = len(listed) if isinstance(listed, list | tuple) else 0
        found["listed_values"] += listed_values
        found["largest_list"] = max(found["largest_list"], listed_values)
        found["leaves"] += kind not in ("object", "array", None) or listed is not None
        arguments, required = part.get("properties"), part.get("required")
        n = len(arguments) if isinstance(arguments, Mapping) else 0
        needed = min(n, len(required)) if isinstance(required, list | tuple) else 0
        found["required"] += needed
        found["optional"] += n - needed
        found["alternatives"] += sum(
            len(part[name]) for name in ("anyOf", "oneOf") if isinstance(part.get(name), list)
        )
    depth, *counts = (found[name] for name in SCHEMA_COLUMNS)
    return (float(depth), *map(math.log1p, counts))


def words(text: str) -> Iterator[str]:
    """In lower case; names in snake or camel case are taken apart, a plural s is left out."""
    for word in _WORD.findall(_CAMEL.sub(" ", text).lower()):
        if len(word) > 2:
            yield word[:-1] if word.endswith("s") else word


def _parts(schema: Any) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The schema and all schemas in it, with how many objects and arrays they are in."""
    waiting = [(schema, 0, 0)]
    while waiting:
        part, depth, steps = waiting.pop()
        if not isinstance(part, Mapping) or steps > _DEEPEST:
            continue
        yield part, depth
        for name, inside in part.items():
            if name in ("properties", "$defs", "definitions") and isinstance(inside, Mapping):
                waiting += [(p, depth + (name == "properties"), steps + 1) for p in inside.values()]
            elif name in ("items", "prefixItems"):
                waiting += [(p, depth + 1, steps + 1) for p in _listed(inside)]
            elif name in ("anyOf", "oneOf", "allOf"):
                waiting += [(p, depth, steps + 1) for p in _listed(inside)]


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _names(schema: JSONObject) -> Iterator[str]:
    for part, _ in _parts(schema):
        arguments = part.get("properties")
        if isinstance(arguments, Mapping):
            yield from map(str, arguments)


def _has_form(schema: JSONObject) -> bool:
    return any("pattern" in part or "format" in part for part, _ in _parts(schema))


_NOTHING = (0.0,) * len(SCHEMA_COLUMNS)
_NO_TOOLS = ToolFacts((0.0,) * (len(TOOL_COLUMNS) + len(SCHEMA_COLUMNS)), ())

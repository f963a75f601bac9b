"""Arguments in Gemma 4's own notation: ``{city:<|"|>Oslo<|"|>,days:[1,2]}``.

It is JSON but for texts, which stand between tags as they are, and for keys, which stand bare and
in alphabetical order.

Source: the model's chat template (its macro ``format_argument``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tierwise.runtime.chat import JSONObject, Tool
from tierwise.runtime.lark import literal, other_than
from tierwise.runtime.schema_parts import ANY, alternatives, is_text, merged, others_of, text_lexeme
from tierwise.runtime.schemas import json_rule, object_schema
from tierwise.runtime.tagged_arguments import strict_json

_QUOTE = '<|"|>'
_WORD = r"[^:{}\[\],\s<>]+"
_KEY = f"/{_WORD}( +{_WORD})*/"
_SCALAR = re.compile(r"[^,\]}]+")
_DEEPEST = 200
"""Levels of nested values that are read."""


@dataclass(frozen=True, slots=True)
class Braced:
    """The notation of one call: ``name{…}``."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts that may be tags."""
        return (_QUOTE,)

    @property
    def end(self) -> str:
        """The last text of a call."""
        return "}"

    def head(self, name: str) -> str:
        """One call's text before its arguments."""
        return name + "{"

    def write(self, name: str, arguments: JSONObject) -> str:
        """A call as the model itself would have written it."""
        return name + written(arguments)

    def read(
        self, text: str, at: int, tools: Mapping[str, JSONObject]
    ) -> tuple[str, dict[str, Any], int]:
        """Name and arguments of the call at a place, and the place after it.

        Raises:
            ValueError: There is no whole call of a known tool.
        """
        name, brace, _ = text[at:].partition("{")
        if not brace or name not in tools:
            raise ValueError(f"unknown tool {name[:40]!r}")
        keys = tuple(sorted(_keys_with_colons(tools[name]), key=len, reverse=True))
        found, at = _value(text, at + len(name), keys)
        return name, found, at


def written(value: Any) -> str:
    """A value in this notation."""
    if isinstance(value, str):
        return f"{_QUOTE}{value}{_QUOTE}"
    if isinstance(value, Mapping):
        pairs = (f"{key}:{written(value[key])}" for key in in_order(value))
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def in_order(keys: Mapping[str, Any]) -> list[str]:
    """As Jinja's ``dictsort`` has them."""
    return sorted(keys, key=str.lower)


def _keys_with_colons(schema: Any) -> Iterator[str]:
    """Names of properties by which a key does not end at its first colon."""
    if isinstance(schema, Mapping):
        if isinstance(named := schema.get("properties"), Mapping):
            yield from (key for key in named if ":" in key)
        schema = [*schema.values()]
    if isinstance(schema, list):
        for part in schema:
            yield from _keys_with_colons(part)


def _value(text: str, at: int, keys: Sequence[str], depth: int = 0) -> tuple[Any, int]:
    """The value at a place, and the place after it. Raises ValueError where there is none."""
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    if text.startswith(_QUOTE, at):
        stop = text.find(_QUOTE, at + len(_QUOTE))
        if stop < 0:
            raise ValueError("a text that does not end")
        return text[at + len(_QUOTE) : stop], stop + len(_QUOTE)
    if text[at : at + 1] not in ("{", "["):
        scalar = _SCALAR.match(text, at)
        if scalar is None:
            raise ValueError("no value")
        return strict_json(scalar.group()), scalar.end()
    close = "}" if text[at] == "{" else "]"
    members: dict[str, Any] = {}
    items: list[Any] = []
    at += 1
    while text[at : at + 1] != close:
        if members or items:
            if text[at : at + 1] != ",":
                raise ValueError("no comma")
            at += 1
        if close == "}":
            stop = text.find(":", at)
            key = next((key for key in keys if text.startswith(f"{key}:", at)), text[at:stop])
            if stop < 0 or key in members:
                raise ValueError("no key, or one that comes twice")
            members[key], at = _value(text, at + len(key) + 1, keys, depth + 1)
        else:
            item, at = _value(text, at, keys, depth + 1)
            items.append(item)
    return (members if close == "}" else items), at + 1


def braced_rules(rule: str, tool: Tool) -> list[str]:
    """The rules of a tool's call, of which the first has the name ``rule``.

    Numbers, booleans, listed values, lengths of texts and arrays are held to the schema, and
    patterns that are anchored at both ends; other keywords (``format``) are not.

    Raises:
        ToolSchemaError: The parameters are no object, or the schema is not JSON.
    """
    schema = object_schema(tool)
    rules = _Rules(rule, f"tool {tool.name!r}", schema)
    arguments = rules.object(schema)
    return [f"{rule}: {literal(tool.name)} {arguments}", *rules.lines]


@dataclass(slots=True)
class _Rules:
    """Makes the rules for the values of one schema."""

    prefix: str
    owner: str
    root: JSONObject
    lines: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _made: int = 0

    def value(self, schema: Any) -> str:
        """The name of the rule for a schema's values; the same for the same schema, so that
        those which hold themselves come to an end."""
        key = json.dumps(schema, sort_keys=True, default=str)
        if key not in self._names:
            name = self._names[key] = f"{self.prefix}_{len(self._names)}"
            parts = alternatives(schema, self.root)
            bodies = [self._any()] if ANY in parts else [self._one(part) for part in parts]
            self.lines.append(f"{name}: {' | '.join(bodies)}")
        return self._names[key]

    def _one(self, part: JSONObject) -> str:
        if "enum" in part:
            return f"({' | '.join(literal(written(value)) for value in part['enum'])})"
        if is_text(part):
            return self._text(part)
        if part["type"] == "array":
            return self._array(part)
        return self.object(part) if part["type"] == "object" else json_rule(self.owner, part)

    def _text(self, part: JSONObject) -> str:
        name = self._fresh("text")
        self.lines.append(f"{name}[lazy]: {text_lexeme(_QUOTE, part, _QUOTE)}")
        return name

    def _array(self, part: JSONObject) -> str:
        items, first = part.get("items", ANY), part.get("prefixItems") or []
        if isinstance(items, list):  # as older drafts write it
            items, first = part.get("additionalItems", ANY), items
        least, most = part.get("minItems", 0), part.get("maxItems")
        if items is False:
            most = len(first) if most is None else min(most, len(first))
        if most == 0:
            return '"[" "]"'
        first = first[:most] or [items]
        body = ""
        if most != len(first):
            left = "" if most is None else most - len(first)
            body = f'("," {self.value(items)}){{{max(0, least - len(first))},{left}}}'
        for at in reversed(range(len(first))):
            comma = '"," ' if at else ""
            body = f"{comma}{self.value(first[at])} {body}"
            body = body if at < least else f"({body})?"
        return f'"[" {body} "]"'

    def object(self, part: JSONObject) -> str:
        """The rule of an object: its keys in order, those that are not required may be left out."""
        part = merged(part, self.root)
        properties = part.get("properties") or {}
        required = set(part.get("required") or ())
        others = others_of(part)
        keys = in_order(properties)
        pairs = [f"{literal(key + ':')} {self.value(properties[key])}" for key in keys]
        ends = ('""', '""')
        if others is not None:
            key = self._fresh("key").upper()
            self.lines.append(f"{key}: {_KEY}{other_than(properties)}")
            pair = f'{key} ":" {self.value(others)}'
            ends = (f'({pair} ("," {pair})*)?', f'("," {pair})*')
        # Two rules for each place: nothing has been written yet, or something has.
        name = self._fresh("object")
        for begun, end in enumerate(ends):
            comma = '"," ' if begun else ""
            self.lines.append(f"{name}_{len(keys)}_{begun}: {end}")
            for at, key in enumerate(keys):
                own = f"{comma}{pairs[at]} {name}_{at + 1}_1"
                left_out = "" if key in required else f" | {name}_{at + 1}_{begun}"
                self.lines.append(f"{name}_{at}_{begun}: {own}{left_out}")
        return f'"{{" {name}_0_0 "}}"'

    def _fresh(self, kind: str) -> str:
        self._made += 1
        return f"{self.prefix}_{kind}_{self._made}"

    def _any(self) -> str:
        name = f"{self.prefix}_any"
        if name not in self._names:
            self._names[name] = name
            scalar = json_rule(self.owner, {"type": ["number", "boolean", "null"]})
            pair = f'{_KEY} ":" {name}'
            self.lines.append(
                f'{name}: {self._text(ANY)} | {scalar} | "[" ({name} ("," {name})*)? "]" | '
                f'"{{" ({pair} ("," {pair})*)? "}}"'
            )
        return name

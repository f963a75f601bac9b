"""Tool calls whose arguments stand one by one between tags, as Qwen3-Coder and GLM write them.

Text is written as it is and everything else as JSON, so that only the tool's schema tells whether
``5`` is a number or a text. What the schema allows both ways is read as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tierwise.runtime.chat import JSONObject
from tierwise.runtime.schema_parts import alternatives, argument_schema, is_text, merged


@dataclass(frozen=True, slots=True)
class Tagged:
    """The texts of one call: ``before name after (open key middle value close)* end``."""

    before: str
    after: str
    open: str
    middle: str
    close: str
    end: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them, in order."""
        return self.before, self.after, self.open, self.middle, self.close, self.end

    def head(self, name: str) -> str:
        """One call's text before its arguments."""
        return f"{self.before}{name}{self.after}"

    def write(self, name: str, arguments: JSONObject) -> str:
        """A call as the model itself would have written it."""
        parts = (
            f"{self.open}{key}{self.middle}{as_text(value)}{self.close}"
            for key, value in arguments.items()
        )
        return f"{self.head(name)}{''.join(parts)}{self.end}"

    def read(
        self, text: str, at: int, tools: Mapping[str, JSONObject]
    ) -> tuple[str, dict[str, Any], int]:
        """Name and arguments of the call at a place, and the place after it.

        Args:
            text: Of the reply.
            at: Where the call begins.
            tools: Schemas of the parameters by the tool's name.

        Raises:
            ValueError: There is no whole call of a known tool, or an argument is not what the
                schema says, or comes twice.
        """
        start = _behind(text, at, self.before)
        if self.after:
            name, at = _until(text, start, self.after)
        else:
            places = (text.find(tag, start) for tag in (self.open, self.end))
            at = min((place for place in places if place >= 0), default=len(text))
            name = text[start:at]
        if name not in tools:
            raise ValueError(f"unknown tool {name!r}")
        root, found = tools[name], dict[str, Any]()
        schema = merged(root, root)
        while not text.startswith(self.end, at):
            key, at = _until(text, _behind(text, at, self.open), self.middle)
            if key in found:
                raise ValueError(f"{key!r} is given twice")
            found[key], at = self._value(text, at, argument_schema(schema, key), root)
        return name, found, at + len(self.end)

    def _value(self, text: str, at: int, schema: JSONObject, root: JSONObject) -> tuple[Any, int]:
        """An argument and the place after it. A text ends with the first tag, JSON may hold it."""
        end = at
        while True:
            _, end = _until(text, end, self.close)
            try:
                return value_of(text[at : end - len(self.close)], schema, root), end
            except ValueError:
                if self.close not in text[end:]:
                    raise


def as_text(value: Any) -> str:
    """An argument as it stands between its tags."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def value_of(text: str, schema: JSONObject, root: JSONObject) -> Any:
    """The value that a text between tags stands for.

    Args:
        text: What stands there.
        schema: Of the argument.
        root: Schema of all parameters, for references.

    Raises:
        ValueError: The schema allows no text, and it is no JSON.
    """
    parts = alternatives(schema, root)
    textual = any(is_text(part) or not part for part in parts)
    others = [part for part in parts if not is_text(part)]
    if not others:
        return text
    try:
        value = strict_json(text)
    except (ValueError, RecursionError):
        if textual:
            return text
        raise ValueError(f"no JSON: {text[:40]!r}") from None
    if not textual:
        return value
    if isinstance(value, str) or not any(_may_be(value, part) for part in others):
        return text
    return value


def strict_json(text: str) -> Any:
    """A JSON value. Raises ValueError for ``NaN`` and ``Infinity`` too, which Python would read."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


_KINDS: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def _may_be(value: Any, schema: JSONObject) -> bool:
    """Whether a value is of the kind that a schema asks for."""
    if "enum" in schema:
        return json.dumps(value) in map(json.dumps, schema["enum"])  # 1 is not true
    kind = _KINDS.get(schema.get("type", ""))
    if kind is None:
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _behind(text: str, at: int, expected: str) -> int:
    """The place after a text that must stand here."""
    if not text.startswith(expected, at):
        raise ValueError(f"expected {expected!r}")
    return at + len(expected)


def _until(text: str, at: int, end: str) -> tuple[str, int]:
    """What stands before the next ``end``, and the place after that."""
    stop = text.find(end, at)
    if stop < 0:
        raise ValueError(f"no {end!r}")
    return text[at:stop], stop + len(end)

"""Tool calls whose arguments stand one by one between tags, as Qwen3-Coder and GLM write them.

Text is written as it is and everything else as JSON, so that only the tool's schema tells whether
``5`` is a number or a text. What the schema allows both ways is read as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tierwise.runtime.chat import JSONObject
from tierwise.runtime.lark import pattern, within_slashes

ANY: JSONObject = {}
"""A schema that allows everything."""

_DEEPEST = 16
"""References that lead to references; more go round in circles."""


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
        name, at = _until(text, _behind(text, at, self.before), self.after)
        if name not in tools:
            raise ValueError(f"unknown tool {name!r}")
        schema, found = tools[name], dict[str, Any]()
        while not text.startswith(self.end, at):
            key, at = _until(text, _behind(text, at, self.open), self.middle)
            value, at = _until(text, at, self.close)
            if key in found:
                raise ValueError(f"{key!r} is given twice")
            found[key] = value_of(value, argument_schema(schema, key), schema)
        return name, found, at + len(self.end)


def as_text(value: Any) -> str:
    """An argument as it stands between its tags."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def argument_schema(parameters: JSONObject, key: str) -> JSONObject:
    """What a tool's schema says of one argument."""
    for found in (
        (parameters.get("properties") or {}).get(key),
        parameters.get("additionalProperties"),
    ):
        if isinstance(found, Mapping):
            return found
    return ANY


def value_of(text: str, schema: JSONObject, root: JSONObject) -> Any:
    """The value that a text between tags stands for.

    Args:
        text: What stands there.
        schema: Of the argument.
        root: Schema of all parameters, for references.

    Raises:
        ValueError: The schema allows no text, and it is no JSON.
    """
    parts = [*alternatives(schema, root)]
    textual = any(is_text(part) or not part for part in parts)
    others = [part for part in parts if not is_text(part)]
    if not others:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if textual:
            return text
        raise ValueError(f"no JSON: {text[:40]!r}") from None
    if not textual:
        return value
    if isinstance(value, str) or not any(_may_be(value, part) for part in others):
        return text
    return value


def alternatives(schema: Any, root: JSONObject, depth: int = 0) -> Iterator[JSONObject]:
    """The schemas of which a value follows one: each of text alone (`is_text`), or of none.

    One of which that cannot be told is given as `ANY`.
    """
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        yield ANY
        return
    several = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if "$ref" in schema:
        yield from alternatives(_resolved(str(schema["$ref"]), root), root, depth + 1)
    elif isinstance(several, list) and (len(several) == 1 or "allOf" not in schema):
        own = {"type": schema["type"]} if "type" in schema else {}
        for part in several:
            part = {**own, **part} if isinstance(part, Mapping) else part
            yield from alternatives(part, root, depth + 1)
    elif "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        texts = [value for value in values if isinstance(value, str)]
        rest = [value for value in values if not isinstance(value, str)]
        yield from ({"type": "string", "enum": texts},) * bool(texts)
        yield from ({"enum": rest},) * bool(rest)
    else:
        kinds = schema.get("type") or [None]
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            yield {**schema, "type": kind} if kind and "allOf" not in schema else ANY


def is_text(schema: JSONObject) -> bool:
    """Whether a schema of `alternatives` allows text, and nothing else."""
    return schema.get("type") == "string"


ANY_TEXT = "(?s:.*)"
"""The regular expression of any text."""


def text_regex(schema: JSONObject) -> str:
    """What a schema of text allows, as a regular expression."""
    if "enum" in schema:
        return "|".join(map(pattern, schema["enum"]))
    asked = schema.get("pattern")
    if isinstance(asked, str) and (whole := re.fullmatch(r"\^([^|]*[^|\\])\$", asked, re.DOTALL)):
        return f"(?:{within_slashes(whole[1])})"
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return f"(?s:.{{{least},{most}}})" if least or most != "" else ANY_TEXT


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
        return value in schema["enum"]
    kind = _KINDS.get(schema.get("type", ""))
    if kind is None:
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _resolved(reference: str, root: JSONObject) -> Any:
    """What a reference within the schema stands for; None where it leads nowhere."""
    if not reference.startswith("#/"):
        return None
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


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

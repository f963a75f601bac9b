"""What JSON schemas say of one value, for formats of calls that are not JSON throughout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from tierwise.runtime.chat import JSONObject
from tierwise.runtime.lark import pattern, within_slashes

ANY: JSONObject = {}
"""A schema that allows everything."""


def alternatives(schema: Any, root: JSONObject) -> list[JSONObject]:
    """The schemas of which a value follows one: each of text alone (`is_text`), or of none.

    One of which that cannot be told is given as `ANY`.
    """
    return [*_alternatives(schema, root, set())] or [ANY]


def _alternatives(schema: Any, root: JSONObject, seen: set[str]) -> Iterator[JSONObject]:
    """Each reference is followed once, so that circles end and what is wide and deep too."""
    if not isinstance(schema, Mapping):
        yield ANY
        return
    several = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if "$ref" in schema:
        reference = str(schema["$ref"])
        if reference not in seen:
            seen.add(reference)
            yield from _alternatives(_resolved(reference, root), root, seen)
    elif "properties" in schema and schema.get("type") == "object":
        yield schema  # a choice beside them is of the same object
    elif isinstance(several, list) and (len(several) == 1 or "allOf" not in schema):
        own = {"type": schema["type"]} if "type" in schema else {}
        for part in several:
            part = {**own, **part} if isinstance(part, Mapping) else part
            yield from _alternatives(part, root, seen)
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


def merged(schema: Any, root: JSONObject, known: dict[str, JSONObject] | None = None) -> JSONObject:
    """The schema of an object with the properties of all its parts (``$ref``, ``allOf``).

    Of a choice (``anyOf``, ``oneOf``) it has the properties of all parts too, and requires those
    that every part does.

    Args:
        schema: Of the object.
        root: Schema of all parameters, for references.
        known: Filled with what references stand for.
    """
    if not isinstance(schema, Mapping):
        return ANY
    known = {} if known is None else known
    parts = [merged(part, root, known) for part in schema.get("allOf") or ()]
    choices = [
        merged(part, root, known) for part in schema.get("anyOf") or schema.get("oneOf") or ()
    ]
    if "$ref" in schema:
        reference = str(schema["$ref"])
        if reference not in known:
            known[reference] = ANY  # to itself
            known[reference] = merged(_resolved(reference, root), root, known)
        parts.insert(0, known[reference])
    if not parts and not choices:
        return schema
    out = {**schema}
    for key in ("$ref", "anyOf", "oneOf", "allOf"):
        out.pop(key, None)
    found: dict[str, list[Any]] = {}
    for part in (out, *parts):
        for key, value in (part.get("properties") or {}).items():
            found.setdefault(key, [value])
    own = set(found)
    for part in choices:
        for key, value in (part.get("properties") or {}).items():
            if key not in own and value not in found.setdefault(key, []):
                found[key].append(value)
    if any("properties" in part for part in (out, *parts, *choices)):
        out["properties"] = {k: v[0] if len(v) == 1 else {"anyOf": v} for k, v in found.items()}
    always = {key for part in (out, *parts) for key in part.get("required") or ()}
    each = [set(part.get("required") or ()) for part in choices]
    out["required"] = sorted(always | (set.intersection(*each) if each else set()))
    others = [part for part in (*parts, *choices) if "additionalProperties" in part]
    for part in sorted(others, key=lambda part: part["additionalProperties"] is False):
        out.setdefault("additionalProperties", part["additionalProperties"])
    return out


def others_of(schema: JSONObject) -> JSONObject | None:
    """What an object may have beyond its properties; None for nothing, as where it lists some and
    does not say."""
    more = schema.get("additionalProperties", "properties" not in schema)
    return more if isinstance(more, Mapping) else ANY if more else None


def argument_schema(parameters: JSONObject, key: str) -> JSONObject:
    """What a tool's schema says of one argument."""
    found = (parameters.get("properties") or {}).get(key)
    return found if isinstance(found, Mapping) else others_of(parameters) or ANY


def alone(part: JSONObject, root: JSONObject) -> JSONObject:
    """A part of a schema as a schema of its own: what it refers to comes along, and no more, so
    that parts of several tools that say the same are the same."""
    names: dict[str, str] = {}
    shared: dict[str, Any] = {}

    def moved(schema: Any) -> Any:
        if isinstance(schema, list):
            return [moved(one) for one in schema]
        if not isinstance(schema, Mapping):
            return schema
        out = {key: moved(value) for key, value in schema.items()}
        reference = out.get("$ref")
        if isinstance(reference, str) and (found := _resolved(reference, root)) is not None:
            if reference not in names:
                name = names[reference] = f"part_{len(names)}"
                shared[name] = moved(_without_definitions(found))
            out["$ref"] = f"#/$defs/{names[reference]}"
        return out

    whole: JSONObject = moved(_without_definitions(part))
    return {**whole, "$defs": shared} if shared else whole


def _without_definitions(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    return {key: one for key, one in schema.items() if key not in ("$defs", "definitions")}


ANY_TEXT = "(?s:.*)"
"""The regular expression of any text."""

_LARGEST = 1_000
"""The largest count in a regular expression beside which another can be ruled out: llguidance gives
up on some thousands."""


def text_regex(schema: JSONObject) -> str:
    """What a schema of text allows, as a regular expression; more where it counts to thousands."""
    if "enum" in schema:
        return "|".join(map(pattern, schema["enum"]))
    asked = schema.get("pattern")
    counts = map(int, re.findall(r"(?<=[{,])\d+(?=[,}])", str(asked)))
    if isinstance(asked, str) and _is_whole(asked) and max(counts, default=0) <= _LARGEST:
        return f"(?:{within_slashes(asked[1:-1])})"
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    least = least if least <= _LARGEST else 0
    if most is None or (least and most > _LARGEST):
        return f"(?s:.{{{least},}})" if least else ANY_TEXT
    return f"(?s:.{{{least},{most}}})"


def text_lexeme(before: str, schema: JSONObject, after: str) -> str:
    """The lexeme (a lazy one) of a text and what stands around it.

    It ends with the first ``after``, as it is read: a text that must go on has none within.
    """
    regex, begin, end = text_regex(schema), pattern(before), pattern(after)
    ends = regex == ANY_TEXT or regex.startswith("(?s:.{0,")
    but = "" if ends else rf" & ~/(?s:{begin}.*{end}.+)/"
    return f"/{begin}(?:{regex}){end}/{but}"


def _is_whole(regex: str) -> bool:
    """Whether a regular expression is anchored at both ends."""
    if not re.fullmatch(r"\^.*\$", regex, re.DOTALL):
        return False
    # Without what is escaped, in brackets or in parentheses.
    bare, before = re.sub(r"(?s)\\.|\[(?:\\.|[^\]\\])*\]", "", regex[1:-1]), ""
    while bare != before:
        bare, before = re.sub(r"\([^()]*\)", "", bare), bare
    return "|" not in bare and not bare.endswith("\\")


def _resolved(reference: str, root: JSONObject) -> Any:
    """What a reference within the schema stands for; None where it leads nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    node: Any = root
    for part in reference.split("/")[1:]:
        part = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
    return node

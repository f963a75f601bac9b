"""When a call is right by the rules of the Berkeley Function Calling Leaderboard.

These are the rules of its ``ast_checker.py`` for Python, quirks included, in code of our own:
types are strict save that whole numbers pass for floats; strings are compared without case,
spaces and ``, . / - _ * ^``; in parallel calls order does not count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tierwise.runtime.chat import JSONObject, ToolCall

Gold = tuple[str, Mapping[str, Sequence[Any]]]
"""A right call: the function's name, and each argument's right values."""

_TYPES: Mapping[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


def right_calls(
    functions: Sequence[JSONObject], calls: Sequence[ToolCall], gold: Sequence[Gold]
) -> bool:
    """Whether each right call is among the calls once, in any order, and no others are.

    Args:
        functions: Descriptions in the leaderboard's format.
        calls: What the model replied.
        gold: The right calls.
    """
    if len(calls) != len(gold):
        return False
    left = list(calls)
    for right in gold:
        described = next((one for one in functions if one["name"] == right[0]), None)
        found = next((call for call in left if described and right_call(described, call, right)),
                     None)  # fmt: skip
        if found is None:
            return False
        left.remove(found)
    return True


def right_call(function: JSONObject, call: ToolCall, gold: Gold) -> bool:
    """Whether a call is the right one, argument by argument."""
    name, values = gold
    given = call.arguments
    properties = function["parameters"]["properties"]
    if call.name != name or any(
        needed not in given for needed in function["parameters"].get("required", ())
    ):
        return False
    for argument, value in given.items():
        if argument not in properties or argument not in values:
            return False
        if not _right_value(value, values[argument], properties[argument]):
            return False
    return all(argument in given or "" in right for argument, right in values.items())


def _right_value(value: Any, right: Sequence[Any], described: JSONObject) -> bool:
    expected = _TYPES.get(described["type"], str)
    inner = None
    if described["type"] in ("array", "tuple"):
        inner = _TYPES.get((described.get("items") or {}).get("type", "any"), str)
    if expected is float and type(value) is int:
        value = float(value)
    if not _right_type(value, right, expected, inner):
        return False
    if not _is(value, expected) or _told_otherwise(right, expected, inner):
        return value in right
    if expected is dict:
        return _right_object(value, right)
    if inner is dict:
        return any(_right_objects(value, one) for one in right)
    if expected is str:
        return _plain(value) in [_plain(one) for one in right if isinstance(one, str)]
    if expected is list:
        return [_plain(one) for one in value] in [
            [_plain(one) for one in answer] for answer in right
        ]
    return value in right


def _is(value: Any, kind: type) -> bool:
    """Of that very type: a bool is no int."""
    return type(value) is kind


def _right_type(value: Any, right: Sequence[Any], expected: type, inner: type | None) -> bool:
    """Of the type described, or of that which the right values have."""
    if _is(value, expected):
        if inner is None:
            return True
        return any(
            not isinstance(answer, list)
            or all(_right_type(one, answer, inner, None) for one in value)
            for answer in right
        )
    return type(value) is _type_of(right)


def _told_otherwise(right: Sequence[Any], expected: type, inner: type | None) -> bool:
    """Whether the right values are of another type than is described (a variable's name, say)."""
    kind = _type_of(right)
    return inner is None and kind is not None and kind is not expected


def _type_of(right: Sequence[Any]) -> type | None:
    return next((type(one) for one in right if one != ""), None)


def _right_object(value: Mapping[str, Any], right: Sequence[Any]) -> bool:
    """Whether it is one of the right objects, whose properties each list their right values."""
    return any(
        all(key in answer and _among(one, answer[key]) for key, one in value.items())
        and all(key in value or "" in values for key, values in answer.items())
        for answer in right
        if isinstance(answer, Mapping)
    )


def _right_objects(values: Sequence[Any], answer: Any) -> bool:
    return len(values) == len(answer) and all(
        isinstance(value, Mapping) and _right_object(value, [right])
        for value, right in zip(values, answer, strict=True)
    )


def _among(value: Any, right: Sequence[Any]) -> bool:
    return _plain(value) in [_plain(one) for one in right]


def _plain(value: Any) -> Any:
    """A text as it is compared; other values as they are."""
    if not isinstance(value, str):
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')

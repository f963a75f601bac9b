"""The user's own prompts as tasks: JSON lines of a call and what a right reply to it is.

Each line holds a "prompt" or "messages", perhaps "tools", "tool_choice" and "response_schema" (see
`message_json.call_from_json`), and:

- "expected": a text, a number, a JSON object or list, or ``{"tool_calls": [{"name", "args"}]}``.
  Without it the reply of the best tier is the reference: of a remote one that was asked, else of
  the one nearest to the base;
- "check": how a reply is compared, one of `CHECKS`; by default what fits the expected value;
- "group": prompts of one group are alike and stay together when data is split; by default each
  prompt is a group of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tierwise.evaluation.tasks import one_form, plain_text, same_number, same_value
from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.json_lines import read_json_lines
from tierwise.runtime.message_json import call_from_json, reply_to_json, tool_call_from

LIKE_ENOUGH = 0.6
"""F1 of the words that a text shares with the reference."""

EXAMPLE = '{"prompt": "2 + 2?", "expected": 4}'

_NUMBER = re.compile(
    r"(?:(?<!\w)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?<!\d)(?=\.\d))(?:\.\d+)?(?:e[-+]?\d+)?", re.I
)
"""With commas before groups of three digits; a hyphen behind a word is no minus."""

_OF_CALLS = ("calls", "reference")
"""Checks that judge tool calls; by the others, a reply with a call is no answer yet."""


@dataclass(frozen=True, slots=True)
class OwnTask:
    """One of the user's prompts.

    Args:
        id: Of its line, e.g. "mine.jsonl-12".
        group: See the module.
        call: What the model sees.
        expected: The right reply; None where the best tier's is the reference.
        how: One of `CHECKS`.
    """

    id: str
    group: str
    call: Call
    expected: Any
    how: str

    def check(self, reply: Reply) -> bool:
        """Whether the reply is right. Never raises, however bad the reply is."""
        if self.expected is None or (reply.tool_calls and self.how not in _OF_CALLS):
            return False
        return CHECKS[self.how](self.call, self.expected, reply)

    def against(self, reference: Reply) -> OwnTask:
        """With that reply as the right one, where none was given."""
        if self.expected is not None:
            return self
        return replace(self, expected=reply_to_json(reference), how="reference")


def read_prompts(path: Path) -> tuple[OwnTask, ...]:
    """The tasks of a file, in its order; empty lines do not count.

    Raises:
        ConfigError: The file cannot be read, or a line is no task: names file, line and cure.
    """
    tasks = tuple(
        read_json_lines(
            path, "prompt", EXAMPLE, lambda data, number: _task(data, f"{path.name}-{number}")
        )
    )
    if not tasks:
        raise ConfigError(f"{str(path)!r} holds no prompts. Write one JSON object a line.")
    return tasks


def _task(data: Any, name: str) -> OwnTask:
    call = call_from_json(data)
    expected = data.get("expected")
    how = str(data.get("check") or _usual(expected))
    if how not in CHECKS:
        raise ConfigError(f"there is no check {how!r}; there are {', '.join(CHECKS)}.")
    if how == "reference" and expected is not None:
        raise ConfigError(
            'a check of "reference" compares with the best tier\'s reply. Leave out "expected", or '
            f"take another check than {how!r}."
        )
    if how == "calls":
        calls = expected.get("tool_calls") if isinstance(expected, Mapping) else None
        if not isinstance(calls, list):
            raise ConfigError('a check of calls needs "expected": {"tool_calls": [...]}.')
        for one in calls:
            tool_call_from(one)
    if how == "number" and not _numbers(str(expected)):
        raise ConfigError(f'a check of a number needs "expected" to be one, got {expected!r}.')
    if how == "regex":
        try:
            re.compile(str(expected))
        except re.error as error:
            raise ConfigError(f"{expected!r} is no regular expression: {error}.") from error
    return OwnTask(name, str(data.get("group") or name), call, expected, how)


def _usual(expected: Any) -> str:
    if expected is None:
        return "reference"
    if isinstance(expected, Mapping) and "tool_calls" in expected:
        return "calls"
    if isinstance(expected, Mapping | list):
        return "json"
    number = isinstance(expected, int | float) and not isinstance(expected, bool)
    return "number" if number else "exact"


# --- How replies are compared ---------------------------------------------------------------------


def _calls(call: Call, expected: Any, reply: Reply) -> bool:
    """The same calls in any order: they run at once."""
    wanted = [tool_call_from(one) for one in expected["tool_calls"]]
    left = list(reply.tool_calls)
    schemas = {tool.name: tool.parameters for tool in call.tools}
    for one in wanted:
        schema = schemas.get(one.name, {})
        same = (
            at
            for at, other in enumerate(left)
            if one.name == other.name and same_value(one.arguments, other.arguments, schema)
        )
        if (found := next(same, None)) is None:
            return False
        del left[found]
    return not left


def _json(call: Call, expected: Any, reply: Reply) -> bool:
    try:
        given = json.loads(reply.text)
    except (ValueError, RecursionError):
        return False
    return same_value(expected, given, call.response_schema or {})


def _exact(_call: Call, expected: Any, reply: Reply) -> bool:
    return plain_text(str(expected)) == plain_text(reply.text)


def _contains(_call: Call, expected: Any, reply: Reply) -> bool:
    """A number at an end of the text must end there: 15 does not contain 5."""
    wanted = plain_text(str(expected))
    before = r"(?<!\d)(?<!\d\.)" if wanted[:1].isdigit() else ""
    after = r"(?!\.?\d)" if wanted[-1:].isdigit() else ""
    return re.search(before + re.escape(wanted) + after, one_form(reply.text)) is not None


def _number(_call: Call, expected: Any, reply: Reply) -> bool:
    """The last number of the text, which is where answers stand."""
    wanted, found = _numbers(str(expected)), _numbers(reply.text)
    return bool(found) and same_number(wanted[-1], found[-1])


def _numbers(text: str) -> list[float]:
    """Those in it."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return [_number_of(one.replace(",", "")) for one in found]


def _number_of(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _regex(_call: Call, expected: Any, reply: Reply) -> bool:
    return re.search(str(expected), reply.text) is not None


def _reference(call: Call, expected: Any, reply: Reply) -> bool:
    """Calls must be the same ones; texts share most of their words, and the numbers of one are
    all in the other."""
    if expected.get("tool_calls") or reply.tool_calls:
        return bool(expected.get("tool_calls")) and _calls(call, expected, reply)
    text = str(expected.get("text") or "")
    if call.response_schema is not None:
        try:
            return _json(call, json.loads(text), reply)
        except ValueError:
            return False
    here, there = (set(_numbers(one)) for one in (reply.text, text))
    if not (here <= there or there <= here):
        return False
    ours, theirs = (Counter(plain_text(one).split()) for one in (reply.text, text))
    shared = (ours & theirs).total()
    return shared > 0 and 2 * shared / (ours.total() + theirs.total()) >= LIKE_ENOUGH


CHECKS: dict[str, Callable[[Call, Any, Reply], bool]] = {
    "exact": _exact,
    "contains": _contains,
    "number": _number,
    "json": _json,
    "calls": _calls,
    "regex": _regex,
    "reference": _reference,
}
"""By name: whether a reply to a call is what was expected."""

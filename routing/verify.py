"""Looks a finished reply over: is there a sign that it is wrong?

Tool calls and structured output are valid by construction (the grammar sees to that). These
checks catch what a grammar cannot: a reply that was cut off, that says nothing, that loops, or
that does again what was done already. Each returns the problem in English, or None.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence

from tierwise.runtime.chat import Call, Message, Reply, ToolCall

Verifier = Callable[[Call, Reply], str | None]

LOOP_RATIO = 0.22
"""Text that deflates to less than this share of its length repeats itself: English prose of a
few hundred characters stays above 0.45."""

LOOP_LENGTH = 160


def says_something(call: Call, reply: Reply) -> str | None:
    """An empty reply, or none of the calls that were demanded."""
    if call.must_call and not reply.tool_calls:
        return "no tool call, though one was demanded"
    if not reply.tool_calls and not reply.text.strip():
        return "the reply is empty"
    return None


def is_whole(call: Call, reply: Reply) -> str | None:
    """Structured output that was cut off, or a tool call that did not come out as one."""
    if reply.tool_calls:
        return None
    structured = call.response_schema is not None
    if reply.finish_reason == "length" and (structured or call.must_call):
        return "the structured reply was cut off by the token limit"
    if call.usable_tools and not structured and reply.text.lstrip().startswith(("{", "<tool_call")):
        return "a tool call that was cut off or cannot be read"
    return None


def does_not_loop(call: Call, reply: Reply) -> str | None:
    """Text or arguments that go round in circles."""
    del call
    texts = [reply.text, *(json.dumps(dict(c.arguments)) for c in reply.tool_calls)]
    for text in texts:
        raw = text.encode()
        if len(raw) >= LOOP_LENGTH and len(zlib.compress(raw)) < LOOP_RATIO * len(raw):
            return "the reply repeats itself"
    return None


def is_new(call: Call, reply: Reply) -> str | None:
    """A tool call that was made already since the last user turn, with the same arguments."""
    done = _calls_since_last_user(call.messages)
    for wanted in reply.tool_calls:
        if any(_same(wanted, earlier) for earlier in done):
            return f"{wanted.name} was called with the same arguments already"
    return None


def is_grounded(call: Call, reply: Reply) -> str | None:
    """A number, or a name, in the arguments that the conversation never mentions.

    Values from an ``enum`` and booleans are choices, not copies, and single digits are often
    counted or rounded; they are left alone. Text counts as unknown when most of its words occur
    neither in the conversation nor in the tools' descriptions.
    """
    if not reply.tool_calls:
        return None
    known = _words(" ".join(m.content for m in call.messages))
    known |= {word for tool in call.usable_tools for word in _words(tool.description)}
    for wanted in reply.tool_calls:
        tool = next((t for t in call.usable_tools if t.name == wanted.name), None)
        schemas = tool.parameters.get("properties", {}) if tool else {}
        for name, value in wanted.arguments.items():
            if "enum" in schemas.get(name, {}) or isinstance(value, (bool, dict, list)):
                continue
            words = _words(str(value))
            unknown = [w for w in words if w not in known and not _is_small_number(w)]
            if words and len(unknown) > len(words) / 2:
                return f"{name}={value!r} of {wanted.name} is nowhere in the conversation"
    return None


CHECKS: dict[str, Verifier] = {
    "says_something": says_something,
    "is_whole": is_whole,
    "does_not_loop": does_not_loop,
    "is_new": is_new,
    "is_grounded": is_grounded,
}
"""All checks, in the order in which they are made."""


def verify(call: Call, reply: Reply, checks: Sequence[Verifier] = tuple(CHECKS.values())) -> str:
    """The first problem found, "" if there is none."""
    for check in checks:
        problem = check(call, reply)
        if problem is not None:
            return problem
    return ""


def _calls_since_last_user(messages: Sequence[Message]) -> list[ToolCall]:
    calls: list[ToolCall] = []
    for message in reversed(messages):
        if message.role == "user":
            break
        calls.extend(message.tool_calls)
    return calls


def _same(a: ToolCall, b: ToolCall) -> bool:
    return a.name == b.name and dict(a.arguments) == dict(b.arguments)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))


def _is_small_number(word: str) -> bool:
    return word.isdigit() and len(word) == 1

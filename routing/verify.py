"""Looks a finished reply over: is there a sign that it is wrong?

Tool calls and structured output of this machine's tiers are valid by construction (the grammar
sees to that). These checks catch what a grammar cannot: a reply that was cut off, that says
nothing, that loops, or that does again what was done already; and calls by a server that has no
grammar. Each returns the problem in English, or None.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tierwise.runtime.chat import Call, Reply, ToolCall

Verifier = Callable[[Call, Reply], str | None]

LOOP_RATIO = 0.22
"""Text that deflates to less than this share of its length repeats itself: English prose of a
few hundred characters stays above 0.45."""

LOOP_LENGTH, LOOP_TAIL = 160, 320
"""Bytes: shorter texts are not judged, and of longer ones only the end. Loops seldom end, and
the longer a table is, the better it deflates."""


FAILURES = 2
"""Of a tool in a row, after which calling it again is no plan."""

IN_COMMON = 2
"""Words that a request and a tool must have in common for a refusal to be doubted."""


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
    if reply.finish_reason == "loop":
        return "the reply repeats itself"
    if reply.finish_reason == "length" and (structured or call.must_call):
        return "the reply was cut off by its limit of tokens or seconds"
    if structured and not call.must_call and not _is_json(reply.text):
        return "the structured reply was cut off"
    if call.usable_tools and not structured and reply.begins_a_call:
        return "a tool call that was cut off or cannot be read"
    return None


def is_callable(call: Call, reply: Reply) -> str | None:
    """A call of a tool that was not offered, or one that lacks arguments or has unknown ones."""
    tools = {tool.name: tool.parameters for tool in call.usable_tools}
    for wanted in reply.tool_calls:
        if wanted.name not in tools:
            return f"{wanted.name!r} was called, which is no tool of this call"
        schema = tools[wanted.name]
        if missing := [name for name in schema.get("required", ()) if name not in wanted.arguments]:
            return f"the call of {wanted.name} lacks {', '.join(missing)}"
        if schema.get("additionalProperties") is False and "patternProperties" not in schema:
            known = schema.get("properties", {})
            unknown = [name for name in wanted.arguments if name not in known]
            if unknown:
                return f"{wanted.name} takes no {', '.join(unknown)}"
    return None


def does_not_loop(call: Call, reply: Reply) -> str | None:
    """Text or arguments that go round in circles. Names of JSON properties do not count: a list
    of records repeats them rightly."""
    structured = call.response_schema is not None and _is_json(reply.text)
    texts = [" ".join(_leaves(json.loads(reply.text))) if structured else reply.text]
    texts += [" ".join(_leaves(value)) for c in reply.tool_calls for value in c.arguments.values()]
    for text in texts:
        end = text.encode(errors="replace")[-LOOP_TAIL:]
        if len(end) >= LOOP_LENGTH and len(zlib.compress(end)) < LOOP_RATIO * len(end):
            return "the reply repeats itself"
    return None


def is_new(call: Call, reply: Reply) -> str | None:
    """A tool call that was made already since the last user turn, with the same arguments.

    To look again is right once something has happened: another tool was called since, and not
    just as before, and did not fail (run the tests, edit, run the tests).
    """
    failed = {m.tool_call_id for m in call.since_user if m.role == "tool" and m.tool_failed}
    done = [one for message in call.since_user for one in message.tool_calls]
    for wanted in reply.tool_calls:
        at = max((i for i, one in enumerate(done) if _same(wanted, one)), default=None)
        if at is None:
            continue
        happened = any(
            one.name != wanted.name
            and one.id not in failed
            and not any(_same(one, earlier) for earlier in done[:at])
            for one in done[at + 1 :]
        )
        if not happened:
            return f"{wanted.name} was called with the same arguments already"
    return None


def is_no_lost_cause(call: Call, reply: Reply) -> str | None:
    """A tool that is called once more, though its last calls since the user spoke all failed."""
    failed: dict[str, int] = {}
    for message in call.since_user:
        if message.role == "tool":
            before = failed.get(message.tool_name, 0)
            failed[message.tool_name] = before + 1 if message.tool_failed else 0
    for wanted in reply.tool_calls:
        if (times := failed.get(wanted.name, 0)) >= FAILURES:
            return f"{wanted.name} was called again, which has failed {times} times in a row"
    return None


def does_not_refuse(call: Call, reply: Reply) -> str | None:
    """Words that it cannot be done, though a tool is offered that the request speaks of.

    Speaks of: they have so many words in common as `IN_COMMON` says. English refusals only.
    """
    if reply.tool_calls or not call.usable_tools or not _REFUSAL.search(reply.text):
        return None
    if not call.messages or call.messages[-1].role != "user":
        return None
    asked = _content_words(call.messages[-1].content)
    for tool in call.usable_tools:
        about = _content_words(f"{tool.name.replace('_', ' ')} {tool.description}")
        if len(asked & about) >= IN_COMMON:
            return f"it says that it cannot, though there is {tool.name}"
    return None


def is_grounded(call: Call, reply: Reply) -> str | None:
    """A number, or a name, in the arguments that the conversation never mentions. Which it is, the
    problem does not say: logs that keep no text keep problems.

    Values that the schema lists, booleans and null are choices, not copies, and single digits
    are often counted or rounded; they are left alone. So are words in capitals, which are codes
    and key words (EUR, SELECT). Text counts as unknown when most of its words occur neither in
    the conversation nor in what the tools' descriptions and schemas say.
    """
    if not reply.tool_calls:
        return None
    texts = [m.content for m in call.messages]
    texts += [t.description for t in call.usable_tools]
    texts += [text for t in call.usable_tools for text in _said(t.parameters)]
    known = _words("\n".join(texts))
    for wanted in reply.tool_calls:
        for name, value in wanted.arguments.items():
            if value is None or isinstance(value, (bool, dict, list)):
                continue
            words = _words(_CODE.sub(" ", str(value)))
            unknown = [w for w in words if w not in known and not _is_small_number(w)]
            if len(unknown) > len(words) / 2:
                return f"the {name} for {wanted.name} is nowhere in the conversation"
    return None


CHECKS: dict[str, Verifier] = {
    "says_something": says_something,
    "is_whole": is_whole,
    "is_callable": is_callable,
    "does_not_loop": does_not_loop,
    "is_new": is_new,
    "is_no_lost_cause": is_no_lost_cause,
    "does_not_refuse": does_not_refuse,
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


def _same(a: ToolCall, b: ToolCall) -> bool:
    return a.name == b.name and dict(a.arguments) == dict(b.arguments)


_REFUSAL = re.compile(
    r"\b(?:I|we)(?: am|'m|’m)? (?:can ?not|can['’]t|not able to|unable to|could(?:n['’]t| not)"
    r"|do(?:n['’]t| not) have (?:access|the ability|a (?:tool|function|way)))"
    r"|\bas an AI\b|\bno (?:tool|function)\b",
    re.IGNORECASE,
)
_SHORT = 4
"""Letters of a word that says something; shorter ones are mostly grammar."""


def _content_words(text: str) -> set[str]:
    """Words of some length, without an s at their end."""
    return {word.removesuffix("s") for word in _words(text) if len(word) >= _SHORT}


# Scripts without spaces, and Korean, whose words carry endings: each letter counts as a word.
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7ff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_DENSE}]|[^\W\d_{_DENSE}]+|\d+")
_GROUPED = re.compile(r"(?<=\d)[,.'’ \u00a0\u202f](?=\d{3}(?!\d))")
_DIGITS = re.compile(r"\d+")
_CODE = re.compile(r"\b[A-Z]{2,}\b")


def _words(text: str) -> set[str]:
    """Words without case and accents, and numbers with and without their thousands marks."""
    plain = text.casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain)
        plain = "".join(c for c in plain if not unicodedata.category(c).startswith("M"))
        plain = unicodedata.normalize("NFC", plain)
    found = set(_WORD.findall(plain))
    ungrouped, marks = _GROUPED.subn("", plain)
    if marks or not plain.isascii():  # Thai digits, say, are letters of a dense script above
        found.update(_DIGITS.findall(ungrouped))
    return {_number(word) if word.isdecimal() else word for word in found}


def _number(digits: str) -> str:
    """In ASCII and without leading zeros ("05" of a date is 5)."""
    return "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0") or "0"


def _is_small_number(word: str) -> bool:
    return word.isdecimal() and len(word) == 1


def _said(schema: Any) -> Iterator[str]:
    """Descriptions and listed values of a schema, at any depth."""
    if isinstance(schema, (dict, Mapping)):  # dict first: asking an ABC takes ten times as long
        for name, part in schema.items():
            if name in ("description", "enum", "const", "default") and not isinstance(part, dict):
                yield json.dumps(part, ensure_ascii=False)
            elif not isinstance(part, str):
                yield from _said(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from _said(part)


def _leaves(value: Any) -> Iterator[str]:
    """The values in JSON, without the names of properties; no recursion, as models nest deeply."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            parts.extend(reversed([*part.values()]))
        elif isinstance(part, list | tuple):
            parts.extend(reversed(part))
        else:
            yield str(part)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True

"""Requests for tools in words, and conversations made of several of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tierwise.compression.distillation.conversations import Conversation, identified
from tierwise.compression.distillation.python_tools import PythonTool, python_tools
from tierwise.compression.distillation.values import draw_arguments, joined, say
from tierwise.runtime.chat import Message, Tool, ToolCall

TURNS = (1, 2, 3, 4, 6, 8)
"""Requests of a conversation, drawn from these; what is too long in the end is cut off."""

_OFFERED = (1, 1, 1, 2, 2, 3, 4)
_STRANGE = 0.07
"""How often a request asks for what none of the tools can do."""

_TOLD = 0.75
"""How often the last result of a conversation is told as well."""


class Askable(Protocol):
    """A tool together with how people ask for it."""

    @property
    def tool(self) -> Tool:
        """What is offered."""

    def ask(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """A request, and the arguments that are right for it."""

    def result(self, rng: random.Random) -> tuple[str, str]:
        """What the tool might give back, and how that is told."""


@dataclass(frozen=True, slots=True)
class AskedPython:
    """A function of the standard library, asked for in the words of its docstring."""

    of: PythonTool

    @property
    def tool(self) -> Tool:
        return self.of.tool

    def ask(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        values = draw_arguments(self.of.arguments, rng, optional=0.3)
        said = {one.name: one.said for one in self.of.arguments}
        request = _with_values(_wish(self.of.does, rng), values, said, rng)
        if rng.random() < 0.15:
            request += f" Use {self.tool.name}." if rng.random() < 0.5 else " Thanks."
        return request, values

    def result(self, rng: random.Random) -> tuple[str, str]:
        does = self.of.does.lower()
        if "true if" in does or "whether" in does:
            yes = rng.random() < 0.5
            return ("True", "Yes, it is.") if yes else ("False", "No, it is not.")
        if self.of.module in ("math", "cmath", "statistics", "decimal", "random", "operator"):
            number = rng.choice((rng.randint(-9, 400), round(rng.uniform(-5, 90), 3)))
            return str(number), rng.choice((f"The result is {number}.", f"It is {number}."))
        if does.split()[0].rstrip("s") in ("return", "get", "find", "convert", "decode", "encode"):
            value = rng.choice(("report_old.txt", "42", "['a', 'b']", "ok", "north", "0x1f", "3.5"))
            return value, rng.choice((f"The result is {value}.", f"I got this: {value}"))
        return rng.choice((("None", "Done."), ("ok", "That is done.")))


def python_clusters(rng: random.Random, size: int = 5) -> list[tuple[str, tuple[Askable, ...]]]:
    """Named groups of functions, mostly from one module; each function is in one of them."""
    tools = list(python_tools())
    by_module: dict[str, list[PythonTool]] = {}
    for tool in tools:
        by_module.setdefault(tool.module, []).append(tool)
    clusters: list[tuple[str, tuple[Askable, ...]]] = []
    rest: list[PythonTool] = []
    for module, members in by_module.items():
        rng.shuffle(members)
        whole = len(members) // size * size
        for at in range(0, whole, size):
            group = tuple(AskedPython(one) for one in members[at : at + size])
            clusters.append((f"python-{module}-{at // size}", group))
        rest += members[whole:]
    for at in range(0, len(rest), size):
        group = tuple(AskedPython(one) for one in rest[at : at + size])
        clusters.append((f"python-mixed-{at // size}", group))
    rng.shuffle(clusters)
    return clusters


def tool_conversations(
    clusters: Sequence[tuple[str, tuple[Askable, ...]]], source: str, rng: random.Random
) -> Iterator[Conversation]:
    """Conversations without end, one cluster after the other.

    Of each cluster some tools are offered, and one or several requests for them follow each
    other, each with its call, the tool's result and the answer. Now and then a request is from
    another cluster, and is declined.
    """
    while clusters:
        for place, (name, members) in enumerate(clusters):
            strangers = clusters[place - 1][1] if len(clusters) > 1 else ()
            yield _conversation(name, members, strangers, source, rng)


def _conversation(
    group: str,
    members: Sequence[Askable],
    strangers: Sequence[Askable],
    source: str,
    rng: random.Random,
) -> Conversation:
    offered = rng.sample(members, min(rng.choice(_OFFERED), len(members)))
    messages: list[Message] = []
    seen: set[str] = set()
    turns = rng.choice(TURNS)
    for turn in range(turns):
        strange = bool(strangers) and rng.random() < _STRANGE
        asked = rng.choice(strangers if strange else offered)
        request, arguments = asked.ask(rng)
        if request in seen:
            continue
        seen.add(request)
        messages.append(Message("user", request))
        if strange:
            messages.append(Message("assistant", _declined(offered, rng)))
            continue
        call = ToolCall(asked.tool.name, arguments)
        messages.append(Message("assistant", tool_calls=(call,)))
        if turn == turns - 1 and rng.random() > _TOLD:
            break
        result, told = asked.result(rng)
        messages += [
            Message("tool", result, tool_name=asked.tool.name),
            Message("assistant", told),
        ]
    return Conversation(
        tuple(identified(messages)), source, group, tools=tuple(one.tool for one in offered)
    )


def _declined(offered: Sequence[Askable], rng: random.Random) -> str:
    has = joined([one.tool.name for one in offered])
    return rng.choice((
        "I cannot do that with the functions that I have.",
        "None of my functions can do that.",
        f"I am sorry, I only have {has}, which cannot do that.",
        "Sorry, there is no function for that here.",
    ))  # fmt: skip


# --- A request in words ---------------------------------------------------------------------------

_GIVING = ("return", "give", "get", "compute", "calculate", "find")
_WANTED = (
    "Give me {what}", "I need {what}", "Tell me {what}", "Find {what}", "What is {what}?",
    "Please get {what}", "Could you work out {what}?", "Show me {what}", "I want to know {what}",
    "Determine {what}", "Can you get me {what}?", "Compute {what}", "I would like {what}",
)  # fmt: skip
_WANTED_DONE = (
    "{Do}", "Please {do}", "Can you {do}?", "I want you to {do}", "Could you {do}?", "{Do} for me",
    "I need you to {do}", "Would you {do}, please?", "Next, {do}", "Now {do}", "Help me {do}",
)  # fmt: skip


def _wish(does: str, rng: random.Random) -> str:
    """A docstring's first sentence as a wish: "Return the sum" becomes "Tell me the sum"."""
    first, _, rest = does.partition(" ")
    verb = first.lower()
    third = verb.endswith("s") and not verb.endswith(("ss", "us", "is"))
    verb = verb.removesuffix("s") if third else verb
    if verb in _GIVING and rest.split()[0] in ("the", "a", "an", "all", "whether"):
        form = rng.choice(_WANTED)
        form = "Tell me {what}" if rest.startswith("whether") else form
        return form.format(what=rest)
    if verb == "return" and rest.lower().startswith("true if "):
        condition = rest[8:].split(",")[0]
        return rng.choice(
            ("Check whether {c}", "Is it so that {c}?", "Tell me whether {c}")
        ).format(c=condition)
    done = f"{verb} {rest}" if first.istitle() else does
    return rng.choice(_WANTED_DONE).format(do=done, Do=done[:1].upper() + done[1:])


def _with_values(
    wish: str, values: Mapping[str, Any], said: Mapping[str, str], rng: random.Random
) -> str:
    """A wish with the values that it is about."""
    question = wish.endswith("?")
    bare = wish.rstrip("?.")
    end = "?" if question else "."
    pairs = [(said[name], say(value, rng)) for name, value in values.items()]
    style = rng.randrange(7)
    if style == 0:
        told = joined([f"{name} = {value}" for name, value in pairs])
        return f"{bare} with {told}{end}"
    if style == 1:
        told = joined([f"the {name} is {value}" for name, value in pairs])
        return f"{bare}, where {told}{end}"
    if style == 2:
        told = joined([f"{value} as the {name}" for name, value in pairs])
        return f"{bare}, using {told}{end}"
    if style == 3:
        told = " ".join(f"The {name} is {value}." for name, value in pairs)
        return f"{bare}{end} {told}"
    if style == 4:
        told = joined([f"{name} {value}" for name, value in pairs])
        wished = bare if bare.startswith("I ") else bare[:1].lower() + bare[1:]
        return f"For {told}: {wished}{end}"
    if style == 5:
        told = ", ".join(f"{name}: {value}" for name, value in pairs)
        return f"{bare} ({told}){end}"
    told = joined([f"{name} {value}" for name, value in pairs])
    return f"{bare} for {told}{end}"

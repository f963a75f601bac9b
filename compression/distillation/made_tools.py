"""Reads the table of made tools, and varies them: names, what is described, what is asked."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from tierwise.compression.distillation.made_tool_arguments import ARGUMENTS
from tierwise.compression.distillation.made_tool_table import TOOLS
from tierwise.compression.distillation.tool_requests import Askable
from tierwise.compression.distillation.values import (
    Argument,
    Draw,
    draw_arguments,
    joined,
    nested,
    one_of,
    real,
    say,
    several,
    tool_schema,
    truth,
    whole,
    words,
)
from tierwise.runtime.chat import JSONObject, Tool

_HEAD = re.compile(r"(\w+)\(([^)]*)\): (.+)")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_MONEY = frozenset(["price", "max_price", "budget", "amount", "loan", "down_payment", "income"])
_DOLLARS = 0.4
"""How often a sum is said with a sign before it: the argument is the number alone."""
_VERBS = ("get", "find", "compute", "do", "run", "api", "tools", "service")


@dataclass(frozen=True, slots=True)
class MadeTool:
    """A tool of the table.

    Args:
        name: Of the tool.
        description: Of what it does.
        arguments: In the order of the schema.
        requests: Patterns of requests.
    """

    name: str
    description: str
    arguments: tuple[Argument, ...]
    requests: tuple[str, ...]

    @property
    def tool(self) -> Tool:
        return Tool(self.name, self.description, tool_schema(self.arguments))

    def ask(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """A request, and the arguments that it names."""
        pattern = rng.choice(self.requests)
        named = set(_SLOT.findall(pattern)) | set(re.findall(r"\[(\w+)\?", pattern))
        usable = [one for one in self.arguments if one.name in named]
        values = draw_arguments(usable, rng, optional=0.45)
        said = {
            name: value if isinstance(value, str) else _plainly(value, rng)
            for name, value in values.items()
        }
        if rng.random() < _DOLLARS and "currency" not in values:
            said |= {name: f"${said[name]}" for name in _MONEY & said.keys()}
        return _filled(pattern, values, said), values

    def result(self, rng: random.Random) -> tuple[str, str]:
        """A made-up result."""
        verb = self.name.replace(".", "_").split("_")[0].lower()
        if verb in ("send", "add", "set", "book", "move", "save", "start", "switch", "order"):
            return rng.choice((("ok", "Done."), ('{"status": "done"}', "That is done.")))
        number = rng.choice((rng.randint(2, 900), round(rng.uniform(1, 99), 2)))
        return rng.choice((
            (str(number), f"The result is {number}."),
            (f'{{"value": {number}}}', f"It is {number}."),
            (f"{rng.randint(2, 9)} results", "I found some for you."),
        ))  # fmt: skip


@cache
def made_tools() -> tuple[MadeTool, ...]:
    """The tools of the table, in its order."""
    arguments = _arguments()
    made: list[MadeTool] = []
    for line in _lines(TOOLS):
        if line.startswith(" "):
            made[-1] = replace(made[-1], requests=(*made[-1].requests, line.strip()))
            continue
        match = _HEAD.fullmatch(line)
        assert match, line
        names = [name.strip() for name in match[2].split(",")]
        # Arguments that no line describes are offered and never asked for.
        parts = tuple(
            replace(arguments.get(name.rstrip("?")) or _unknown(name.rstrip("?")),
                    required=not name.endswith("?"))
            for name in names
        )  # fmt: skip
        made.append(MadeTool(match[1], match[3], parts, ()))
    return tuple(made)


def made_clusters(
    rng: random.Random, size: int = 4, rounds: int = 6
) -> list[tuple[str, tuple[Askable, ...]]]:
    """Named groups of varied tools: in each round every tool is in one group, in another form.

    Groups of one name hold the same tools in every round, so that what is held out is new.
    """
    tools = list(made_tools())
    rng.shuffle(tools)
    groups = [tools[at : at + size] for at in range(0, len(tools), size)]
    clusters: list[tuple[str, tuple[Askable, ...]]] = []
    for _ in range(rounds):
        for number, group in enumerate(groups):
            varied: tuple[Askable, ...] = tuple(vary(one, rng) for one in group)
            clusters.append((f"made-{number}", varied))
    return clusters


def vary(made: MadeTool, rng: random.Random) -> MadeTool:
    """The same tool in other clothes: name style, argument descriptions, defaults, order."""
    style = rng.randrange(4)
    parts = made.name.split("_")
    name = made.name
    if style == 1:
        name = parts[0] + "".join(part.capitalize() for part in parts[1:])
    elif style == 2:
        name = f"{parts[-1]}.{'_'.join(parts[:-1]) or rng.choice(_VERBS)}"
    elif style == 3:
        name = f"{rng.choice(_VERBS)}_{made.name}"
    arguments = [one if rng.random() < 0.75 else _undescribed(one) for one in made.arguments]
    arguments = [
        _with_default(one, rng) if not one.required and rng.random() < 0.4 else one
        for one in arguments
    ]
    if rng.random() < 0.2:
        rng.shuffle(arguments)
    ending = rng.choice(("", "", " Values are checked.", " Fails where nothing is found."))
    description = made.description.rstrip(".") + rng.choice((".", "")) + ending
    return replace(made, name=name, arguments=tuple(arguments), description=description)


def _undescribed(argument: Argument) -> Argument:
    schema = {key: value for key, value in argument.schema.items() if key != "description"}
    return replace(argument, schema=schema)


def _with_default(argument: Argument, rng: random.Random) -> Argument:
    """With a default in its description; requests name other values."""
    kind = argument.schema["type"]
    if kind in ("object", "array"):
        return argument
    default, draw = argument.draw(rng), argument.draw
    if kind == "boolean":
        default, draw = False, lambda _rng: True

    def other(rng: random.Random) -> Any:
        values = (draw(rng) for _ in range(20))
        return next((value for value in values if value != default), draw(rng))

    before = argument.schema.get("description")
    told = f"{before} (default {default})" if before else f"Default {default}"
    return replace(argument, schema={**argument.schema, "description": told}, draw=other)


def _plainly(value: Any, rng: random.Random) -> str:
    """A value within a sentence."""
    if isinstance(value, Mapping):
        keys = set(value)
        if keys == {"latitude", "longitude"}:
            return f"{value['latitude']}, {value['longitude']}"
        if keys == {"date", "until"}:
            return f"{value['date']} and {value['until']}"
        return joined([f"{name.replace('_', ' ')} {one}" for name, one in value.items()])
    return say(value, rng)


def _filled(pattern: str, values: Mapping[str, Any], said: Mapping[str, str]) -> str:
    def part(match: re.Match[str]) -> str:
        inner = match[1]
        flag = re.match(r"(\w+)\?(.*)\|(.*)", inner)
        if flag:
            yes, no = flag[2], flag[3]
            return "" if flag[1] not in values else (yes if values[flag[1]] else no)
        return inner if all(name in values for name in _SLOT.findall(inner)) else ""

    text = _SLOT.sub(lambda match: said[match[1]], _OPTIONAL.sub(part, pattern))
    text = re.sub(r"([.?!])\1+", r"\1", re.sub(r"\s+([.,?])", r"\1", text)).strip()
    return text[:1].upper() + text[1:]


# --- The table's arguments ------------------------------------------------------------------------


@cache
def _arguments() -> Mapping[str, Argument]:
    found: dict[str, Argument] = {}
    for line in _lines(ARGUMENTS):
        name, kind, *rest = line.split(": ", 3)
        if kind in ("text", "texts", "choice"):
            values, description = rest[0].split(", "), rest[1]
        else:
            values, description = [], rest[0]
        schema, draw = _kind(kind, values, found)
        found[name] = Argument(name, {**schema, "description": description}, draw)
    return MappingProxyType(found)


def _kind(
    kind: str, values: Sequence[str], known: Mapping[str, Argument]
) -> tuple[JSONObject, Draw]:
    word, *numbers = kind.split()
    if word == "text":
        return words(*values)
    if word == "choice":
        return one_of(*values)
    if word == "texts":
        return several(words(*values), 4)
    if word == "boolean":
        return truth()
    if word == "object":
        parts = [replace(known[one.rstrip("?")], required=not one.endswith("?")) for one in numbers]
        return nested(parts)
    low, high = map(float, numbers)
    if word == "integer":
        return whole(int(low), int(high))
    if word == "integers":
        return several(whole(int(low), int(high)))
    return real(low, high) if word == "number" else several(real(low, high))


def _lines(table: str) -> list[str]:
    """The table's lines, those that were wrapped whole again."""
    return re.sub(r"\n {8}", " ", table.strip()).splitlines()


def _unknown(name: str) -> Argument:
    schema, draw = words("")
    return Argument(name, {**schema, "description": name.replace("_", " ").capitalize()}, draw)

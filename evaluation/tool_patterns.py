"""Tools, forms and phrasings: what a catalogue of tasks is made of.

A phrasing is a text with slot names in braces, and it decides by itself what is right: the
gold arguments are the slots that it names, no others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tierwise.evaluation.tasks import GRADES, Grade
from tierwise.evaluation.tool_slots import Slot, object_schema
from tierwise.runtime.chat import Tool


@dataclass(frozen=True, slots=True)
class Pattern:
    """A tool or a form: slots, and phrasings by grade.

    Easy phrasings name 1 or 2 slots, medium ones 2 or 3, hard ones 3 or more. Arrays, nested
    objects and booleans are in hard ones only. Every phrasing of a tool names all that is
    required; a form's schema is made to fit the phrasing.
    """

    name: str
    description: str
    slots: Mapping[str, Slot]
    texts: Mapping[Grade, tuple[str, ...]]

    def phrasings(self, grade: Grade) -> tuple[str, ...]:
        """Those of one grade; a tool with many required arguments has no easy ones."""
        return self.texts[grade]

    @property
    def tool(self) -> Tool:
        """The tool as a call offers it."""
        return Tool(self.name, self.description, object_schema(self.slots))


@dataclass(frozen=True, slots=True)
class Domain:
    """Tools of one field.

    Args:
        name: Of the field.
        tools: Close siblings, but no request fits two of them.
        beyond: Requests from the field that none of its tools can serve, each with what it
            asks for, in words that follow "I cannot". ``{city}`` and such stand for names.
    """

    name: str
    tools: tuple[Pattern, ...]
    beyond: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Talk:
    """Questions that need no tool, with their answers; both name the columns of ``rows``."""

    questions: tuple[str, ...]
    answer: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All that one split is generated from."""

    names: Mapping[str, tuple[str, ...]]
    domains: tuple[Domain, ...]
    forms: tuple[Pattern, ...]
    talks: tuple[Talk, ...]
    instructions: tuple[str, ...]
    """How a form's text is introduced; ``{name}`` is the form's name."""
    openings: tuple[str, ...]
    """Put before a request."""
    endings: tuple[str, ...]
    """Put after a request."""
    systems: tuple[str, ...]
    """System messages; "" stands for none."""
    refusals: tuple[str, ...]
    """Gold replies where no tool fits; ``{what}`` is what was asked for."""
    menu: tuple[Pattern, ...] = ()
    """All that is offered in each call; empty where each has tools of its own."""


def pattern(words: str, /, **slots: Slot) -> Pattern:
    """A pattern from its words and its slots.

    Args:
        words: `entries`. The first is the name, with the required slots in parentheses, and
            the description; the others are phrasings, each under its grade.
        slots: In the order of the schema.
    """
    (signature, description), *phrasings = entries(words)
    match = re.fullmatch(r"(\w+)\(([\w, ]+)\)", signature)
    assert match, signature
    required = match[2].split(", ")
    return Pattern(
        match[1],
        description,
        {name: replace(slot, optional=name not in required) for name, slot in slots.items()},
        {grade: tuple(said for of, said in phrasings if of == grade) for grade in GRADES},
    )


def domain(name: str, beyond: str, /, *tools: Pattern) -> Domain:
    """A domain from its name, `entries` of what is beyond it, and its tools."""
    return Domain(name, tools, tuple((request, what) for what, request in entries(beyond)))


def entries(words: str) -> list[tuple[str, str]]:
    """Reads lines of the form ``key: text``; an indented line goes on with the one before."""
    joined = re.sub(r"\n +", " ", inspect.cleandoc(words))
    pairs = [line.partition(": ") for line in joined.splitlines()]
    return [(key, said) for key, _, said in pairs]


def pools(words: str) -> dict[str, tuple[str, ...]]:
    """Reads lines of the form ``name: value, value``."""
    return {name: tuple(values.split(", ")) for name, values in entries(words)}

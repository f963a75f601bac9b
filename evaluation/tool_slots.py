"""Slots: the arguments of tools and the fields of forms.

A slot has a JSON schema, and a way to draw a value together with the words that say it.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tierwise.evaluation.tasks import Grade
from tierwise.runtime.chat import JSONObject


@dataclass(frozen=True, slots=True)
class Drawn:
    """One value, as JSON and as a request says it."""

    value: Any
    said: str


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument or field.

    Args:
        schema: JSON schema of the value.
        draw: Draws a value. Below grade hard it is said as it is written in JSON.
        optional: Whether a call may leave it out.
    """

    schema: JSONObject
    draw: Callable[[random.Random, Grade], Drawn]
    optional: bool = False


def text(description: str, pool: Sequence[str]) -> Slot:
    """A string from a pool, said verbatim."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        value = rng.choice(pool)
        return Drawn(value, value)

    return Slot({"type": "string", "description": description}, draw)


def choice(description: str, *values: str) -> Slot:
    """A string from a closed set, said verbatim."""
    slot = text(description, values)
    return replace(slot, schema={**slot.schema, "enum": list(values)})


def integer(
    description: str,
    values: Sequence[int],
    unit: str = "",
    spoken: Mapping[str, int] | None = None,
) -> Slot:
    """A whole number, said in digits before its unit; at grade hard perhaps in other words.

    Args:
        description: For the schema; names the unit that counts.
        values: To draw from; with a unit none may be 1, for the unit is a plural.
        unit: Said after the digits.
        spoken: Other words, unit included, with the number that they mean: "half an hour", 30.
    """

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        if grade == "hard" and spoken and rng.random() < 0.6:
            words = rng.choice(list(spoken))
            return Drawn(spoken[words], words)
        value = rng.choice(values)
        return Drawn(value, f"{value} {unit}".strip())

    return Slot({"type": "integer", "description": description}, draw)


def number(description: str, values: Sequence[float], unit: str = "") -> Slot:
    """A number with at most two decimals, said in digits before its unit."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        value = rng.choice(values)
        return Drawn(value, f"{value} {unit}".strip())

    return Slot({"type": "number", "description": description}, draw)


def flag(description: str, yes: str, no: str) -> Slot:
    """A boolean, said by one of two clauses."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        value = rng.random() < 0.5
        return Drawn(value, yes if value else no)

    return Slot({"type": "boolean", "description": description}, draw)


def texts(description: str, pool: Sequence[str], most: int = 3) -> Slot:
    """An array of 2 to ``most`` different strings, said as "a, b and c"."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        values = rng.sample(pool, rng.randint(2, most))
        return Drawn(values, f"{', '.join(values[:-1])} and {values[-1]}")

    items = {"type": "string"}
    return Slot({"type": "array", "items": items, "description": description}, draw)


def record(description: str, said: str, **slots: Slot) -> Slot:
    """A nested object whose properties are all required; ``said`` is its phrasing."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        drawn = draw_slots(slots, tuple(slots), rng, grade)
        values = {name: one.value for name, one in drawn.items()}
        return Drawn(values, said.format(**{name: one.said for name, one in drawn.items()}))

    return Slot({**object_schema(slots), "description": description}, draw)


def with_default(slot: Slot, default: Any) -> Slot:
    """The slot with a default in its schema, which is never drawn.

    (Whether a call spells a default out or leaves it out must not matter.)
    """

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        while (drawn := slot.draw(rng, grade)).value == default:
            pass
        return drawn

    return Slot({**slot.schema, "default": default}, draw)


def object_schema(slots: Mapping[str, Slot]) -> dict[str, Any]:
    """The JSON schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {name: dict(slot.schema) for name, slot in slots.items()},
        "required": [name for name, slot in slots.items() if not slot.optional],
        "additionalProperties": False,
    }


def draw_slots(
    slots: Mapping[str, Slot], names: Sequence[str], rng: random.Random, grade: Grade
) -> dict[str, Drawn]:
    """Draws the named slots, in the order of ``slots``; no two say the same.

    (A flight from Oslo to Oslo would leave the order of its arguments open.)
    """
    drawn: dict[str, Drawn] = {}
    for name, slot in slots.items():
        if name in names:
            one = slot.draw(rng, grade)
            while any(one.said == other.said for other in drawn.values()):
                one = slot.draw(rng, grade)
            drawn[name] = one
    return drawn


def slot_names(phrasing: str) -> tuple[str, ...]:
    """The slots that a phrasing names in braces."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(phrasing) if name)

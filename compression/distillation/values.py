"""Arguments of made-up requests: their schemas, and values with the words that say them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierwise.runtime.chat import JSONObject

Draw = Callable[[random.Random], Any]

_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SPELLED = 0.08
"""How often a small whole number is said in words."""

_GROUPED = 0.5
"""How often a number of five or more digits is said with commas: 250,000."""

_ON = ("true", "on", "yes", "enabled")
_OFF = ("false", "off", "no", "disabled")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a tool.

    Args:
        name: As the tool has it.
        schema: JSON schema of its value; its description is what the model is told.
        draw: Draws a value.
        required: Whether a call must give it.
        words: How people call it; the name without underscores where empty.
    """

    name: str
    schema: JSONObject
    draw: Draw
    required: bool = True
    words: str = ""

    @property
    def said(self) -> str:
        return self.words or self.name.replace("_", " ").strip()


def tool_schema(arguments: Sequence[Argument]) -> dict[str, Any]:
    """The JSON schema of a tool with these arguments."""
    return {
        "type": "object",
        "properties": {one.name: dict(one.schema) for one in arguments},
        "required": [one.name for one in arguments if one.required],
        "additionalProperties": False,
    }


def whole(low: int, high: int) -> tuple[JSONObject, Draw]:
    """Whole numbers; round ones come often."""

    def draw(rng: random.Random) -> int:
        value = rng.randint(low, high)
        return value - value % 10 if high > 200 and value > 20 and rng.random() < 0.6 else value

    return {"type": "integer"}, draw


def real(low: float, high: float) -> tuple[JSONObject, Draw]:
    """Numbers with up to three decimals, sometimes none."""

    def draw(rng: random.Random) -> float | int:
        if high - low > 3 and rng.random() < 0.35:
            return rng.randint(int(low), int(high))
        return round(rng.uniform(low, high), rng.choice((1, 1, 2, 2, 3)))

    return {"type": "number"}, draw


def one_of(*values: str) -> tuple[JSONObject, Draw]:
    """A text from a closed set."""
    return {"type": "string", "enum": list(values)}, lambda rng: rng.choice(values)


def words(*values: str) -> tuple[JSONObject, Draw]:
    """A text, drawn from these."""
    return {"type": "string"}, lambda rng: rng.choice(values)


def truth() -> tuple[JSONObject, Draw]:
    return {"type": "boolean"}, lambda rng: rng.random() < 0.6


def several(of: tuple[JSONObject, Draw], most: int = 5) -> tuple[JSONObject, Draw]:
    """An array of 2 to ``most`` values."""
    items, draw_one = of

    def draw(rng: random.Random) -> list[Any]:
        drawn = [draw_one(rng) for _ in range(rng.randint(2, most))]
        return drawn if items["type"] != "string" else list(dict.fromkeys(drawn))

    return {"type": "array", "items": items}, draw


def nested(parts: Sequence[Argument]) -> tuple[JSONObject, Draw]:
    """An object of the required parts and of some optional ones."""

    def draw(rng: random.Random) -> dict[str, Any]:
        return {p.name: p.draw(rng) for p in parts if p.required or rng.random() < 0.5}

    return tool_schema(parts), draw


def draw_arguments(
    arguments: Sequence[Argument], rng: random.Random, *, optional: float
) -> dict[str, Any]:
    """Values for all required arguments, and for the others by chance; at least one in all."""
    chosen = [one for one in arguments if one.required or rng.random() < optional]
    drawn = {one.name: one.draw(rng) for one in chosen or arguments[:1]}
    return {name: value for name, value in drawn.items() if value != {}}


def say(value: Any, rng: random.Random) -> str:
    """A value as a request says it."""
    if isinstance(value, bool):
        return rng.choice(_ON if value else _OFF)
    if isinstance(value, int) and 0 <= value <= 10 and rng.random() < _SPELLED:
        return _SMALL[value]
    if isinstance(value, int | float) and value >= 10_000 and rng.random() < _GROUPED:
        return f"{value:,}"
    if isinstance(value, str):
        quote = rng.choice(("'", '"', ""))
        return f"{quote}{value}{quote}" if quote not in value else value
    if isinstance(value, Mapping):
        return joined([f"{name.replace('_', ' ')} {say(v, rng)}" for name, v in value.items()])
    if isinstance(value, list):
        if rng.random() < 0.5 and not any(isinstance(one, dict) for one in value):
            return json.dumps(value, ensure_ascii=False)
        return joined([one if isinstance(one, str) else say(one, rng) for one in value])
    return str(value)


def joined(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

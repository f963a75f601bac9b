"""Scales with round ticks, and the frame that a plot draws them on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

from tierwise.compression.report.svg import group, line, text

LETTER = 6.1
"""Width of an average letter of the plots' 11 px type."""

SMALLEST = 1e-6
"""Nothing below is told from 0 on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values lie on an axis.

    Args:
        low: Value at ``start``; the larger one of an axis that is turned round.
        high: Value at ``end``.
        start: Pixels.
        end: Pixels; less than ``start`` for an axis that runs up or leftwards.
        log: Equal factors are equally far apart.
        ticks: Values with their labels.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Pixels. Values beyond the axis (0 on a logarithmic one) lie at its end."""
        low, high = self.low, self.high
        value = min(max(value, min(low, high)), max(low, high))
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    ticks: int = 5,
    within: tuple[float, float] = (-math.inf, math.inf),
    label: Callable[[float], str] | None = None,
) -> Scale:
    """A scale with ticks at 1, 2 or 5 times a power of ten, and some air around the values.

    Args:
        ticks: About how many.
        within: What the quantity can be at all, such as 0 to 1 for a share.
        label: Writes a tick; plain numbers if not given.
    """
    found = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(found), max(found)
    if high - low < 1e-12 * max(1.0, abs(high)):
        room = abs(high) * 0.1 or 0.5
        low, high = max(low - room, within[0]), min(high + room, within[1])
    air = 0.06 * (high - low)
    low, high = max(low - air, within[0]), min(high + air, within[1])
    step = _nice_step((high - low) / ticks)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    marks = [round(number * step, 12) for number in range(first, last + 1)]
    write = label or (lambda value: f"{value:,.{places}f}")
    return Scale(low, high, start, end, False, tuple((mark, write(mark)) for mark in marks))


def log_scale(values: Iterable[float], start: float, end: float) -> Scale:
    """A logarithmic scale; values of 0 lie at its low end, which is then called 0."""
    found = [value for value in values if math.isfinite(value)]
    above = [value for value in found if value > SMALLEST] or [0.1, 1.0]
    low, high = min(above), max(above)
    if len(above) < len(found):
        low /= 4
        high *= 1.3
        zero = [(low, "0")]
        first = low * 2
    else:
        room = max((high / low) ** 0.07, 1.12)
        low, high = low / room, high * room
        zero = []
        first = low
    marks = _log_marks(first, high)
    return Scale(low, high, start, end, True, (*zero, *((mark, f"{mark:g}") for mark in marks)))


def spread_scale(values: Iterable[float], start: float, end: float, *, ticks: int = 5) -> Scale:
    """Linear, or logarithmic where the values differ by more than a factor of eight."""
    found = [value for value in values if math.isfinite(value)]
    if found and min(found) > 0 and max(found) / min(found) > 8:
        return log_scale(found, start, end)
    return linear_scale(found, start, end, ticks=ticks, within=(0, math.inf))


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _log_marks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times them where there are few of those."""
    decades = math.log10(high / low)
    factors = (1,) if decades > 3.2 else (1, 2, 5) if decades > 0.75 else (1, 1.5, 2, 3, 4, 5, 7)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [float(f"{f}e{power}") for power in range(first, last + 1) for f in factors]
    return [mark for mark in marks if low <= mark <= high]


def frame(x: Scale, y: Scale, *, x_title: str, y_title: str) -> Markup:
    """Grid lines, tick labels and titles; labels that would touch the one before are left out.

    ``x`` runs rightwards and ``y`` upwards (its ``start`` is the lower end).
    """
    top, bottom = min(y.start, y.end), max(y.start, y.end)
    left, right = min(x.start, x.end), max(x.start, x.end)
    parts = []
    free = math.inf
    for value, label in sorted(y.ticks, key=lambda tick: -y.at(tick[0])):
        at = y.at(value)
        parts.append(line(left, at, right, at, class_="grid"))
        if at <= free:
            parts.append(text(left - 8, at + 4, label, class_="tick", text_anchor="end"))
            free = at - 14
    parts.append(line(left, bottom, right, bottom, class_="axis"))
    free = -math.inf
    for value, label in x.ticks:
        at, half = x.at(value), len(label) * LETTER / 2
        parts.append(line(at, bottom, at, bottom + 4, class_="axis"))
        if at - half >= free:
            parts.append(text(at, bottom + 17, label, class_="tick", text_anchor="middle"))
            free = at + half + 6
    parts.append(text(right, bottom + 35, x_title, class_="title", text_anchor="end"))
    if y_title:
        parts.append(text(0, top - 16, y_title, class_="title"))
    return group(parts, class_="frame")

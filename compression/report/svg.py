"""Inline SVG as text: elements with escaped attributes, and the marks of tiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

COLOURS = 7
"""Tier colours ``--t0`` … in the style sheet: after Okabe and Ito ("Color Universal Design",
2008), darkened (in the dark scheme lightened) to a contrast of 3:1 with the page."""

SHAPES = ("circle", "square", "diamond", "up", "down", "plus")
"""Marks of equal area. Seven colours and six shapes: 42 tiers that differ also without colour."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How one tier looks in every plot: a colour class ("t0" … or "gone") and a shape."""

    colour: str
    shape: str


GONE = Mark("gone", "circle")
"""A candidate that was not kept."""


def mark_of(index: int) -> Mark:
    """The mark of a family's tier by its place."""
    return Mark(f"t{index % COLOURS}", SHAPES[index % len(SHAPES)])


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element. Text and attributes are escaped; attributes that are None are left out.

    ``class_`` becomes class and ``stroke_width`` stroke-width; numbers get two decimals.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"')
    inner = Markup("").join(children)
    return Markup("".join(parts)) + Markup(">") + inner + Markup(f"</{name}>")


def group(children: Sequence[Any], **attributes: Any) -> Markup:
    """A ``g`` element."""
    return tag("g", *children, **attributes)


def picture(
    children: Sequence[Any], *, width: float, height: float, label: str, class_: str = "plot"
) -> Markup:
    """A whole drawing that scales with the page.

    Args:
        label: Read out instead of the drawing; a table near it should give the figures.
    """
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=label,
        class_=class_,
    )


def text(x: float, y: float, content: str, **attributes: Any) -> Markup:
    """A line of text."""
    return tag("text", content, x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: Any) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def path_through(points: Sequence[tuple[float, float]]) -> str:
    """Path data of a line through the points."""
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def draw_mark(mark: Mark, x: float, y: float, *, radius: float = 6, title: str = "") -> Markup:
    """A tier's mark at a place, with a text for the mouse to find."""
    inner = [tag("title", title)] if title else []
    return tag("path", *inner, d=_shape(mark.shape, x, y, radius), class_=f"mark {mark.colour}")


def mark_icon(mark: Mark) -> Markup:
    """The mark alone, for legends and headings; the name stands beside it."""
    return tag(
        "svg",
        draw_mark(mark, 8, 8, radius=5.5),
        viewBox="0 0 16 16",
        class_="icon",
        aria_hidden="true",
    )


def _shape(shape: str, x: float, y: float, r: float) -> str:
    """Path data; ``r`` is the radius of a circle of the same area."""
    if shape == "circle":
        return (
            f"M{_number(x - r)} {_number(y)}a{_number(r)} {_number(r)} 0 1 0 {_number(2 * r)} 0"
            f"a{_number(r)} {_number(r)} 0 1 0 {_number(-2 * r)} 0Z"
        )
    half = r * math.sqrt(math.pi) / 2
    corners: list[tuple[float, float]]
    if shape == "square":
        corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    elif shape == "diamond":
        reach = half * math.sqrt(2)
        corners = [(0, -reach), (reach, 0), (0, reach), (-reach, 0)]
    elif shape == "plus":
        arm = half * 1.25
        thin = arm * 0.42
        corners = [(-thin, -arm), (thin, -arm), (thin, -thin), (arm, -thin), (arm, thin)]
        corners += [(thin, thin), (thin, arm), (-thin, arm), (-thin, thin), (-arm, thin)]
        corners += [(-arm, -thin), (-thin, -thin)]
    else:
        side = r * math.sqrt(4 * math.pi / math.sqrt(3))
        rise = side * math.sqrt(3) / 2
        corners = [(0, -rise * 2 / 3), (side / 2, rise / 3), (-side / 2, rise / 3)]
        if shape == "down":
            corners = [(dx, -dy) for dx, dy in corners]
    return path_through([(x + dx, y + dy) for dx, dy in corners]) + "Z"


def _number(value: Any) -> Any:
    """Floats with at most two decimals, and never "-0"."""
    return f"{round(value, 2) + 0.0:g}" if isinstance(value, float) else value

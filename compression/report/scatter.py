"""Tiers as points of cost against quality: error bars, the front as steps, names kept apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tierwise.compression.report.axes import Scale, frame
from tierwise.compression.report.labels import Box, place_labels
from tierwise.compression.report.svg import (
    GONE,
    Mark,
    draw_mark,
    group,
    line,
    path_through,
    picture,
    tag,
    text,
)

BOLD = 7.9
"""Width of an average letter of a label."""


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate in one plot.

    Args:
        x: Its cost.
        y: Its quality.
        low, high: The quality's 95 % interval; None where there is none.
        title: All about it, for the mouse.
        note: A second line of the label, e.g. its size.
    """

    name: str
    mark: Mark
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether it is a tier."""
        return self.mark is not GONE


def draw_scatter(
    points: Sequence[Point],
    x: Scale,
    y: Scale,
    *,
    width: float,
    height: float,
    x_title: str,
    y_title: str,
    label: str,
    radius: float = 6,
    crowded: bool = False,
) -> Markup:
    """The plot. ``y`` is to run so that better is further up, so the front climbs from the left.

    Args:
        points: Those whose figures are not finite are left out; the table has them.
        label: What is read out instead.
        crowded: Room is dear: only tiers have names, and only where these touch nothing.
    """
    shown = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    shown.sort(key=lambda p: not p.kept)  # tiers choose the places of their names first
    steps = _steps(shown, x, y)
    parts = [frame(x, y, x_title=x_title, y_title=y_title), _front(steps, x, y)]
    parts += [_whisker(point, x, y) for point in shown]
    parts.append(_names(shown, x, y, radius, steps, crowded))
    parts += [
        draw_mark(
            point.mark,
            x.at(point.x),
            y.at(point.y),
            radius=radius if point.kept else radius * 0.75,
            title=point.title,
        )
        for point in reversed(shown)
    ]
    return picture(parts, width=width, height=height, label=label)


def front_of(points: Sequence[Point], y: Scale) -> list[Point]:
    """The tiers that no other beats in this plot, from the cheapest on."""
    front: list[Point] = []
    for point in sorted((p for p in points if p.kept), key=lambda p: (p.x, y.at(p.y))):
        if not front or y.at(point.y) < y.at(front[-1].y):
            front.append(point)
    return front


def _steps(points: Sequence[Point], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """The corners of the line that says what quality can be had for at most so much."""
    front = front_of(points, y)
    if not front:
        return []
    steps = [(x.at(front[0].x), y.start)]
    for point in front:
        steps += [(x.at(point.x), steps[-1][1]), (x.at(point.x), y.at(point.y))]
    return [*steps[1:], (x.end, steps[-1][1])]


def _front(steps: Sequence[tuple[float, float]], x: Scale, y: Scale) -> Markup:
    if not steps:
        return Markup("")
    corners = [*steps, (x.end, y.start)]
    return group(
        [
            tag("path", d=path_through(corners) + "Z", class_="reach"),
            tag("path", d=path_through(steps), class_="front"),
        ]
    )


def _whisker(point: Point, x: Scale, y: Scale) -> Markup:
    if point.low is None or point.high is None:
        return Markup("")
    at, low, high = x.at(point.x), y.at(point.low), y.at(point.high)
    bars = [line(at, low, at, high)]
    bars += [line(at - 3.5, end, at + 3.5, end) for end in (low, high)]
    return group(bars, class_=f"whisker {point.mark.colour}")


def _names(
    points: Sequence[Point],
    x: Scale,
    y: Scale,
    radius: float,
    steps: Sequence[tuple[float, float]],
    crowded: bool,
) -> Markup:
    places = [(x.at(p.x), y.at(p.y)) for p in points]
    sizes = [
        (max(len(p.name) * BOLD, len(p.note) * (BOLD - 1)), 27.0 if p.note else 14.0)
        for p in points
    ]
    area: Box = (x.start + 3, y.end - 8, x.end + 8, y.start - 2)
    near, far = (0, 1) if crowded else (1, 4)
    rings = [far if point.kept else near for point in points]
    obstacles = [*_bars(points, x, y), *_boxes_along(steps)]
    found = place_labels(
        places, sizes, area=area, obstacles=obstacles, reach=radius + 5, rings=rings
    )
    parts = []
    for point, (px, py), (_, high), label in zip(points, places, sizes, found, strict=True):
        if label is None:
            continue
        first = label.y if not point.note else label.y - high / 2 + 2
        if label.far:
            end = label.x + (-3 if label.anchor == "start" else 3)
            parts.append(line(px, py, end, label.y - 5, class_="leader"))
        kind = "name" if point.kept else "name gone-name"
        parts.append(text(label.x, first, point.name, class_=kind, text_anchor=label.anchor))
        if point.note:
            parts.append(
                text(label.x, first + 14, point.note, class_="note", text_anchor=label.anchor)
            )
    return group(parts)


def _bars(points: Sequence[Point], x: Scale, y: Scale) -> list[Box]:
    """The error bars, which names must not cross."""
    boxes: list[Box] = []
    for point in points:
        if point.low is not None and point.high is not None:
            at, low, high = x.at(point.x), y.at(point.low), y.at(point.high)
            boxes.append((at - 4, min(low, high), at + 4, max(low, high)))
    return boxes


def _boxes_along(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Boxes around the lines from corner to corner."""
    return [
        (min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)
        for (x1, y1), (x2, y2) in pairwise(corners)
    ]

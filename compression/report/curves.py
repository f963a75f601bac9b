"""Lines over time: what training did to the loss and to the divergence from the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tierwise.compression.report.axes import Scale, frame
from tierwise.compression.report.labels import place_labels
from tierwise.compression.report.scatter import BOLD
from tierwise.compression.report.svg import (
    Mark,
    draw_mark,
    group,
    line,
    path_through,
    picture,
    tag,
    text,
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One student's values.

    Args:
        points: Pairs of what was spent and the value; those that are not finite break the line.
        dotted: Whether each point is marked (for values that were measured now and then).
    """

    name: str
    mark: Mark
    points: tuple[tuple[float, float], ...]
    dotted: bool = False


def draw_curves(
    curves: Sequence[Curve],
    x: Scale,
    y: Scale,
    *,
    width: float,
    height: float,
    x_title: str,
    y_title: str,
    label: str,
    unit: str,
) -> Markup:
    """The plot, each curve's name at its end.

    Args:
        label: What is read out instead.
        unit: Of the value, for the texts that the mouse finds.
    """
    parts = [frame(x, y, x_title=x_title, y_title=y_title)]
    for curve in curves:
        parts += [
            tag("path", d=path_through([(x.at(a), y.at(b)) for a, b in run]), class_=_line(curve))
            for run in _runs(curve.points)
        ]
        if curve.dotted:
            parts += [
                draw_mark(
                    curve.mark,
                    x.at(spent),
                    y.at(value),
                    radius=3.2,
                    title=f"{curve.name}: {value:.4g} {unit} at {spent:,.4g}",
                )
                for run in _runs(curve.points)
                for spent, value in run
            ]
    parts.append(_names(curves, x, y))
    return picture(parts, width=width, height=height, label=label)


def _line(curve: Curve) -> str:
    return f"curve {curve.mark.colour}"


def _runs(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The finite stretches."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _names(curves: Sequence[Curve], x: Scale, y: Scale) -> Markup:
    """Each curve's mark at its end, and its name beside it where there is room."""
    named = [(curve, runs[-1][-1]) for curve in curves if (runs := _runs(curve.points))]
    ends = [(x.at(spent), y.at(value)) for _, (spent, value) in named]
    lines = [
        (x.at(spent) - 3, y.at(value) - 3, x.at(spent) + 3, y.at(value) + 3)
        for curve, _ in named
        for run in _runs(curve.points)
        for spent, value in run
    ]
    sizes = [(len(curve.name) * BOLD, 14.0) for curve, _ in named]
    area = (x.start, y.end - 6, x.end + 8, y.start)
    found = place_labels(ends, sizes, area=area, obstacles=lines, reach=9, rings=[3] * len(named))
    parts = []
    for (curve, _), (px, py), label in zip(named, ends, found, strict=True):
        if label is not None:
            if label.far:
                end = label.x + (-3 if label.anchor == "start" else 3)
                parts.append(line(px, py, end, label.y - 4, class_="leader"))
            parts.append(
                text(label.x, label.y, curve.name, class_="name", text_anchor=label.anchor)
            )
        parts.append(draw_mark(curve.mark, px, py, radius=5, title=curve.name))
    return group(parts)

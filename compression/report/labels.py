"""Names beside points, placed so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True, slots=True)
class Label:
    """Where a label's text starts (``anchor`` "start") or ends ("end"), on its baseline."""

    x: float
    y: float
    anchor: str
    far: bool
    """Whether it is so far from its point that a line must lead there."""


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    area: Box,
    obstacles: Sequence[Box] = (),
    reach: float = 10,
    rings: Sequence[int] | None = None,
) -> list[Label | None]:
    """A place for each point's label; None where there is none within reach.

    Greedy: earlier points choose first, so give the important ones first.

    Args:
        points: In pixels.
        sizes: Width and height of each label.
        area: Labels stay inside.
        obstacles: Boxes to keep clear, besides those around all points.
        reach: Pixels between a point and its label.
        rings: How many rings of ever further places to try for each point; 0 gives it no label,
            and 4 is meant where nothing is given.
    """
    radius = reach * 0.7
    taken = [*obstacles, *((x - radius, y - radius, x + radius, y + radius) for x, y in points)]
    placed: list[Label | None] = []
    most = rings if rings is not None else [4] * len(points)
    for (x, y), (width, height), far_out in zip(points, sizes, most, strict=True):
        found = None
        for left, top, anchor, far in _places(x, y, width, height, reach, far_out):
            box = (left, top, left + width, top + height)
            inside = area[0] <= box[0] and area[1] <= box[1]
            inside = inside and box[2] <= area[2] and box[3] <= area[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                at = left if anchor == "start" else left + width
                found = Label(at, top + height * 0.78, anchor, far)
                break
        placed.append(found)
    return placed


def _places(
    x: float, y: float, width: float, height: float, reach: float, rings: int
) -> Iterator[tuple[float, float, str, bool]]:
    """Left, top, anchor and whether it is far: right, left, above, below, then further out."""
    for ring in range(rings):
        away = reach * (1 + 1.6 * ring)
        middle = y - height / 2
        for dy in (0.0, *((-away, away) if ring else ())):
            yield x + away, middle + dy, "start", ring > 0
            yield x - away - width, middle + dy, "end", ring > 0
        for dy in (-away - height, away):
            yield x - width / 2, y + dy, "start", ring > 0
            yield x + away * 0.5, y + dy, "start", ring > 0
            yield x - away * 0.5 - width, y + dy, "end", ring > 0


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

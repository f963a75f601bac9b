"""The front from three sides: what a tier costs against how far it is from the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY
from tierwise.compression.report.axes import Scale, linear_scale, log_scale, spread_scale
from tierwise.compression.report.figures import Row
from tierwise.compression.report.scatter import Point, draw_scatter
from tierwise.compression.report.text import size_text

_Value = Callable[[Row], float | None]
_Interval = Callable[[Row], tuple[float, float] | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a tier costs: one column of plots."""

    key: str
    title: str
    value: _Value


@dataclass(frozen=True, slots=True)
class Measure:
    """How good a tier is: one row of plots."""

    key: str
    title: str
    value: _Value
    interval: _Interval
    scale: Callable[[Sequence[float], float, float], Scale]


@dataclass(frozen=True, slots=True)
class PlotRow:
    """The plots of one measure; ``missing`` says why there is none."""

    title: str
    plots: tuple[Markup, ...]
    missing: str = ""


def _percent(value: float) -> str:
    return f"{value:.1%}" if value * 1000 % 10 > 1e-6 else f"{value:.0%}"


def _shares(values: Sequence[float], start: float, end: float) -> Scale:
    return linear_scale(values, start, end, within=(0, 1), label=_percent)


def _nats(values: Sequence[float], start: float, end: float) -> Scale:
    """Little divergence is good, so the axis runs downwards: better is up in every plot."""
    scale = log_scale(values, end, start)
    return Scale(scale.high, scale.low, start, end, True, scale.ticks)


def _no_interval(_row: Row) -> None:
    return None


SIZE = Cost("size", "file, MB", lambda r: None if r.bytes is None else r.bytes / 1e6)
SECONDS = Cost(
    "seconds",
    f"seconds for a call of {REFERENCE_PROMPT} + {REFERENCE_REPLY} tokens",
    lambda r: r.seconds,
)
PREFILL = Cost("prefill", f"prefill of {REFERENCE_PROMPT} tokens, s", lambda r: r.prefill_s)
DECODE = Cost("decode", f"decode of {REFERENCE_REPLY} tokens, s", lambda r: r.decode_s)

KL = Measure("kl", "KL from the base, nats", lambda r: r.kl_mean, _no_interval, _nats)
TOP1 = Measure(
    "top1",
    "top-1 agreement with the base",
    lambda r: r.top1,
    lambda r: (r.top1_interval.low, r.top1_interval.high) if r.top1_interval else None,
    _shares,
)
SUCCESS = Measure(
    "success",
    "success on tool tasks",
    lambda r: r.success.value if r.success else None,
    lambda r: (r.success.low, r.success.high) if r.success else None,
    _shares,
)


def main_plot(rows: Sequence[Row]) -> Markup | None:
    """Seconds of a call against divergence (or tool success, where that alone is known)."""
    for measure in (KL, SUCCESS):
        if _points(rows, SECONDS, measure):
            return _plot(rows, SECONDS, measure, width=1040, height=430, radius=7.5, large=True)
    return None


def plot_rows(rows: Sequence[Row]) -> tuple[PlotRow, ...]:
    """Three measures of quality, each against size, prefill and decode."""
    return tuple(_plot_row(rows, measure) for measure in (KL, TOP1, SUCCESS))


def _plot_row(rows: Sequence[Row], measure: Measure) -> PlotRow:
    title = measure.title[0].upper() + measure.title[1:]
    costs = [cost for cost in (SIZE, PREFILL, DECODE) if _points(rows, cost, measure)]
    if not costs:
        return PlotRow(title, (), f"Not measured of any tier: {measure.title}.")
    plots = tuple(_plot(rows, cost, measure, width=340, height=248, radius=5.5) for cost in costs)
    return PlotRow(title, plots)


def _points(
    rows: Sequence[Row], cost: Cost, measure: Measure, *, note: bool = False
) -> list[Point]:
    points = []
    for row in rows:
        x, y = cost.value(row), measure.value(row)
        if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
            continue
        low, high = measure.interval(row) or (None, None)
        points.append(
            Point(
                name=row.name,
                mark=row.mark,
                x=x,
                y=y,
                low=low,
                high=high,
                title=row.sentence(),
                note=size_text(row.bytes) if note and row.tier else "",
            )
        )
    return points


def _plot(
    rows: Sequence[Row],
    cost: Cost,
    measure: Measure,
    *,
    width: float,
    height: float,
    radius: float,
    large: bool = False,
) -> Markup:
    """A plot; a large one says what it measures and gives sizes with the names."""
    points = _points(rows, cost, measure, note=large)
    heights = [p.y for p in points]
    heights += [end for p in points for end in (p.low, p.high) if end is not None]
    x = spread_scale([p.x for p in points], 48, width - 14, ticks=9 if large else 5)
    y = measure.scale(heights, height - 46, 36 if large else 12)
    kept = [p for p in points if p.kept]
    said = "; ".join(f"{p.name} {p.x:.4g} and {p.y:.4g}" for p in kept)
    gone = len(points) - len(kept)
    others = f" {gone} candidates that were not kept are grey." if gone else ""
    return draw_scatter(
        points,
        x,
        y,
        width=width,
        height=height,
        x_title=cost.title,
        y_title=measure.title if large else "",
        label=f"{measure.title} against {cost.title}. {said}.{others} The table has all figures.",
        radius=radius,
        crowded=not large,
    )

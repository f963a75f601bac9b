"""Students and their training curves. Tiers that differ only in bits come from one student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tierwise.compression.report.axes import linear_scale, log_scale, spread_scale
from tierwise.compression.report.curves import Curve, draw_curves
from tierwise.compression.report.svg import Mark, mark_of
from tierwise.compression.report.text import count_text, nats_text
from tierwise.runtime.family import Family
from tierwise.runtime.lineage import CurvePoint, Distillation

_TABLE_ROWS = 12


@dataclass(frozen=True, slots=True)
class Student:
    """One run of training and the tiers that were quantized from it.

    Its mark is that of the first of them.
    """

    tiers: tuple[str, ...]
    mark: Mark
    distillation: Distillation

    @property
    def name(self) -> str:
        """Of its tiers."""
        return ", ".join(self.tiers)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A point of a curve as the table has it."""

    student: str
    step: str
    tokens: str
    seconds: str
    loss: str
    kl: str


def students_of(family: Family) -> tuple[Student, ...]:
    """The students, in the order of their first tiers."""
    found: list[Student] = []
    for index, tier in enumerate(family.tiers):
        run = tier.lineage.distillation
        if run is None:
            continue
        for place, student in enumerate(found):
            if student.distillation == run:
                found[place] = Student((*student.tiers, tier.name), student.mark, run)
                break
        else:
            found.append(Student((tier.name,), mark_of(index), run))
    return tuple(found)


def training_plots(students: Sequence[Student]) -> tuple[Markup, ...]:
    """Loss and held-out divergence, each against seconds and tokens; none without curves."""
    taught = [student for student in students if student.distillation.curve]
    if not taught:
        return ()
    return (
        _plot(taught, "seconds of training", lambda p: p.seconds, held_out=False),
        _plot(taught, "thousand tokens", lambda p: p.tokens / 1e3, held_out=False),
        _plot(taught, "seconds of training", lambda p: p.seconds, held_out=True),
        _plot(taught, "thousand tokens", lambda p: p.tokens / 1e3, held_out=True),
    )


def _plot(
    students: Sequence[Student],
    x_title: str,
    spent: Callable[[CurvePoint], float],
    *,
    held_out: bool,
) -> Markup:
    width, height = 510.0, 280.0
    curves = [_curve(student, spent, held_out) for student in students]
    x_values = [0.0, *(x for curve in curves for x, _ in curve.points)]
    y_values = [y for curve in curves for _, y in curve.points]
    what = "KL from the teacher on held-out text, nats" if held_out else "training loss"
    x = linear_scale(x_values, 58, width - 18, within=(0, float("inf")))
    scale = log_scale if held_out else spread_scale
    y = scale(y_values, height - 46, 34)
    ends = "; ".join(f"{c.name} ends at {c.points[-1][1]:.4g}" for c in curves if c.points)
    return draw_curves(
        curves,
        x,
        y,
        width=width,
        height=height,
        x_title=x_title,
        y_title=what,
        label=f"{what} against {x_title}. {ends}. The table below has the figures.",
        unit="nats" if held_out else "",
    )


def _curve(student: Student, spent: Callable[[CurvePoint], float], held_out: bool) -> Curve:
    run = student.distillation
    if not held_out:
        points = [(spent(point), point.loss) for point in run.curve]
        return Curve(student.name, student.mark, tuple(points))
    measured = [(spent(point), point.kl) for point in run.curve if point.kl is not None]
    if not measured or measured[0][0] > 0:
        measured.insert(0, (0.0, run.kl_before))
    end = spent(run.curve[-1])
    if measured[-1][0] < end:
        measured.append((end, run.kl_after))
    return Curve(student.name, student.mark, tuple(measured), dotted=True)


def training_table(students: Sequence[Student]) -> tuple[TrainingRow, ...]:
    """At most a dozen points of each student, first and last among them."""
    rows = []
    for student in students:
        curve = student.distillation.curve
        most = min(_TABLE_ROWS, len(curve))
        picks = sorted({round(i * (len(curve) - 1) / max(most - 1, 1)) for i in range(most)})
        rows += [
            TrainingRow(
                student=student.name,
                step=f"{point.step:,}",
                tokens=count_text(point.tokens),
                seconds=f"{point.seconds:,.0f}",
                loss=f"{point.loss:.4f}",
                kl=nats_text(point.kl),
            )
            for point in (curve[pick] for pick in picks)
        ]
    return tuple(rows)

"""``report.html``: what a build found, on one page that needs nothing but a browser.

Written beside ``family.json``. It fetches nothing and runs no script; every plot has its figures
in a table. The same family and candidates give the same bytes.
"""

from __future__ import annotations

import hashlib
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from tierwise.compression.report.figures import CALL, Row, rows_of
from tierwise.compression.report.front_plots import main_plot, plot_rows
from tierwise.compression.report.page import render_page
from tierwise.compression.report.recipes import (
    Facts,
    badges_of,
    distillation_facts,
    quantization_facts,
    shape_facts,
)
from tierwise.compression.report.samples import tasks_of
from tierwise.compression.report.strip import TypeKey, draw_strip, type_keys, type_table
from tierwise.compression.report.svg import GONE, mark_icon, tag
from tierwise.compression.report.tensor_types import TypeMap, map_types, read_types
from tierwise.compression.report.text import (
    UNKNOWN,
    count_text,
    day_text,
    nats_text,
    size_text,
    span_text,
)
from tierwise.compression.report.training import (
    Student,
    students_of,
    training_plots,
    training_table,
)
from tierwise.compression.report.tried import Tried, load_tried, save_tried
from tierwise.runtime.family import Base, Estimate, Family, Tier
from tierwise.runtime.files import write_atomically
from tierwise.runtime.profile import Profile, family_profiles

REPORT = "report.html"


class Opened(NamedTuple):
    """Where a report is, and whether a browser took it."""

    path: Path
    opened: bool


def write_report(
    family: Family, *, tried: Sequence[Tried], profiles: Mapping[str, Profile]
) -> Path:
    """Writes ``report.html`` into the family's folder, and ``tried.json`` to make it again from.

    Args:
        family: As loaded or saved: its folder is where the page goes, and its files tell the
            type of each tensor.
        tried: Every candidate of the build, kept or not; none for a family that was adopted.
        profiles: By tier name, as from `family_profiles`.

    Raises:
        DiskFullError: There is no room for it.
    """
    if tried:
        save_tried(family.folder, tried)
    path = family.folder / REPORT
    write_atomically(path, report_html(family, tried=tried, profiles=profiles))
    return path


def open_report(folder: str | Path) -> Opened:
    """Opens a family's report in the browser; writes it where there is none of this family.

    Raises:
        FamilyError: There is no usable family in the folder.
        DiskFullError: There is no room for the report.
    """
    family = Family.load(folder)
    path = family.folder / REPORT
    if not _is_of(path, family):
        tried = load_tried(family.folder)
        path = write_report(family, tried=tried, profiles=family_profiles(family))
    try:
        opened = webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error:  # BROWSER names one that is not there
        opened = False
    return Opened(path, opened)


def report_html(family: Family, *, tried: Sequence[Tried], profiles: Mapping[str, Profile]) -> str:
    """The page as text."""
    rows = rows_of(family, tried, profiles)
    types = {tier.name: map_types(read_types(family.path(tier))) for tier in family.tiers}
    keys = type_keys(types.values())
    tiers = [_TierView.of(row, row.tier, family.base, types, keys) for row in rows if row.tier]
    students = students_of(family)
    base = family.base
    return render_page(
        {
            "base": base,
            "digest": _digest(family),
            "lede": _lede(family, rows),
            "chips": _chips(base),
            "call": CALL,
            "tiers": tiers,
            "any_estimated": any(row.estimated for row in rows),
            "any_pruned": any(tier.lineage.pruned_layers for tier in family.tiers),
            "gone_icon": mark_icon(GONE),
            "main_plot": main_plot(rows),
            "plot_rows": plot_rows(rows),
            "figures": [(row, row.told()) for row in rows if row.bytes is not None],
            "gone": [row for row in rows if row.tier is None],
            "unknown": UNKNOWN,
            "type_keys": keys,
            "students": [_student_view(student) for student in students],
            "training_plots": training_plots(students),
            "training_rows": training_table(students),
            "tasks": tasks_of(family),
            "caveat": machine_caveat(profiles),
            "base_note": base_note(base),
            "created": family.created,
            "version": family.tierwise,
        }
    )


@dataclass(frozen=True, slots=True)
class _TierView:
    """A tier as the templates read it."""

    row: Row
    told: dict[str, str]
    icon: Markup
    gauge: Markup
    badges: list[str]
    strip: Markup | None
    facts: list[tuple[str, Facts]]
    type_table: list[tuple[str, str]]

    @classmethod
    def of(
        cls,
        row: Row,
        tier: Tier,
        base: Base,
        types: Mapping[str, TypeMap],
        keys: Sequence[TypeKey],
    ) -> _TierView:
        facts = [
            ("Shape", shape_facts(tier, base)),
            ("Weights", quantization_facts(tier.lineage)),
        ]
        if tier.lineage.distillation is not None:
            facts.append(("Distillation", distillation_facts(tier.lineage.distillation)))
        return cls(
            row=row,
            told=row.told(),
            icon=mark_icon(row.mark),
            gauge=_gauge(row.success),
            badges=badges_of(tier, base),
            strip=draw_strip(tier, types[tier.name], base.layers, keys),
            facts=facts,
            type_table=type_table(tier, types[tier.name], base.layers),
        )


def _gauge(success: Estimate | None) -> Markup:
    """Tool success on a rail from 0 to 1, its interval shaded."""
    if success is None:
        return Markup("")
    said = f"{success.value:.1%} of {success.n} tasks, 95 % interval {success.low:.1%} to"
    wide = 200 * (success.high - success.low)
    return tag(
        "svg",
        tag("title", f"{said} {success.high:.1%}"),
        tag("rect", x=0, y=4, width=200, height=4, rx=2, class_="rail"),
        tag("rect", x=200 * success.low, y=4, width=wide, height=4, rx=2, class_="span"),
        tag("rect", x=197 * success.value, y=0, width=3, height=12, rx=1.5, class_="at"),
        viewBox="0 0 200 12",
        preserveAspectRatio="none",
        class_="gauge",
        role="img",
        aria_label=f"{said} {success.high:.1%}",
    )


def _student_view(student: Student) -> dict[str, Any]:
    run = student.distillation
    return {
        "name": student.name,
        "icon": mark_icon(student.mark),
        "before": nats_text(run.kl_before),
        "after": nats_text(run.kl_after),
        "tokens": count_text(run.tokens),
        "span": span_text(run.seconds),
    }


def _lede(family: Family, rows: Sequence[Row]) -> str:
    count = len(family.tiers)
    total = size_text(sum(tier.bytes for tier in family.tiers))
    said = f"{'One tier' if count == 1 else f'{count} tiers'} from one model, {total} on disk."
    gone = sum(row.tier is None for row in rows)
    if gone:
        said += f" {gone} more {'was' if gone == 1 else 'were'} considered and not kept."
    timed = [row for row in rows if row.tier and row.seconds]
    if len(timed) > 1:
        quick = min(timed, key=lambda row: row.seconds or 0)
        slow = max(timed, key=lambda row: row.seconds or 0)
        times = (slow.seconds or 0) / (quick.seconds or 1)
        said += f" {quick.name} answers a call {times:.1f} times as fast as {slow.name}."
    return said


def _chips(base: Base) -> Facts:
    chips = [
        ("Source", base.source),
        ("Architecture", base.architecture),
        ("Parameters", count_text(base.parameters)),
        ("Layers", str(base.layers)),
        ("Context", f"{base.context_tokens:,} tokens"),
        ("Licence", base.licence or "unknown"),
    ]
    if base.dequantized_from is not None:
        chips.append(("Dequantized from", base.dequantized_from))
    return chips


def machine_caveat(profiles: Mapping[str, Profile]) -> str:
    """Where and when speed was measured, and what that is worth elsewhere."""
    measured = [profile for profile in profiles.values() if not profile.estimated]
    if not measured:
        return "Speed was not measured on this machine: what is shown was reckoned from sizes."
    threads = sorted({profile.threads for profile in measured})
    days = sorted({day_text(profile.measured_at) for profile in measured})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    used = " or ".join(map(str, threads)) + (" thread" if threads == [1] else " threads")
    return (
        f"Speed was measured on one machine (fingerprint {measured[0].machine}, {used}, {when}). "
        "It holds there only: other processors put the tiers in another order, as each type of "
        "weights has kernels of its own."
    )


def base_note(base: Base) -> str:
    """What the measurements of quality refer to."""
    note = f"KL, top-1 agreement and perplexity compare with the base {base.name}"
    if base.dequantized_from is None:
        return f"{note} in its own precision."
    return (
        f"{note}, which was given as {base.dequantized_from} and dequantized from it: what that "
        "type had lost before is not in these figures."
    )


def _digest(family: Family) -> str:
    """Stands for the family that a report tells of."""
    return hashlib.sha256(family.model_dump_json().encode()).hexdigest()


def _is_of(path: Path, family: Family) -> bool:
    try:
        return f'content="{_digest(family)}"' in path.read_text(encoding="utf-8")[:2000]
    except (OSError, UnicodeDecodeError):
        return False

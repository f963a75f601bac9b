"""``calibration.html``: whether routing pays, how honest its chances are, and where tiers are used.

One file without scripts, drawn and styled like a family's ``report.html``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tierwise.compression.report.axes import linear_scale
from tierwise.compression.report.curves import Curve, draw_curves
from tierwise.compression.report.page import POLICY
from tierwise.compression.report.scatter import Point, draw_scatter
from tierwise.compression.report.style import STYLE
from tierwise.compression.report.svg import GONE, Mark, mark_icon, mark_of
from tierwise.routing.calibration import Calibration
from tierwise.routing.controls import cheapest_that_will_do
from tierwise.runtime.family import Family
from tierwise.runtime.files import write_atomically

REPORT = "calibration.html"

PRICES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Qualities of the budget at which the use of tiers is told."""

_NAMES = {
    "routed": "routed",
    "random": "as many calls at random",
    "shuffle": "its decisions exchanged",
    "length": "the longest to the dearest",
    "mix": "mixture of fixed tiers",
    "oracle": "oracle",
}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: calibration</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#front">Skip to the figures</a>
<div class="mast">
<header>
<p class="eyebrow">Tierwise calibration</p>
<h1>{{ name }}: {{ "route" if verdict.route else "do not route" }}</h1>
<p class="lede">{{ lede }}</p>
<ul class="chips">
{% for suite, count in suites.items() %}<li>{{ suite }} <b>{{ count }} calls</b></li>
{% endfor %}<li>chances by <b>{{ estimator }}</b></li></ul>
</header>
</div>
<main>
<section id="front" aria-labelledby="h-front">
<h2 id="h-front">Cost and quality</h2>
<p class="intro">On {{ verdict.n }} calls ({{ verdict.prompts }} different ones) that nothing was
learned from. Left is cheaper and up is better; bars are 95&nbsp;% intervals. Routing has to beat
every grey mark to be worth it.</p>
{% if front %}<div class="panel scroll wide">{{ front }}</div>
<div class="panel scroll" style="margin-top:14px" tabindex="0" role="region"
 aria-labelledby="c-front">
<table><caption id="c-front">Every way to choose tiers, with 95&nbsp;% intervals.</caption>
<thead><tr><th scope="col">chosen by</th><th scope="col">right</th>
<th scope="col">seconds a call</th><th scope="col">lead of routing</th></tr></thead>
<tbody>{% for row in contenders %}<tr><th scope="row">{{ row.name }}</th><td>{{ row.quality }}</td>
<td>{{ row.cost }}</td><td>{{ row.lead }}</td></tr>
{% endfor %}</tbody></table></div>
{% else %}<p class="note">There was too little to compare.</p>{% endif %}
</section>
<section id="use" aria-labelledby="h-use">
<h2 id="h-use">Where each tier is used</h2>
<p class="intro">Shares of these calls by the quality that a budget asks for, were all tiers loaded
and all of them feasible.</p>
<div class="panel scroll" tabindex="0" role="region" aria-labelledby="h-use">
<table><thead><tr><th scope="col">quality</th>{% for tier in tiers %}
<th scope="col">{{ tier.icon }}{{ tier.name }}</th>{% endfor %}<th scope="col">right</th>
<th scope="col">seconds a call</th></tr></thead>
<tbody>{% for row in use %}<tr><th scope="row">{{ row.quality }}</th>{% for share in row.shares %}
<td>{{ share }}</td>{% endfor %}<td>{{ row.right }}</td><td>{{ row.seconds }}</td></tr>
{% endfor %}</tbody></table></div>
</section>
<section id="honest" aria-labelledby="h-honest">
<h2 id="h-honest">How honest the chances are</h2>
<p class="intro">Of calls that were given a chance of so much, that share should come true: marks
belong on the diagonal.</p>
<div class="panel plots"><div class="trio">{% for plot in reliability %}<div>{{ plot }}</div>
{% endfor %}</div></div>
<div class="panel scroll" style="margin-top:14px" tabindex="0" role="region"
 aria-labelledby="h-honest">
<table><thead><tr><th scope="col">tier</th><th scope="col">right of all</th>
<th scope="col">Brier score</th><th scope="col">calibration error</th>
<th scope="col">right, if verification is content; if not</th></tr></thead>
<tbody>{% for row in honest %}<tr><th scope="row">{{ row.name }}</th><td>{{ row.mean }}</td>
<td>{{ row.brier }}</td><td>{{ row.error }}</td><td>{{ row.verified }}</td></tr>
{% endfor %}</tbody></table></div>
</section>
</main>
</body>
</html>
"""


def write_calibration_report(family: Family, found: Calibration) -> Path:
    """Writes it into the family's folder.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = family.folder / REPORT
    write_atomically(path, calibration_html(family, found))
    return path


def calibration_html(family: Family, found: Calibration) -> str:
    """The page as text."""
    names = [*(tier.name for tier in family.tiers), *(far.name for far in family.remotes)]
    places = {name: index for index, name in enumerate(names)}
    marks = {name: mark_of(places.get(name, index)) for index, name in enumerate(found.tiers)}
    use_it = "" if found.verdict.route else f" Always use {found.verdict.best_fixed}."
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return page.from_string(_PAGE).render(
        name=family.base.name,
        verdict=found.verdict,
        lede=found.verdict.reason[:1].upper() + found.verdict.reason[1:] + "." + use_it,
        suites=found.suites,
        estimator=found.estimator.replace("_", " "),
        front=_front(found, marks),
        contenders=[
            {"name": _told(c.name), "quality": c.quality, "cost": c.cost, "lead": c.lead}
            for c in found.verdict.table
        ],
        tiers=[{"name": name, "icon": mark_icon(marks[name])} for name in found.tiers],
        use=_use(found),
        reliability=[_diagram(found, name, marks[name]) for name in found.reliability],
        honest=_honest(found),
        style=Markup(STYLE),
        policy=POLICY,
    )


def _told(name: str) -> str:
    return _NAMES.get(name, name)


def _front(found: Calibration, marks: dict[str, Mark]) -> Markup | None:
    table = found.verdict.table
    if not table:
        return None
    routed = mark_of(len(marks))
    points = [
        Point(
            name=_told(row.name),
            mark=routed
            if row.name == "routed"
            else marks.get(row.name.removeprefix("always "), GONE),
            x=row.cost.value,
            y=row.quality.value,
            low=row.quality.low,
            high=row.quality.high,
            title=f"{_told(row.name)}: {row.quality.value:.1%} right, {row.cost.value:.3g} s",
        )
        for row in table
    ]
    ends = [value for row in table for value in (row.quality.low, row.quality.high)]
    return draw_scatter(
        points,
        linear_scale([0.0, *(point.x for point in points)], 58, 962, within=(0, float("inf"))),
        linear_scale(ends, 334, 34, within=(0, 1), label=lambda share: f"{share:.0%}"),
        width=980,
        height=380,
        x_title="seconds a call",
        y_title="calls answered rightly",
        label="Quality against cost of routing, of fixed tiers and of controls. The table below "
        "has the figures.",
    )


def _use(found: Calibration) -> list[dict[str, Any]]:
    judged = found.judged
    rows = []
    every = np.arange(len(judged.predicted))
    for quality in PRICES if len(every) else ():
        choice = cheapest_that_will_do(found.given, judged.cost, quality)
        shares = np.bincount(choice, minlength=len(found.tiers)) / len(choice)
        rows.append(
            {
                "quality": f"{quality:.0%}",
                "shares": [f"{share:.0%}" for share in shares],
                "right": f"{np.nanmean(judged.outcomes[every, choice]):.1%}",
                "seconds": f"{judged.cost[every, choice].mean():.3g}",
            }
        )
    return rows


def _diagram(found: Calibration, name: str, mark: Mark) -> Markup:
    held = found.reliability[name]
    bins = [one for one in held.bins if one.n]
    x = linear_scale([0.0, 1.0], 58, 322, within=(0, 1))
    y = linear_scale([0.0, 1.0], 264, 34, within=(0, 1))
    points = tuple((one.predicted, one.true) for one in bins)
    honest = Curve("", GONE, ((0.0, 0.0), (1.0, 1.0)))
    return draw_curves(
        [honest, Curve(name, mark, points, dotted=True)],
        x,
        y,
        width=340,
        height=310,
        x_title="chance that was given",
        y_title=f"{name}: share that came true",
        label=f"Reliability of {name}: "
        + "; ".join(f"{one.predicted:.2f} came true in {one.true:.2f} of {one.n}" for one in bins),
        unit="came true",
    )


def _honest(found: Calibration) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(found.tiers):
        held = found.reliability.get(name)
        content, not_content = found.verified[index].tolist()
        rows.append(
            {
                "name": name,
                "mean": f"{found.means[index]:.1%}",
                "brier": "not judged" if held is None else str(held.brier),
                "error": "not judged" if held is None else str(held.ece_mass),
                "verified": f"{content:.0%}; {not_content:.0%}",
            }
        )
    return rows

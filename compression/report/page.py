"""The report's HTML. Whatever it is given is escaped, save the drawings that were made here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from tierwise.compression.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""Should a text ever get past the escaping: nothing it names would be fetched or run."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="tierwise-family" content="{{ digest }}">
<title>{{ base.name }}: a family of {{ tiers|length }}</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#front">Skip to the figures</a>
<div class="mast">
<header>
<p class="eyebrow">Tierwise family report</p>
<h1>{{ base.name }}</h1>
<p class="lede">{{ lede }}</p>
<ul class="chips">
{% for label, value in chips %}<li>{{ label }} <b>{{ value }}</b></li>
{% endfor %}</ul>
</header>
<nav aria-label="Sections"><ul>
<li><a href="#tiers">Tiers</a></li>
<li><a href="#front">Cost and quality</a></li>
<li><a href="#recipes">Recipes</a></li>
{% if students %}<li><a href="#training">Training</a></li>{% endif %}
{% if tasks %}<li><a href="#samples">Samples</a></li>{% endif %}
</ul></nav>
</div>
<main>
{% include "tiers" %}
{% include "front" %}
{% include "recipes" %}
{% if students %}{% include "training" %}{% endif %}
{% if tasks %}{% include "samples" %}{% endif %}
</main>
<footer>
<p>{{ caveat }}</p>
<p>{{ base_note }}</p>
<p>Made {{ created }} by Tierwise {{ version }}.</p>
</footer>
</body>
</html>
"""

_TIERS = """<section id="tiers" aria-labelledby="h-tiers">
<h2 id="h-tiers">The tiers</h2>
<p class="intro">From cheapest to dearest. Large figures are seconds for {{ call }}, the tier
being loaded{% if any_estimated %}; those after “~” were reckoned, not measured{% endif %}.</p>
<div class="tiers">
{% for tier in tiers %}<article class="panel tier {{ tier.row.mark.colour }}">
<h3>{{ tier.icon }}{{ tier.row.name }}</h3>
<p class="big">{{ tier.told.seconds }} <small>s a call</small></p>
<dl>
<dt>File</dt><dd>{{ tier.told.size }}</dd>
<dt>Prefill</dt><dd>{{ tier.told.prefill_rate }} tok/s</dd>
<dt>Decode</dt><dd>{{ tier.told.decode_rate }} tok/s</dd>
<dt>KL from base</dt><dd>{{ tier.told.kl }} nats</dd>
<dt>Tools solved</dt><dd>{{ tier.told.success }}</dd>
</dl>
{{ tier.gauge }}
{% if tier.badges %}<ul class="badges" aria-label="Special about it">
{% for badge in tier.badges %}<li>{{ badge }}</li>{% endfor %}</ul>{% endif %}
</article>
{% endfor %}</div>
</section>
"""

_FRONT = """<section id="front" aria-labelledby="h-front">
<h2 id="h-front">Cost and quality</h2>
<p class="intro">Left is cheaper and up is better in every plot. The dashed line is the front: the
best that can be had for so much. Candidates that were not kept are hollow and grey; below it says
why they went. Bars are 95&nbsp;% intervals.</p>
<ul class="legend" aria-label="Marks of the tiers">
{% for tier in tiers %}<li>{{ tier.icon }}{{ tier.row.name }}</li>
{% endfor %}{% if gone %}<li>{{ gone_icon }}not kept</li>{% endif %}</ul>
{% if main_plot %}<div class="panel scroll wide">{{ main_plot }}</div>{% endif %}
<div class="panel plots" style="margin-top:14px">
{% for row in plot_rows %}<h3>{{ row.title }}</h3>
{% if row.missing %}<p class="note">{{ row.missing }}</p>
{% else %}<div class="trio">{% for plot in row.plots %}<div>{{ plot }}</div>{% endfor %}</div>
{% endif %}{% endfor %}
</div>
<div class="panel scroll" style="margin-top:14px" tabindex="0" role="region"
 aria-labelledby="c-figures">
<table>
<caption id="c-figures">All figures of the plots. Seconds are for {{ call }}; shares come with
their 95&nbsp;% intervals where samples were counted.</caption>
<thead><tr><th scope="col">candidate</th><th scope="col">file</th><th scope="col">layers</th>
<th scope="col">type</th><th scope="col">prefill, s</th><th scope="col">decode, s</th>
<th scope="col">call, s</th><th scope="col">KL, nats</th><th scope="col">top-1</th>
<th scope="col">tool success</th></tr></thead>
<tbody>
{% for row, told in figures %}<tr{% if not row.tier %} class="away"{% endif %}>
<th scope="row">{{ row.name }}</th><td>{{ told.size }}</td>
<td>{{ row.layers if row.layers is not none else unknown }}</td>
<td>{{ row.quantization or unknown }}</td><td>{{ told.prefill }}</td><td>{{ told.decode }}</td>
<td>{{ told.seconds }}</td><td>{{ told.kl }}</td><td>{{ told.top1 }}</td>
<td>{{ told.success }}</td></tr>
{% endfor %}</tbody>
</table>
</div>
{% if gone %}<div class="panel" style="margin-top:14px"><h3>Not kept, and why</h3>
<dl class="reasons">{% for row in gone %}<dt>{{ gone_icon }}{{ row.name }}</dt>
<dd>{{ row.reason or unknown }}</dd>
{% endfor %}</dl></div>{% endif %}
</section>
"""

_RECIPES = """<section id="recipes" aria-labelledby="h-recipes">
<h2 id="h-recipes">Recipes</h2>
<p class="intro">How each tier was made. A column is a layer of the base, a cell is one weight
matrix, and its colour says how many bits a weight takes there.</p>
{% if type_keys %}<ul class="legend" aria-label="Types and bits a weight">
{% for key in type_keys %}<li><span class="swatch" style="background:{{ key.colour }}"></span>
{{ key.type }}&nbsp;<span class="small">{{ key.bits }} bits</span></li>
{% endfor %}{% if any_pruned %}<li><span class="swatch void-swatch"></span>pruned</li>{% endif %}
</ul>{% endif %}
{% for tier in tiers %}<article class="panel recipe">
<header><h3>{{ tier.icon }}{{ tier.row.name }}</h3>
{% if tier.badges %}<ul class="badges" aria-label="Special about it">
{% for badge in tier.badges %}<li>{{ badge }}</li>{% endfor %}</ul>{% endif %}</header>
{% if tier.strip %}<div class="scroll wide">{{ tier.strip }}</div>{% endif %}
<div class="facts">
{% for title, facts in tier.facts %}<div><h4>{{ title }}</h4><dl>
{% for label, value in facts %}<dt>{{ label }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl></div>
{% endfor %}</div>
{% if tier.type_table %}<details><summary>Types by tensor, in words</summary>
<table><caption>Layer numbers are the base’s.</caption>
<thead><tr><th scope="col">tensor</th><th scope="col" class="why">type</th></tr></thead><tbody>
{% for tensor, where in tier.type_table %}<tr><th scope="row">{{ tensor }}</th>
<td class="why">{{ where }}</td></tr>
{% endfor %}</tbody></table></details>{% endif %}
</article>
{% endfor %}
</section>
"""

_TRAINING = """<section id="training" aria-labelledby="h-training">
<h2 id="h-training">Training</h2>
<p class="intro">What distillation bought. One line per student; tiers that differ only in their
bits come from the same one. The divergence is on text that was not trained on.</p>
<ul class="legend" aria-label="Students">
{% for student in students %}<li>{{ student.icon }}{{ student.name }}:&nbsp;
<span class="small">KL {{ student.before }} → {{ student.after }}, {{ student.tokens }} tokens,
{{ student.span }}</span></li>{% endfor %}</ul>
{% if training_plots %}<div class="panel duo">
{% for plot in training_plots %}<div>{{ plot }}</div>{% endfor %}</div>
<details><summary>The curves as a table</summary><div class="scroll"><table>
<caption>At most twelve points of each student.</caption>
<thead><tr><th scope="col">student</th><th scope="col">step</th><th scope="col">tokens</th>
<th scope="col">seconds</th><th scope="col">loss</th><th scope="col">held-out KL</th></tr></thead>
<tbody>{% for row in training_rows %}<tr><th scope="row">{{ row.student }}</th>
<td>{{ row.step }}</td><td>{{ row.tokens }}</td><td>{{ row.seconds }}</td><td>{{ row.loss }}</td>
<td>{{ row.kl }}</td></tr>
{% endfor %}</tbody></table></div></details>
{% else %}<p class="note">No curves were recorded.</p>{% endif %}
</section>
"""

_SAMPLES = """<section id="samples" aria-labelledby="h-samples">
<h2 id="h-samples">Samples</h2>
<p class="intro">The same tasks as each tier answered them. A task is right if values agree;
wording is not judged.</p>
{% for task in tasks %}<article class="panel task">
<header><h3>{{ task.name }}</h3>
<span class="small">{{ task.right }} of {{ task.asked }} right</span></header>
<p class="ask">{{ task.prompt }}</p>
<div class="gold"><span class="small">A right answer</span><pre>{{ task.expected }}</pre></div>
<div class="answers">
{% for answer in task.answers %}<div class="answer {{ answer.mark.colour }}">
<div class="who"><b>{{ answer.tier }}</b>
{% if answer.sample is none %}<span class="silent">not asked</span></div>
{% else %}<span class="verdict {{ 'right' if answer.sample.passed else 'wrong' }}">
{{ '✓ right' if answer.sample.passed else '✗ wrong' }}</span></div>
{% if answer.sample.reply %}<pre>{{ answer.sample.reply }}</pre>
{% else %}<p class="silent">no reply</p>{% endif %}{% endif %}</div>
{% endfor %}</div>
</article>
{% endfor %}
</section>
"""


@lru_cache(maxsize=1)
def _environment() -> Environment:
    parts = {
        "page": _PAGE,
        "tiers": _TIERS,
        "front": _FRONT,
        "recipes": _RECIPES,
        "training": _TRAINING,
        "samples": _SAMPLES,
    }
    return Environment(
        loader=DictLoader(parts),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def render_page(view: dict[str, Any]) -> str:
    """The whole document.

    Args:
        view: What the templates name. Plain text is escaped; drawings are `Markup`.
    """
    page = _environment().get_template("page")
    return page.render(**view, style=Markup(STYLE), policy=POLICY)

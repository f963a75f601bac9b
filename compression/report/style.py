"""The report's style sheet: light, dark and on paper. No font, image or script is fetched."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f4; --panel: #ffffff; --ink: #1b1f24; --muted: #565e68; --faint: #6f7781;
  --rule: #e4e4de; --grid: #ecece7; --soft: #f1f1ec; --reach: rgba(40, 60, 90, .045);
  --right: #0a7a4b; --wrong: #b3261e; --gone: #8f969e;
  --t0: #0068b5; --t1: #cf4f00; --t2: #00806a; --t3: #a8508a; --t4: #8a6100; --t5: #2d86a8;
  --t6: #4a4f57;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #101317; --panel: #181c21; --ink: #e7eaee; --muted: #a9b2bc; --faint: #8b959f;
    --rule: #2b3138; --grid: #252b31; --soft: #1f242a; --reach: rgba(160, 190, 230, .055);
    --right: #4fce94; --wrong: #ff8a80; --gone: #767f88;
    --t0: #5fb2f5; --t1: #ff8f52; --t2: #3fcaaa; --t3: #e694c6; --t4: #e0b64a; --t5: #86cde8;
    --t6: #c3c9d0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main, .mast, footer { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 16px; top: 12px; background: var(--panel); padding: 6px 12px; }
a { color: inherit; text-decoration-color: var(--faint); text-underline-offset: 3px; }
a:focus-visible, summary:focus-visible, [tabindex]:focus-visible {
  outline: 2px solid var(--t0); outline-offset: 3px; border-radius: 4px;
}
.mast { padding-top: 52px; }
.eyebrow {
  margin: 0 0 8px; color: var(--muted); font-size: 12px; letter-spacing: .09em;
  text-transform: uppercase;
}
h1 { margin: 0; font-size: 38px; line-height: 1.12; letter-spacing: -.022em; font-weight: 680;
  overflow-wrap: anywhere; }
.lede { max-width: 68ch; margin: 14px 0 0; font-size: 17px; color: var(--muted); }
.chips { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 18px 0 0; padding: 0;
  list-style: none; color: var(--muted); font-size: 13.5px; }
.chips b { color: var(--ink); font-weight: 560; overflow-wrap: anywhere; }
nav { margin: 26px 0 0; border-block: 1px solid var(--rule); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 0; padding: 10px 0;
  list-style: none; font-size: 14px; }
nav a { text-decoration: none; color: var(--muted); }
nav a:hover { color: var(--ink); text-decoration: underline; }
section { margin: 52px 0 0; }
h2 { margin: 0 0 6px; font-size: 23px; letter-spacing: -.012em; font-weight: 650; }
h3 { margin: 0; font-size: 16px; font-weight: 640; overflow-wrap: anywhere; }
.intro { max-width: 72ch; margin: 0 0 20px; color: var(--muted); }
.panel {
  background: var(--panel); border: 1px solid var(--rule); border-radius: 12px; padding: 18px 20px;
}
.scroll { overflow-x: auto; }
.icon { width: 15px; height: 15px; vertical-align: -2px; margin-right: 6px; flex: none; }
.note, .small { color: var(--muted); font-size: 13px; }

.tiers { display: grid; grid-template-columns: repeat(auto-fit, minmax(228px, 1fr)); gap: 14px; }
.tier { border-top: 4px solid var(--own); padding: 16px 18px 14px; }
.tier .big { margin: 12px 0 0; font-size: 31px; line-height: 1.1; font-weight: 650;
  letter-spacing: -.02em; }
.tier .big small { font-size: 14px; font-weight: 450; color: var(--muted); letter-spacing: 0; }
.tier dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 8px; margin: 12px 0 0;
  font-size: 13px; }
.tier dt { color: var(--muted); }
.tier dd { margin: 0; text-align: right; white-space: nowrap; }
.gauge { display: block; width: 100%; height: 12px; margin-top: 8px; }
.gauge .rail { fill: var(--soft); }
.gauge .span { fill: var(--own); opacity: .32; }
.gauge .at { fill: var(--own); }
.badges { display: flex; flex-wrap: wrap; gap: 5px; margin: 8px 0 0; padding: 0; list-style: none; }
.badges li { padding: 1px 8px; border-radius: 99px; background: var(--soft); color: var(--muted);
  font-size: 12px; }
.t0 { --own: var(--t0); } .t1 { --own: var(--t1); } .t2 { --own: var(--t2); }
.t3 { --own: var(--t3); } .t4 { --own: var(--t4); } .t5 { --own: var(--t5); }
.t6 { --own: var(--t6); } .gone { --own: var(--gone); }

.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; margin: 0 0 14px; padding: 0;
  list-style: none; font-size: 13.5px; }
.legend li { display: inline-flex; align-items: center; }
.legend .swatch { width: 22px; height: 12px; border-radius: 3px; margin-right: 7px; }
.legend .void-swatch { border: 1px dashed var(--faint); }
.plot, .strip { display: block; width: 100%; height: auto; overflow: visible; }
.wide > svg { min-width: 720px; }
.plot text, .strip text {
  font: 11px ui-sans-serif, system-ui, "Segoe UI", Roboto, Arial, sans-serif;
  fill: var(--muted); font-variant-numeric: tabular-nums;
}
.plot .title { fill: var(--ink); font-size: 11.5px; }
.plot .grid { stroke: var(--grid); }
.plot .axis { stroke: var(--faint); }
.plot .mark { fill: var(--own); stroke: var(--panel); stroke-width: 1.5; }
.plot .mark.gone { fill: var(--panel); stroke: var(--gone); stroke-width: 1.4; }
.icon .mark { fill: var(--own); }
.icon .mark.gone { fill: none; stroke: var(--gone); stroke-width: 1.6; }
.plot .whisker line { stroke: var(--own); stroke-width: 1.5; opacity: .65; }
.plot .front { fill: none; stroke: var(--faint); stroke-width: 1.2; stroke-dasharray: 3 3; }
.plot .reach { fill: var(--reach); }
.plot .leader { stroke: var(--faint); stroke-width: .8; }
.plot .name, .plot .note { paint-order: stroke; stroke: var(--panel); stroke-width: 3px; }
.plot .name { fill: var(--ink); font-weight: 620; font-size: 12px; }
.plot .gone-name { fill: var(--faint); font-weight: 430; }
.plot .note { fill: var(--muted); }
.plot .curve { fill: none; stroke: var(--own); stroke-width: 1.8; stroke-linejoin: round; }
.trio { display: grid; grid-template-columns: repeat(3, 1fr); gap: 20px 14px; }
.duo { display: grid; grid-template-columns: repeat(2, 1fr); gap: 26px 22px; }
.plots h3 { margin: 24px 0 10px; padding-top: 16px; border-top: 1px solid var(--rule); }
.plots h3:first-of-type { border: 0; padding-top: 0; margin-top: 8px; }

table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
caption { text-align: left; color: var(--muted); padding: 0 0 8px; font-size: 13px; }
th, td { padding: 6px 14px 6px 0; text-align: right; border-top: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
thead th { border-top: 0; color: var(--muted); font-weight: 500; vertical-align: bottom; }
th:first-child, td.why, th.why { text-align: left; }
tbody th { font-weight: 600; }
td.why { white-space: normal; min-width: 24ch; color: var(--muted); }
tr.away th, tr.away td { color: var(--faint); }
tr.away td.why { color: var(--muted); }
tr.away th { font-weight: 450; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--muted); font-size: 13.5px; }
details[open] summary { margin-bottom: 10px; }

.recipe { margin-top: 16px; }
.recipe header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; }
.recipe .badges { margin: 0; }
.recipe .wide { margin: 12px 0 2px; }
.facts { display: grid; grid-template-columns: 1fr 1fr 1.15fr; gap: 14px 30px; margin-top: 14px; }
.reasons { display: grid; grid-template-columns: auto 1fr; gap: 4px 22px; margin: 10px 0 0;
  font-size: 13.5px; }
.reasons dt { color: var(--muted); }
.reasons dd { margin: 0; }
.facts h4 { margin: 0 0 4px; font-size: 12px; letter-spacing: .06em; text-transform: uppercase;
  color: var(--muted); font-weight: 560; }
.facts dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; margin: 0;
  font-size: 13.5px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.strip .cell { rx: 1.5px; }
@media (prefers-color-scheme: dark) { .strip .cell { stroke: rgba(255, 255, 255, .18);
  stroke-width: .6; } }
.strip .void { fill: none; stroke: var(--faint); stroke-dasharray: 2 2; stroke-width: .8; }
.strip .void-line { stroke: var(--faint); stroke-width: .8; stroke-dasharray: 1 3; }

.task { margin-top: 16px; }
.task header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline;
  justify-content: space-between; }
.ask { margin: 10px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.gold { margin: 8px 0 0; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(224px, 1fr)); gap: 14px;
  margin: 14px 0 0; }
.answer { border-left: 3px solid var(--own); padding: 2px 0 2px 12px; min-width: 0; }
.answer .who { display: flex; justify-content: space-between; gap: 8px; font-size: 13.5px; }
.answer .verdict { font-weight: 620; white-space: nowrap; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
pre { margin: 4px 0 0; max-height: 15em; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere;
  font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.silent { color: var(--faint); font-style: italic; }
footer { margin-top: 60px; padding-top: 18px; padding-bottom: 48px; color: var(--muted);
  font-size: 13px; }
footer p { max-width: 78ch; margin: 0 0 6px; }

@media (max-width: 860px) {
  .trio, .duo, .facts { grid-template-columns: 1fr; }
  h1 { font-size: 30px; }
}
@media print {
  :root { --paper: #fff; --panel: #fff; }
  body { font-size: 10.5pt; }
  main, .mast, footer { max-width: none; padding: 0; }
  nav, .skip { display: none; }
  .panel { border-color: #ccc; }
  .tier, .recipe, .task, .plots svg, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  pre { max-height: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

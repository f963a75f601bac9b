"""Is routing worth it on a family's own outcomes? Against always the largest tier, and controls.

    python benchmarks/routing_own.py FAMILY [--runs N] [--quality Q...] [--json FILE]

Reads what `tierwise calibrate FAMILY` has collected (all suites together) and asks nobody. Each run
splits it anew, learns, and decides for the part that nothing was learned from; all figures are of
those parts, median, smallest and largest over the runs.

For each quality, ``routed`` is the learned router, ``as_decided`` what ChatTierwise does: the
router where the verdict is for it, else the cheapest fixed tier whose usual chance (by what was
learned from) is that of the best tier times the quality. ``quality_retained``: share of calls
answered rightly ÷ that of always asking the largest tier (the one of most bytes).
``seconds_saved``: share of its seconds. ``verdict_route``: in how many runs routing beat all
controls. ``cascade_gain``: by how much the area under quality over cost (over prices of a second)
is larger where replies go on to a better tier that is worth its price, once it is known how sure
their tier was and whether verification found fault; the second call is paid for. It is in terms of
the gap between the cheapest tier and the best one; with its standard error over calls (see
`standard_error`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, say, spread

from tierwise import Family
from tierwise.evaluation.outcomes import OUTCOMES, OutcomeStore
from tierwise.routing.calibration import Calibration
from tierwise.routing.calibration_fit import fit_calibration, parts_of, usual_chances
from tierwise.routing.controls import cheapest_that_will_do
from tierwise.routing.labelled import Labelled, labelled
from tierwise.routing.metrics import aiq
from tierwise.runtime.profile import family_profiles

PRICES = (0.0, *np.geomspace(0.005, 2.0, 40).tolist())
"""Of a second, in right answers."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("--quality", type=float, nargs="*", default=[0.9, 0.95, 0.98])
    options = parser.parse_args()
    family = Family.load(options.family)
    tiers = family.tiers
    with OutcomeStore(family.folder / OUTCOMES) as store:
        data = labelled(store, tiers, family_profiles(family))
    say(f"{len(data)} calls: " + ", ".join(f"{suite}" for suite in sorted(set(data.suites))))
    figures: dict[str, Any] = {
        "calls": len(data),
        "right": dict(zip([t.name for t in tiers], data.y.mean(axis=0).round(4), strict=True)),
        "seconds": dict(
            zip([t.name for t in tiers], data.spent.mean(axis=0).round(4), strict=True)
        ),
    }
    figures["largest"] = max(tiers, key=lambda tier: tier.bytes).name
    runs = [fit_calibration(data, family, tiers, seed=seed) for seed in range(options.runs)]
    tests = [parts_of(data, seed).test for seed in range(options.runs)]
    for quality in options.quality:
        figures[f"quality {quality}"] = {
            how: spreads(
                [of(quality, found, data, t, family) for found, t in zip(runs, tests, strict=True)]
            )
            for how, of in (("routed", routed), ("as_decided", as_decided))
        }
    gains = [cascade_gain(found, data, t) for found, t in zip(runs, tests, strict=True)]
    held_out = sum(map(len, tests)) / len(tests) / len(data)
    figures["cascade_gain"] = {
        "mean": round(float(np.mean(gains)), 4),
        "standard_error": round(standard_error(gains, held_out), 4),
        **spread(gains),
    }
    figures["estimators"] = [found.estimator for found in runs]
    figures["verdict_route"] = sum(found.verdict.route for found in runs)
    figures["verdict"] = runs[0].verdict.reason
    report(figures, options.json)


def spreads(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def routed(
    quality: float, found: Calibration, data: Labelled, test: Any, family: Family
) -> dict[str, float]:
    """What routing with this quality comes to, against always the largest."""
    choice = cheapest_that_will_do(found.judged.predicted, found.judged.cost, quality)
    return against_largest(choice, data, test, family)


def as_decided(
    quality: float, found: Calibration, data: Labelled, test: Any, family: Family
) -> dict[str, float]:
    """What the family is used as, with the verdict that it has."""
    if found.verdict.route:
        return routed(quality, found, data, test, family)
    learned = np.setdiff1d(np.arange(len(data)), test)
    usual = usual_chances(data, family, family.tiers, learned)
    fixed = cheapest_that_will_do(usual[None], data.spent[learned].mean(axis=0)[None], quality)
    return against_largest(np.repeat(fixed, len(test)), data, test, family)


def against_largest(choice: Any, data: Labelled, test: Any, family: Family) -> dict[str, float]:
    """Of the chosen tiers, shape (test,)."""
    largest = int(np.argmax([tier.bytes for tier in family.tiers]))
    rows = np.arange(len(test))
    right, spent = data.y[test], data.spent[test]
    return {
        "quality_retained": float(right[rows, choice].mean() / max(1e-9, right[:, largest].mean())),
        "seconds_saved": float(1 - spent[rows, choice].sum() / spent[:, largest].sum()),
    }


def standard_error(values: Sequence[float], held_out: float) -> float:
    """Of the mean over splits of the same calls, of which a share is held out each time.

    Splits share calls, so that more of them do not make it ever smaller: the correction of Nadeau
    and Bengio (Machine Learning 52, 2003). NaN of a single split.
    """
    if len(values) < 2:
        return float("nan")
    shared = 1 / len(values) + held_out / (1 - held_out)
    return float(np.std(values, ddof=1) * np.sqrt(shared))


def cascade_gain(found: Calibration, data: Labelled, test: Any) -> float:
    """Area of route and cascade less that of routing alone, in terms of the gap."""
    if found.signals is None:
        return 0.0
    predicted, cost = found.judged.predicted, found.judged.cost
    right, spent = data.y[test], data.spent[test]
    later = found.signals.after(predicted, data.sure[test], data.problems[test])
    rank = np.argsort(np.argsort(found.usual))
    rows = np.arange(len(test))
    curves: dict[str, list[tuple[float, float]]] = {"route": [], "cascade": []}
    for price in PRICES:
        choice = (predicted - price * cost).argmax(axis=1)
        seconds, quality = spent[rows, choice].copy(), right[rows, choice].copy()
        curves["route"].append((seconds.mean(), quality.mean()))
        for row in rows:
            tier = choice[row]
            while (rivals := np.flatnonzero(rank > rank[tier])).size:
                chances = [
                    found.signals.instead(
                        tier, later[row, tier, None], rival, predicted[row, rival, None]
                    )[0]
                    for rival in rivals
                ]
                values = np.array(chances) - price * cost[row, rivals]
                if values.max() <= later[row, tier]:
                    break
                tier = rivals[values.argmax()]
                seconds[row] += spent[row, tier]
                quality[row] = right[row, tier]
        curves["cascade"].append((seconds.mean(), quality.mean()))
    ends = spent.mean(axis=0)
    areas = {
        name: aiq(
            *(np.array(column) for column in zip(*points, strict=True)), ends.min(), ends.max()
        )
        for name, points in curves.items()
    }
    shares = right.mean(axis=0)
    gap = shares.max() - shares[int(ends.argmin())]
    return float((areas["cascade"] - areas["route"]) / gap) if gap > 0 else 0.0


if __name__ == "__main__":
    main()

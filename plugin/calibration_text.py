"""A calibration as a terminal shows it."""

from __future__ import annotations

from tierwise.routing.budget import Budget
from tierwise.routing.calibration import Calibration
from tierwise.routing.price_search import Price

MEAN_QUALITIES = (0.9, 0.95, 0.98)
"""For which it is told what a second is priced at."""

_NAMES = {
    "structural_prior": "the family's own measurements",
    "ridge_gain": "ridge regression on gains",
    "logistic": "logistic regression",
    "guarded_knn": "neighbours",
}


def calibration_text(found: Calibration) -> str:
    """What was asked, how honest the chances are tier by tier, and the verdict with its table."""
    asked = ", ".join(f"{count} of {suite}" for suite, count in found.suites.items())
    lines = [f"{sum(found.suites.values())} calls that every tier answered: {asked}", ""]
    lines.append(f"{'tier':<24}{'right':>8}{'Brier score (95 %)':>26}{'calibration error':>26}")
    for name, mean in zip(found.tiers, found.means.tolist(), strict=True):
        row = f"{name:<24}{mean:>8.1%}"
        if (held := found.reliability.get(name)) is not None:
            row += f"{held.brier!s:>26}{held.ece_mass!s:>26}"
        lines.append(row)
    learned = _NAMES.get(found.estimator, found.estimator)
    lines += ["", f"chances of success by {learned}", "", str(found.verdict)]
    if prices := mean_prices(found):
        lines += [
            "",
            f"{'mean_quality':<24}{'price of a second':>20}{'kept':>10}{'seconds a call':>18}",
        ]
    for quality, price in prices.items():
        kept = f"{price.kept:.1%}"
        lines.append(f"{quality:<24}{price.per_second:>20.3g}{kept:>10}{price.seconds:>18.3g}")
    return "\n".join(lines)


def mean_prices(found: Calibration) -> dict[float, Price]:
    """What a second is priced at for some values of `Budget.mean_quality`; empty where there are
    no calls to find it on."""
    if not len(found.judged.groups):
        return {}
    return {quality: found.price(Budget(mean_quality=quality)) for quality in MEAN_QUALITIES}


def in_words(found: Calibration | None) -> str:
    """What a family's calls are routed by, in a few sentences."""
    if found is None:
        return (
            "Not calibrated: calls are routed by what was measured when the family was built. "
            "tierwise calibrate asks its tiers."
        )
    asked = f"Calibrated on {sum(found.suites.values())} calls"
    if found.verdict.route:
        return (
            f"{asked}: route. Each call goes by what was learned of its kind, because "
            f"{found.verdict.reason}."
        )
    right = ", ".join(
        f"{name} {mean:.0%}" for name, mean in zip(found.tiers, found.usual.tolist(), strict=True)
    )
    return (
        f"{asked}: do not route, because {found.verdict.reason}. A tier's chance is the share of "
        f"them that it answered rightly, drawn to what its build measured ({right}), so that the "
        "tier that will do is the same for every call, as long as it fits."
    )

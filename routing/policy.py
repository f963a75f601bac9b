"""Which tier of those forecast: feasible first, then the cheapest that will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.runtime.errors import NoFeasibleTierError
from tierwise.runtime.units import show_bytes

STAY_MARGIN = 0.15
"""A conversation changes its tier only for a saving of more than this share of the seconds."""


class Policy(Protocol):
    """Chooses among forecasts (cheapest quality first)."""

    def __call__(
        self, forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        """Returns the tier's name, the reason, and the forecasts with their verdicts."""


def over_time(forecast: Forecast, budget: Budget) -> str:
    """Which of the budget's times a forecast exceeds, in English; "" for none."""
    call, first = budget.seconds_per_call, budget.seconds_to_first_token
    if call is not None and forecast.seconds > call:
        return f"{forecast.seconds:.2f} s is over the {call:.2f} s allowed"
    if first is not None and forecast.first_token_s > first:
        return f"{forecast.first_token_s:.2f} s to the first token, {first:.2f} s allowed"
    return ""


def feasible_first(
    forecasts: Sequence[Forecast], budget: Budget, current: str | None
) -> tuple[str, str, tuple[Forecast, ...]]:
    """Drops what does not fit, then takes the cheapest tier above the quality floor.

    The price of switching tiers is in the forecasts already: another tier has less of the
    conversation cached and must prefill more. `STAY_MARGIN` comes on top, so that small
    differences do not make a conversation jump between tiers.

    Raises:
        NoFeasibleTierError: Lists what each tier would need.
    """
    feasible = [f for f in forecasts if f.feasible]
    if not feasible:
        needs = "; ".join(f"{f.tier}: {f.verdict} (needs {_need(f)})" for f in forecasts)
        raise NoFeasibleTierError(
            f"no tier fits the budget and what the machine can spare now. {needs}. Allow more "
            "memory or time, shorten the conversation, or build a smaller tier."
        )
    best = max(f.success for f in forecasts)
    floor = budget.quality * best
    good = [f for f in feasible if f.success >= floor - 1e-9]
    if not good:
        chosen = max(feasible, key=lambda f: (f.success, -f.seconds))
        reason = (
            f"no tier within the budget reaches the quality floor of {floor:.0%}; "
            f"{chosen.tier} comes nearest with {chosen.success:.0%}"
        )
    else:
        chosen = min(good, key=lambda f: f.seconds)
        reason = (
            f"{chosen.tier} is the quickest of {len(good)} that reach the quality floor "
            f"({chosen.success:.0%} against {floor:.0%})"
        )
        stay = next((f for f in good if f.tier == current), None)
        if (
            stay is not None
            and stay is not chosen
            and stay.seconds <= chosen.seconds * (1 + STAY_MARGIN)
        ):
            reason = (
                f"the conversation stays with {stay.tier}: {chosen.tier} would save only "
                f"{stay.seconds - chosen.seconds:.2f} s"
            )
            chosen = stay
    return chosen.tier, reason, tuple(_judge(f, chosen, floor) for f in forecasts)


def _need(forecast: Forecast) -> str:
    seconds = f"{forecast.seconds:.2f} s"
    known = forecast.memory_bytes > 0  # not of a file that is gone
    return f"{show_bytes(forecast.memory_bytes)}, {seconds}" if known else seconds


def _judge(forecast: Forecast, chosen: Forecast, floor: float) -> Forecast:
    if not forecast.feasible:
        return forecast
    if forecast.tier == chosen.tier:
        verdict = "chosen"
    elif forecast.success < floor - 1e-9:
        verdict = f"below the quality floor of {floor:.0%}"
    else:
        verdict = f"{forecast.seconds - chosen.seconds:+.2f} s against {chosen.tier}"
    return replace(forecast, verdict=verdict)

"""Which tier of those forecast: feasible first, then the best value, or cheapest that will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.routing.prices import Prices
from tierwise.runtime.errors import NoFeasibleTierError
from tierwise.runtime.units import show_bytes


class Policy(Protocol):
    """Chooses among forecasts (cheapest quality first)."""

    def __call__(
        self, forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        """Returns the tier's name, the reason, and the forecasts with their verdicts."""


def over_limit(forecast: Forecast, budget: Budget) -> str:
    """Which of the budget's seconds and joules a forecast exceeds, in English; "" for none."""
    limits = [s for s in (budget.seconds_per_call, budget.expected_seconds) if s is not None]
    call, first = min(limits, default=None), budget.seconds_to_first_token
    joules = budget.joules_per_call
    if call is not None and forecast.seconds > call:
        return f"{forecast.seconds:.2f} s is over the {call:.2f} s allowed"
    if first is not None and forecast.first_token_s > first:
        return f"{forecast.first_token_s:.2f} s to the first token, {first:.2f} s allowed"
    if joules is not None and forecast.joules > joules:
        return f"{forecast.joules:.3g} J is over the {joules:.3g} J allowed"
    return ""


def feasible_first(
    forecasts: Sequence[Forecast], budget: Budget, current: str | None
) -> tuple[str, str, tuple[Forecast, ...]]:
    """Drops what does not fit, then takes the best of the tiers above the quality floor.

    Where the budget sets prices, that is the tier of the best expected value: its chance of
    success less what its seconds, memory and joules cost. Without prices it is the quickest, or
    on scarce power the one of the fewest seconds and joules.

    Tiers on other machines are asked where none of this one is above the floor: calls stay here
    as long as they can.

    With a guarantee it is the first of those above the floor, wherever it is: a promise was tested
    in the order that the forecasts then have (`Calibration.cheapest_first`), and what a tier takes
    for one call must not change who answers.

    Going to another tier has its price in that tier's forecast already: it must be loaded if it
    is cold, and must read what of the conversation it has not cached. Coming back has one too,
    which is in no forecast of this call: the tier that is left must then read what was said
    meanwhile (`Forecast.return_s`), or, if it was unloaded to make room, be loaded and read all
    of it (`Forecast.reload_s`). A conversation leaves its tier only for a gain of more than that,
    so that no move costs more than it brings, even if the next call takes it back. A tier that
    has no more of it cached than the other one does not hold it.

    Raises:
        NoFeasibleTierError: Lists what each tier would need.
    """
    feasible = [f for f in forecasts if f.feasible]
    if not feasible:
        needs = "; ".join(f"{f.tier}: {f.verdict} (needs {_need(f, budget)})" for f in forecasts)
        raise NoFeasibleTierError(
            f"no tier fits the budget and what the machine can spare now. {needs}. Allow more "
            "memory, time or energy, shorten the conversation, or build a smaller tier."
        )
    prices = Prices.of(budget)
    best = max(f.success for f in forecasts)
    floor = budget.quality * best
    good = [f for f in feasible if f.success >= floor - 1e-9]
    if budget.guarantee is None:
        good = [f for f in good if not f.remote] or good
    if not good:
        chosen = max(feasible, key=lambda f: (f.success, -prices.cost(f)))
        reason = (
            f"no tier within the budget reaches the quality floor of {floor:.0%}; "
            f"{chosen.tier} comes nearest with {chosen.success:.0%}"
        )
    elif budget.guarantee is not None:
        chosen = good[0]
        reason = (
            f"{chosen.tier} is usually the quickest of {len(good)} that reach the quality floor "
            f"({chosen.success:.0%} against {floor:.0%})"
        )
    else:
        chosen = max(good, key=lambda f: (prices.value(f), -f.seconds))
        reason = _why(chosen, len(good), floor, prices, budget)
        stay = next((f for f in good if f.tier == current), None)
        if stay is not None and stay.new_tokens < chosen.new_tokens:
            gain = prices.value(chosen) - prices.value(stay)
            seconds, joules = _coming_back(stay, chosen)
            if gain <= prices.second * seconds + prices.joule * joules:
                reason = _why_stay(chosen, stay, gain, seconds, prices)
                chosen = stay
    return chosen.tier, reason, tuple(_judge(f, chosen, floor, prices) for f in forecasts)


def _coming_back(left: Forecast, taken: Forecast) -> tuple[float, float]:
    """Seconds and joules that the tier which is left would take to go on with the conversation."""
    seconds = left.reload_s if taken.crowds else left.return_s
    return seconds, seconds * left.joules / left.seconds if left.seconds else 0.0


def _why(chosen: Forecast, good: int, floor: float, prices: Prices, budget: Budget) -> str:
    power = "" if budget.power in ("auto", "performance") else f"; power: {budget.power}"
    if prices.success:
        reach = f" that reach the quality floor of {floor:.0%}" if budget.quality else ""
        return (
            f"{chosen.tier} is worth most of {good}{reach} ({chosen.success:.0%} less "
            f"{prices.cost(chosen):.3f} for {prices.told(chosen)}{power})"
        )
    how = "takes the fewest seconds and joules" if prices.joule else "is the quickest"
    return (
        f"{chosen.tier} {how} of {good} that reach the quality floor "
        f"({chosen.success:.0%} against {floor:.0%}{power})"
    )


def _why_stay(chosen: Forecast, stay: Forecast, gain: float, seconds: float, prices: Prices) -> str:
    back = f"coming back could take {seconds:.2f} s"
    if prices.success:
        said = f"{chosen.tier} is worth only {gain:.3f} more, and {back}"
    elif chosen.seconds <= stay.seconds:
        said = f"{chosen.tier} would save only {stay.seconds - chosen.seconds:.2f} s, and {back}"
    else:
        said = f"{chosen.tier} would save only {stay.joules - chosen.joules:.3g} J, and {back}"
    return f"the conversation stays with {stay.tier}: {said}"


def _need(forecast: Forecast, budget: Budget) -> str:
    needs = [f"{forecast.seconds:.2f} s"]
    if forecast.memory_bytes > 0:  # not of a file that is gone
        needs.insert(0, show_bytes(forecast.memory_bytes))
    if budget.joules_per_call is not None:
        needs.append(f"{forecast.joules:.3g} J")
    return ", ".join(needs)


def _judge(forecast: Forecast, chosen: Forecast, floor: float, prices: Prices) -> Forecast:
    if not forecast.feasible:
        return forecast
    if forecast.tier == chosen.tier:
        verdict = "chosen"
    elif forecast.success < floor - 1e-9:
        verdict = f"below the quality floor of {floor:.0%}"
    elif forecast.remote and not chosen.remote:
        verdict = f"on another machine, and {chosen.tier} will do"
    elif prices.success:
        worth = prices.value(forecast) - prices.value(chosen)
        verdict = f"worth {abs(worth):.3f} {'more' if worth > 0 else 'less'} than {chosen.tier}"
    else:
        verdict = f"{forecast.seconds - chosen.seconds:+.2f} s against {chosen.tier}"
    return replace(forecast, verdict=verdict)

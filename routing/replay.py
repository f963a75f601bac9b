"""A decision log under another budget: which tiers would have answered, how quickly, how well.

Nothing is run again: forecasts were logged with every decision. What a tier had cached then is
taken as it was, so the seconds of a very different routing are a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.routing.decision_log import Logged
from tierwise.routing.policy import Policy, feasible_first, over_limit
from tierwise.runtime.errors import ConfigError, NoFeasibleTierError
from tierwise.runtime.units import show_bytes


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision, then and now.

    Args:
        id: Of the logged row.
        then, now: Tiers; ``now`` is None where no tier fits the budget.
        seconds_then, seconds_now: As forecast; 0 where no tier fits.
        joules_then, joules_now: Likewise.
        success_then, success_now: Likewise.
    """

    id: str
    then: str
    now: str | None
    seconds_then: float
    seconds_now: float
    joules_then: float
    joules_now: float
    success_then: float
    success_now: float


@dataclass(frozen=True, slots=True)
class Replay:
    """All of them."""

    rows: tuple[Replayed, ...]

    def to_json(self) -> dict[str, Any]:
        """Sums, for ``--json``."""
        count = max(1, len(self.rows))
        return {
            "calls": len(self.rows),
            "changed": sum(row.then != row.now for row in self.rows),
            "refused": sum(row.now is None for row in self.rows),
            "seconds": {
                "then": round(sum(row.seconds_then for row in self.rows), 3),
                "now": round(sum(row.seconds_now for row in self.rows), 3),
            },
            "joules": {
                "then": round(sum(row.joules_then for row in self.rows), 2),
                "now": round(sum(row.joules_now for row in self.rows), 2),
            },
            "success": {
                "then": round(sum(row.success_then for row in self.rows) / count, 4),
                "now": round(sum(row.success_now for row in self.rows) / count, 4),
            },
            "tiers": {
                "then": dict(Counter(row.then for row in self.rows).most_common()),
                "now": dict(Counter(row.now or "none" for row in self.rows).most_common()),
            },
        }


def replay(rows: Iterable[Logged], budget: Budget, *, policy: Policy = feasible_first) -> Replay:
    """Decides every logged call again.

    Args:
        rows: From `read_log`.
        budget: Instead of the one that they had. What was on battery then is taken to be on
            mains, unless its ``power`` says otherwise.
        policy: Chooses among the forecasts.

    Raises:
        ConfigError: The budget is of averages, whose price no log can tell.
    """
    if budget.by_mean:
        raise ConfigError(
            "mean_seconds and mean_quality come from a family's calibration, which a log has not; "
            "replay it with a price, such as price_per_second=0.01"
        )
    return Replay(tuple(_replayed(row, budget, policy) for row in rows))


def _replayed(row: Logged, budget: Budget, policy: Policy) -> Replayed:
    """The first decision of a call, made again. Where the same tier is asked first, what came
    after that would have come again."""
    final = next(one for one in _forecasts(row.answer["decision"]) if one.tier == row.tier)
    began = row.answer.get("first_decision") or row.answer["decision"]
    forecasts = _forecasts(began)
    tries = row.answer["attempts"]
    seconds, joules = (
        sum(one[key] for one in tries) for key in ("predicted_s", "predicted_joules")
    )
    then = row.tier, float(seconds), float(joules), final.success
    try:
        name, _, _ = policy([_judged(one, budget) for one in forecasts], budget, None)
    except NoFeasibleTierError:
        now: tuple[str | None, float, float, float] = None, 0.0, 0.0, 0.0
    else:
        chosen = next(one for one in forecasts if one.tier == name)
        now = name, chosen.seconds, chosen.joules, chosen.success
        if name == tries[0]["tier"]:
            now = then
    both = zip(then[1:], now[1:], strict=True)
    return Replayed(row.id, row.tier, now[0], *(value for pair in both for value in pair))


def _forecasts(decision: Mapping[str, Any]) -> list[Forecast]:
    return [Forecast(**one) for one in decision["forecasts"]]


def _judged(forecast: Forecast, budget: Budget) -> Forecast:
    """Feasible under this budget? A tier that was out of reach then has no known memory."""
    verdict = over_limit(forecast, budget)
    if not forecast.memory_bytes and not forecast.feasible:
        verdict = forecast.verdict
    elif budget.memory is not None and forecast.memory_bytes > budget.memory:
        verdict = f"needs {show_bytes(forecast.memory_bytes)} of {show_bytes(budget.memory)}"
    return replace(forecast, feasible=not verdict, verdict=verdict)

"""A choice among candidates that have names of their own: tiers, and models outside the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.routing.policy import feasible_first, over_limit
from tierwise.runtime.record import Record


class OtherModel(Record):
    """A model outside the family, as you know it: a provider's, or one on another server.

    Args:
        success: Its chance of being right on a usual call.
        seconds: That a usual call takes.
        first_token_s: Until the first token; None for all of ``seconds``.
    """

    success: float = Field(ge=0, le=1)
    seconds: float = Field(gt=0)
    first_token_s: float | None = Field(default=None, gt=0)

    def forecast(self, name: str, budget: Budget) -> Forecast:
        """The same for every call; it takes no memory and no joules of this machine."""
        first = self.seconds if self.first_token_s is None else self.first_token_s
        known = Forecast(
            tier=name,
            success=self.success,
            seconds=self.seconds,
            first_token_s=first,
            joules=0.0,
            memory_bytes=0,
            new_tokens=0,
            cold=False,
            feasible=True,
            verdict="",
        )
        late = over_limit(known, budget)
        return replace(known, feasible=not late, verdict=late)


@dataclass(frozen=True, slots=True)
class AmongCandidates:
    """The policy `feasible_first` among named candidates; forecasts go by these names.

    Args:
        candidates: Tiers' names and other models, by the candidates' own names.
    """

    candidates: Mapping[str, str | OtherModel]

    def __call__(
        self, forecasts: Sequence[Forecast], budget: Budget, current: str | None
    ) -> tuple[str, str, tuple[Forecast, ...]]:
        """As of `Policy`; tiers that are no candidate do not count."""
        known = {forecast.tier: forecast for forecast in forecasts}
        offered = [
            replace(known[one], tier=name) if isinstance(one, str) else one.forecast(name, budget)
            for name, one in self.candidates.items()
        ]
        here = (name for name, one in self.candidates.items() if one == current)
        return feasible_first(offered, budget, next(here, None))


def shares(forecasts: Sequence[Forecast], chosen: str) -> dict[str, float]:
    """How likely each candidate is the quickest one that is right, given that one is.

    It is taken that who has the better chance is right wherever the others are. Candidates that
    cannot answer have no share. Where nobody is expected to be right, the chosen one has all.
    """
    found = dict.fromkeys((forecast.tier for forecast in forecasts), 0.0)
    reached = 0.0
    for forecast in sorted((f for f in forecasts if f.feasible), key=lambda f: f.seconds):
        found[forecast.tier] = max(0.0, forecast.success - reached)
        reached = max(reached, forecast.success)
    if not reached:
        return {**found, chosen: 1.0}
    return {name: share / reached for name, share in found.items()}

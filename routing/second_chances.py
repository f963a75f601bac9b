"""Whether a better tier should be asked, once a reply is there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from tierwise.routing.budget import Budget
from tierwise.routing.calibration import Calibration
from tierwise.routing.decision import Decision, Forecast
from tierwise.routing.prices import Prices
from tierwise.runtime.chat import Reply


@dataclass(frozen=True, slots=True)
class SecondChances:
    """What a calibration knows of a reply, and of those that could be had in its place.

    Args:
        chance: That the reply is right.
        better: Forecasts of better tiers within reach, with their chances now that it is known.
    """

    chance: float
    better: tuple[Forecast, ...]

    @classmethod
    def of(
        cls,
        calibration: Calibration | None,
        decision: Decision,
        reply: Reply,
        better: Collection[str],
        *,
        problem: bool,
    ) -> SecondChances | None:
        """None where nothing is known of that, or no better tier can answer.

        Args:
            decision: By which the reply came.
            better: Names of better tiers.
            problem: Whether verification found fault with the reply.
        """
        if calibration is None or not calibration.verdict.route:
            return None
        own = decision.forecast
        chance = calibration.after(own.tier, own.success, reply.margins, problem=problem)
        reached = [f for f in decision.forecasts if f.tier in better and f.within_reach]
        if chance is None or not reached:
            return None
        later = chance
        return cls(
            later,
            tuple(
                replace(f, success=calibration.instead(own.tier, later, f.tier, f.success))
                for f in reached
            ),
        )

    def floor(self, budget: Budget) -> float:
        """The chance that the budget's quality asks for."""
        return budget.quality * max(f.success for f in self.better)

    def doubt(self, budget: Budget) -> str:
        """Why another call is worth it after a reply without fault, in English; "" if it is not."""
        said = f"by how sure it was, it is right with a chance of {self.chance:.0%}"
        if self.chance < self.floor(budget):
            return f"{said}, and {self.floor(budget):.0%} are wanted"
        prices = Prices.of(budget)
        best = max(self.better, key=prices.value)
        if prices.success and prices.value(best) > self.chance:
            return f"{said}, and {best.tier} is worth {prices.value(best):.2f}"
        return ""

    def pays(self, budget: Budget) -> bool:
        """Whether another call is worth its price after a reply that is at fault."""
        prices = Prices.of(budget)
        if not prices.success or self.chance < self.floor(budget):
            return True
        return max(map(prices.value, self.better)) > self.chance

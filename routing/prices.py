"""What a call's seconds, memory and energy cost, against what a right answer is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tierwise.routing.budget import Budget, Power
from tierwise.routing.decision import Forecast

JOULE_SECONDS: Mapping[Power, float] = {
    "auto": 0.0,  # until the machine was asked
    "performance": 0.0,
    "balanced": 0.05,
    "saver": 0.5,
}
"""Seconds that a joule counts as much as. At 12 W, which is what two busy cores take, a second of
a call counts 1.6-fold in "balanced" and sevenfold in "saver"."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Of one call, in right answers.

    Args:
        success: What a right answer is worth: 1, or 0 where nothing has a price; the quality floor
            is then all that is asked of a tier, and only cost counts.
        second: Of a second; 1 where nothing has a price.
        gigabyte: Of 10**9 bytes that the tier takes.
        joule: Of a joule of this machine.
    """

    success: float
    second: float
    gigabyte: float
    joule: float

    @classmethod
    def of(cls, budget: Budget) -> Prices:
        """Those that a budget sets."""
        second, gigabyte, joule = (
            budget.price_per_second,
            budget.price_per_gigabyte,
            budget.price_per_joule,
        )
        given = bool(second or gigabyte or joule)
        if not given:
            second = 1.0
        if joule is None:
            joule = second * JOULE_SECONDS[budget.power]
        return cls(float(given), second, gigabyte, joule)

    def cost(self, forecast: Forecast) -> float:
        """Of a call on a tier."""
        return (
            self.second * forecast.seconds
            + self.gigabyte * forecast.memory_bytes / 1e9
            + self.joule * forecast.joules
        )

    def value(self, forecast: Forecast) -> float:
        """Expected, of a call on a tier."""
        return self.success * forecast.success - self.cost(forecast)

    def told(self, forecast: Forecast) -> str:
        """What of a call has a price, in English: "2.00 s, 24 J"."""
        parts = {
            f"{forecast.seconds:.2f} s": self.second,
            f"{forecast.memory_bytes / 1e9:.2f} GB": self.gigabyte,
            f"{forecast.joules:.3g} J": self.joule,
        }
        return ", ".join(part for part, price in parts.items() if price)

"""What the user grants, and the dial between quality and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tierwise.runtime.errors import ConfigError
from tierwise.runtime.units import Bytes, first_problem

if TYPE_CHECKING:
    from tierwise.runtime.resources import Resources

Power = Literal["auto", "performance", "balanced", "saver"]

LOW_BATTERY = 0.2
"""Charge (0..1) up to which a battery that is discharging is to be spared."""

SAVER_QUALITY = 0.75
"""Floor with power="saver", where the user gave none."""

_PRICES = ("price_per_second", "price_per_gigabyte", "price_per_joule")
_MEANS = ("mean_seconds", "mean_quality")


class Budget(BaseModel):
    """Limits for every call, and what its cost is weighed with. What is not given is not limited.

    Args:
        memory: Bytes that all loaded tiers may take together; a number or "500MB".
        seconds_per_call: From the call to the last token, loading included. Tiers that are
            forecast to take longer are not asked; a reply that is not over by then ends there
            (``finish_reason`` "length"). Where tools are offered or JSON is wanted, of which a part
            is of no use, it has half as long again.
        expected_seconds: The same for forecasts alone: no reply is cut short for it.
        seconds_to_first_token: From the call to the first token, loading included.
        joules_per_call: Energy of this machine, from the call to the last token.
        reply_tokens: Longest reply.
        quality: Floor for a tier's chance of success, as a share of the best tier's chance on
            the same call. 1.0 always asks for the best, 0.0 takes the cheapest. Where it is left
            out it is 0.9, `SAVER_QUALITY` to spare power, and none beside ``mean_seconds`` and
            ``mean_quality``.
        guarantee: Confidence with which ``quality`` is to hold, such as 0.95, as a share of the
            best tier's successes over many calls; for families that are calibrated. Where too
            little is known to promise it, the best tier answers.
        price_per_second: What a second of a call costs, in right answers: at 0.01, a tier that
            takes ten seconds longer must be right more often by 0.1. With any price, the tier of
            the best expected value (chance of success less prices) is taken among those above
            the floor; without one, the quickest of them.
        price_per_gigabyte: What 10**9 bytes cost that the tier takes during the call.
        price_per_joule: What a joule of this machine costs. None for what ``power`` makes of the
            price of a second.
        power: How much joules count beside seconds (`prices.JOULE_SECONDS`): not at all for
            "performance", more for "balanced", most for "saver". "auto" is "performance" on
            mains, "balanced" on battery, and "saver" on one that is low (`LOW_BATTERY`); it is
            asked again for every call. Beside ``guarantee``, ``mean_seconds`` and
            ``mean_quality`` it has no effect.
        mean_seconds: Seconds that calls may take on average; for families that are calibrated.
            The price of a second is found with which its judged calls keep to that, as forecast
            with the tiers loaded and nothing cached; loading and escalations come on top.
        mean_quality: Share of the best tier's successes that is to be kept on average, likewise:
            the highest price of a second with which the judged calls keep it.

    Raises:
        ConfigError: A value that cannot be, or values that contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: Bytes | None = None
    seconds_per_call: float | None = Field(default=None, gt=0)
    expected_seconds: float | None = Field(default=None, gt=0)
    seconds_to_first_token: float | None = Field(default=None, gt=0)
    joules_per_call: float | None = Field(default=None, gt=0)
    reply_tokens: int | None = Field(default=None, ge=1)
    quality: float = Field(default=0.9, ge=0, le=1)
    guarantee: float | None = Field(default=None, gt=0, lt=1)
    price_per_second: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    price_per_gigabyte: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    price_per_joule: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    power: Power = "auto"
    mean_seconds: float | None = Field(default=None, gt=0)
    mean_quality: float | None = Field(default=None, gt=0, le=1)

    def __init__(self, **values: Any) -> None:
        if any(values.get(name) is not None for name in _MEANS):
            values.setdefault("quality", 0.0)
        elif values.get("power") == "saver" and values.get("guarantee") is None:
            values.setdefault("quality", SAVER_QUALITY)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(first_problem(error, "budget")) from error
        self._check()

    def _check(self) -> None:
        means = [name for name in _MEANS if getattr(self, name) is not None]
        prices = [name for name in _PRICES if getattr(self, name)]
        if len(means) == 2 or (means and prices):
            raise ConfigError(
                f"a budget with {means[0]} cannot have {(means[1:] + prices)[0]}: an average sets "
                "all prices by itself. Leave one out."
            )
        if self.guarantee is not None and (means or prices):
            raise ConfigError(
                f"a budget with a guarantee cannot have {(means + prices)[0]}: a promise holds "
                "for the usually quickest tier above a floor. Leave one out."
            )

    @property
    def by_mean(self) -> bool:
        """Whether the price of a second is to be found on calibration data."""
        return self.mean_seconds is not None or self.mean_quality is not None

    def on(self, resources: Resources) -> Budget:
        """The same with ``power`` as it is on this machine now, never "auto"."""
        power: Power = self.power
        if self.by_mean or self.guarantee is not None:
            power = "performance"
        elif power == "auto":
            low = resources.battery is not None and resources.battery <= LOW_BATTERY
            spared: Power = "saver" if low else "balanced"
            power = spared if resources.on_battery else "performance"
        if power == self.power:
            return self
        now: dict[str, Any] = {"power": power}
        if power == "saver" and "quality" not in self.model_fields_set:
            now["quality"] = SAVER_QUALITY
        return self.model_copy(update=now)

    def after(self, seconds: float, joules: float = 0.0) -> Budget:
        """What is left of it once so much time has passed and so much energy was taken."""
        limits = {
            "seconds_per_call": (self.seconds_per_call, seconds),
            "expected_seconds": (self.expected_seconds, seconds),
            "seconds_to_first_token": (self.seconds_to_first_token, seconds),
            "joules_per_call": (self.joules_per_call, joules),
        }
        left = {k: max(1e-6, v - gone) for k, (v, gone) in limits.items() if v is not None}
        return self.model_copy(update=left)

    def for_the_best(self) -> Budget:
        """The same limits and prices, but only a tier as good as the best will do."""
        return self.model_copy(update={"quality": 1.0, **dict.fromkeys(_MEANS)})

    def for_the_cheapest(self) -> Budget:
        """The same limits, but the cheapest tier will do, however good it is."""
        free: dict[str, Any] = {"quality": 0.0, "guarantee": None, **dict.fromkeys(_MEANS)}
        free |= {"price_per_second": 0.0, "price_per_gigabyte": 0.0}
        if self.price_per_joule:
            free["price_per_joule"] = None
        return self.model_copy(update=free)

"""What the user grants, and the dial between quality and cost."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tierwise.runtime.errors import ConfigError
from tierwise.runtime.units import Bytes, first_problem


class Budget(BaseModel):
    """Limits for every call. What is not given is not limited.

    Args:
        memory: Bytes that all loaded tiers may take together; a number or "500MB".
        seconds_per_call: From the call to the last token, loading included.
        seconds_to_first_token: From the call to the first token, loading included.
        reply_tokens: Longest reply.
        quality: Floor for a tier's chance of success, as a share of the best tier's chance on
            the same call. 1.0 always asks for the best, 0.0 takes the cheapest.
        guarantee: Confidence with which ``quality`` is to hold, such as 0.95, as a share of the
            best tier's successes over many calls; for families that are calibrated. Where too
            little is known to promise it, the best tier answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory: Bytes | None = None
    seconds_per_call: float | None = Field(default=None, gt=0)
    seconds_to_first_token: float | None = Field(default=None, gt=0)
    reply_tokens: int | None = Field(default=None, ge=1)
    quality: float = Field(default=0.9, ge=0, le=1)
    guarantee: float | None = Field(default=None, gt=0, lt=1)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(first_problem(error, "budget")) from error

    def after(self, seconds: float) -> Budget:
        """What is left of it once so much time has passed."""
        limits = {
            "seconds_per_call": self.seconds_per_call,
            "seconds_to_first_token": self.seconds_to_first_token,
        }
        left = {k: max(1e-6, v - seconds) for k, v in limits.items() if v is not None}
        return self.model_copy(update=left)

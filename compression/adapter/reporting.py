"""What the steps did to a model: its size before and after each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tierwise.runtime.units import show_bytes


@dataclass(frozen=True)
class StepReport:
    """One step, with the model before and after it.

    Args:
        step: "prune", "distill" or "quantize".
        parameters: Numbers learned, before and after; zeros count like others.
        nbytes: Of all tensors as they are stored, before and after.
        zeros: Share of the parameters that is zero, after.
        seconds: That it took.
        details: What the step itself tells, such as the layers that went.
    """

    step: str
    parameters: tuple[int, int]
    nbytes: tuple[int, int]
    zeros: float
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parameters = " → ".join(f"{count:,}" for count in self.parameters)
        sizes = " → ".join(show_bytes(size) for size in self.nbytes)
        note = f"; {self.details['note']}" if "note" in self.details else ""
        return f"{self.step}: {parameters} parameters, {sizes} ({self.seconds:.1f} s){note}"


@dataclass(frozen=True)
class AdaptReport:
    """All steps so far.

    Args:
        parameters: Of the model that came in.
        nbytes: Of the model that came in.
        steps: In order.
    """

    parameters: int
    nbytes: int
    steps: tuple[StepReport, ...] = ()

    @property
    def parameters_removed(self) -> float:
        """Share of the parameters, 0..1."""
        now = self.steps[-1].parameters[1] if self.steps else self.parameters
        return 1 - now / self.parameters

    @property
    def bytes_saved(self) -> float:
        """Share of the bytes, 0..1."""
        now = self.steps[-1].nbytes[1] if self.steps else self.nbytes
        return 1 - now / self.nbytes

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))

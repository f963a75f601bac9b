"""The regularised objective L(θ) + λ‖θ − θ₀‖²: training stays near where it began.

Without it, a small model that is taught a narrow task drifts from all else that it knew
(L2-SP, Li et al., arXiv 1802.01483).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tierwise.runtime.errors import ConfigError


class Anchor:
    """λ‖θ − θ₀‖² over the trainable parameters; θ₀ is what they are now.

    Keeps a copy of them (as many bytes again), unless ``strength`` is 0.

    Args:
        model: Whose parameters are meant.
        strength: λ. The sum runs over all parameters, so that useful values are small
            (1e-6 … 1e-2).

    Raises:
        ConfigError: ``strength`` is negative.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        if strength < 0:
            raise ConfigError(f"the anchor's strength must be 0 or more, got {strength}")
        self.strength = strength
        self._pairs = [
            (parameter, parameter.detach().clone())
            for parameter in model.parameters()
            if strength and parameter.requires_grad
        ]

    def penalty(self) -> Tensor:
        """λ‖θ − θ₀‖², a scalar to be added to the loss."""
        if not self._pairs:
            return torch.zeros(())
        total = torch.stack([(now - start).square().sum() for now, start in self._pairs]).sum()
        return self.strength * total

"""Distillation losses, in nats per token.

Soft targets are probabilities: both sides go through log-softmax at the same temperature, and
the loss is multiplied by T², so that its gradient keeps its size (Hinton et al.,
arXiv 1503.02531, section 2). Logits are never compared as if they were probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor

from tierwise.runtime.errors import ConfigError


class LossFunction(Protocol):
    """A loss between two sets of logits, shape (..., vocabulary)."""

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        temperature: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The mean over tokens (scalar), weighted by ``mask`` of shape (...) where it is given."""


def soft_targets(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities at a temperature, in float32.

    Raises:
        ConfigError: The temperature is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature must be above 0, got {temperature}")
    return F.log_softmax(logits.float() / temperature, dim=-1)


def forward_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """KL(teacher ‖ student) · T²: the student must cover all that the teacher holds possible."""
    q, p = soft_targets(student, temperature), soft_targets(teacher, temperature)
    return _mean(_kl(p, q), mask) * temperature**2


def reverse_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """KL(student ‖ teacher) · T²: the student must not say what the teacher would not
    (MiniLLM, arXiv 2306.08543)."""
    q, p = soft_targets(student, temperature), soft_targets(teacher, temperature)
    return _mean(_kl(q, p), mask) * temperature**2


def jsd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    beta: float = 0.5,
) -> Tensor:
    """Generalised Jensen–Shannon divergence · T² (GKD, arXiv 2306.13649, eq. 1):
    β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) with m = β·p + (1 − β)·q, p the teacher's."""
    q, p = soft_targets(student, temperature), soft_targets(teacher, temperature)
    m = _mixture(p, q, beta)
    return _mean(beta * _kl(p, m) + (1 - beta) * _kl(q, m), mask) * temperature**2


def skew_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    alpha: float = 0.1,
) -> Tensor:
    """KL(p ‖ α·p + (1 − α)·q) · T², bounded by −log α (DistiLLM, arXiv 2402.03898, eq. 4)."""
    q, p = soft_targets(student, temperature), soft_targets(teacher, temperature)
    return _mean(_kl(p, _mixture(p, q, alpha)), mask) * temperature**2


LOSSES: dict[str, LossFunction] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
}
"""By the name that a recipe gives. All but the first need the teacher's whole distribution."""


def hidden_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    kind: str = "cosine",
    mask: Tensor | None = None,
) -> Tensor:
    """How far the surviving layers' outputs are from the teacher's, a mean over layers.

    Args:
        student: Hidden states after each layer, shape (..., width).
        teacher: Those of the layers that the student's came from, in the same order.
        kind: "cosine" for 1 − cos, as is usual when depth shrinks (Minitron, arXiv 2408.11796);
            "mse" for the squared distance, divided by the teacher's mean square.
        mask: Weights of tokens, shape (...).

    Raises:
        ConfigError: An unknown kind, or sequences of different lengths.
    """
    if len(student) != len(teacher) or not student:
        raise ConfigError(
            f"hidden states of {len(student)} student layers cannot be compared with "
            f"{len(teacher)} of the teacher"
        )
    if kind not in ("cosine", "mse"):
        raise ConfigError(f"unknown kind of hidden-state loss {kind!r}; known: cosine, mse")
    parts = []
    for own, wanted in zip(student, teacher, strict=True):
        own, wanted = own.float(), wanted.float()
        if kind == "cosine":
            parts.append(1 - F.cosine_similarity(own, wanted, dim=-1))
        else:
            scale = wanted.square().mean().clamp_min(1e-12)
            parts.append((own - wanted).square().mean(-1) / scale)
    return _mean(torch.stack(parts).mean(0), mask)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities, shape (...)."""
    return (p.exp() * (p - q)).sum(-1)


def _mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log(share·p + (1 − share)·q) of log-probabilities."""
    if not 0 < share < 1:
        raise ConfigError(f"a mixture's share must lie between 0 and 1, got {share}")
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1e-12)

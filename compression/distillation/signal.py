"""What a teacher said at some positions, and how a loss asks for it.

``TeacherSignal = DenseLogits | SampledLogits``: a loss never asks where its targets came from.

Sampled targets keep the likeliest tokens with their exact probabilities, and a few draws from
all others, each standing for its share of the rest. Their mean is the teacher's distribution, so
that the gradient of the forward KL is unbiased; cutting off all but the likeliest is not
(Anshumann et al., "Sparse Logit Sampling", arXiv 2503.16870).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tierwise.compression.distillation.losses import LOSSES, soft_targets
from tierwise.runtime.errors import ConfigError

TOP = 16
"""Tokens with exact probabilities."""

DRAWS = 16
"""Draws from the others: 32 entries of 4 + 2 bytes make 196 bytes a position with the entropy."""


@dataclass(frozen=True, slots=True)
class DenseLogits:
    """The teacher's logits for the whole vocabulary, shape (n, vocabulary)."""

    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def rows(self, start: int, stop: int) -> DenseLogits:
        return DenseLogits(self.logits[start:stop])

    def to(self, device: torch.device) -> DenseLogits:
        return DenseLogits(self.logits.to(device))


@dataclass(frozen=True, slots=True)
class SampledLogits:
    """An unbiased sketch of the teacher's distribution at ``temperature``.

    Args:
        ids: Token ids, shape (n, k), int32. A token may come twice.
        weights: Their probabilities, shape (n, k), float16; each row sums to 1.
        entropy: Of the whole distribution in nats, shape (n,), float32.
        temperature: That the probabilities were taken at.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> SampledLogits:
        return self.at(slice(start, stop))

    def at(self, index: slice | Tensor) -> SampledLogits:
        """Those rows, in that order."""
        return SampledLogits(
            self.ids[index], self.weights[index], self.entropy[index], self.temperature
        )

    def to(self, device: torch.device) -> SampledLogits:
        return SampledLogits(
            self.ids.to(device),
            self.weights.to(device),
            self.entropy.to(device),
            self.temperature,
        )


TeacherSignal = DenseLogits | SampledLogits


def sample_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top: int = TOP,
    draws: int = DRAWS,
    generator: torch.Generator | None = None,
) -> SampledLogits:
    """A sketch of these logits, shape (n, vocabulary), of ``top + draws`` entries a row."""
    log_p = soft_targets(logits, temperature)
    entropy = -(log_p.exp() * log_p).sum(-1)
    top = min(top, logits.shape[-1])
    best = log_p.topk(top, dim=-1)
    rest = log_p.exp().scatter_(-1, best.indices, 0.0)
    mass = rest.sum(-1, keepdim=True)
    ids, weights = [best.indices], [best.values.exp()]
    if draws and top < logits.shape[-1]:
        # By inverse transform: torch.multinomial would sort all of the vocabulary.
        steps = rest.cumsum(-1)
        points = torch.rand((len(rest), draws), generator=generator).to(rest.device)
        drawn = torch.searchsorted(steps, points * steps[:, -1:], right=True)
        ids.append(drawn.clamp_max(logits.shape[-1] - 1))
        weights.append((mass / draws).expand(-1, draws))
    return SampledLogits(
        torch.cat(ids, dim=-1).int(),
        torch.cat(weights, dim=-1).half(),
        entropy.float(),
        temperature,
    )


def check_loss(name: str, *, sampled: bool) -> None:
    """Refuses a loss that is unknown, or that a sketch of the teacher cannot give.

    Raises:
        ConfigError: Says what there is.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown distillation loss {name!r}; known: {', '.join(LOSSES)}")
    if sampled and name != "forward_kl":
        raise ConfigError(
            f"the loss {name!r} needs the teacher's whole distribution, and sampled targets hold "
            "a part of it: use loss: forward_kl, or teacher: online"
        )


def distance(
    name: str, student: Tensor, signal: TeacherSignal, weights: Tensor, *, temperature: float
) -> Tensor:
    """The named loss between the student's logits and the signal: Σ weight · loss, a scalar.

    Args:
        student: Logits, shape (n, vocabulary).
        weights: Shape (n,).

    Raises:
        ConfigError: The signal does not hold what the loss needs (see `check_loss`), or was taken
            at another temperature.
    """
    if isinstance(signal, DenseLogits):
        mean = LOSSES[name](student, signal.logits, temperature=temperature, mask=weights)
        return mean * weights.sum()
    check_loss(name, sampled=True)
    if signal.temperature != temperature:
        raise ConfigError(
            f"the teacher's signal was taken at temperature {signal.temperature}, the loss is at "
            f"{temperature}"
        )
    log_q = soft_targets(student, temperature)
    gathered = log_q.gather(-1, signal.ids.long())
    cross_entropy = -(signal.weights.float() * gathered).sum(-1)
    return ((cross_entropy - signal.entropy) * weights).sum() * temperature**2

"""The student and its loss in one module, so that whatever wraps a module can wrap both.

Logits over the whole vocabulary are the largest tensors of all (49,152 per position). They are
made for some hundred positions at a time, and their gradient is taken before the next ones are
made: memory stays small, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor, nn

from tierwise.compression.distillation.lessons import Batch
from tierwise.compression.distillation.losses import hidden_loss
from tierwise.compression.distillation.signal import TeacherSignal, distance
from tierwise.compression.distillation.teacher import backbone_of, head_of, project, soft_cap

CHUNK = 512
"""Positions whose logits exist at the same time."""

ChunkLoss = Callable[[Tensor, int, int], Tensor]
"""The loss (a sum) of logits of the positions from one number to another."""


class _Chunked(torch.autograd.Function):
    """Σ loss(project(hidden)) over chunks; gradients are taken on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, cap: float | None, loss_of: ChunkLoss
    ) -> Tensor:
        wants_weight = weight.requires_grad
        device = hidden.device.type
        low = torch.is_autocast_enabled(device)
        cast = weight.detach().to(torch.get_autocast_dtype(device) if low else weight.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), CHUNK):
                stop = min(start + CHUNK, len(hidden))
                part = hidden[start:stop].detach().requires_grad_()
                matrix = cast.detach().requires_grad_(wants_weight)
                loss = loss_of(project(part, matrix, cap), start, stop)
                found = torch.autograd.grad(loss, [part, matrix] if wants_weight else [part])
                by_hidden[start:stop] = found[0]
                if by_weight is not None:
                    by_weight += found[1]
                total += loss.detach()
        ctx.save_for_backward(by_hidden, *([] if by_weight is None else [by_weight]))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        by_hidden, *by_weight = ctx.saved_tensors
        scale = gradients[0]
        return by_hidden * scale, by_weight[0] * scale if by_weight else None, None, None


def _measured(hidden: Tensor, weight: Tensor, cap: float | None, loss_of: ChunkLoss) -> Tensor:
    """The same sum without gradients."""
    total = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), CHUNK):
        stop = min(start + CHUNK, len(hidden))
        total += loss_of(project(hidden[start:stop], weight, cap), start, stop)
    return total


class StudentLoss(nn.Module):
    """A student that is called with a batch and answers with its loss, summed over positions.

    Args:
        student: A decoder of transformers.
        loss: One of ``losses.LOSSES``.
        temperature: Of the soft targets.
        cross_entropy: Share of the token that really follows in the loss of replies that were
            given; the rest is the distance from the teacher.
        hidden: Weight of the hidden-state loss.
        hidden_kind: "cosine" or "mse".
    """

    def __init__(
        self,
        student: Any,
        *,
        loss: str = "forward_kl",
        temperature: float = 1.0,
        cross_entropy: float = 0.0,
        hidden: float = 0.0,
        hidden_kind: str = "cosine",
    ) -> None:
        super().__init__()
        self.student = student
        self.loss, self.temperature = loss, temperature
        self.cross_entropy, self.hidden, self.hidden_kind = cross_entropy, hidden, hidden_kind

    def hard_share(self, batch: Batch) -> Tensor:
        """How much of each position's loss is the token that follows, shape (positions,)."""
        return self.cross_entropy * batch.given.float()

    def forward(
        self,
        batch: Batch,
        signal: TeacherSignal,
        teacher_hidden: Sequence[Tensor] = (),
        loss: str | None = None,
    ) -> Tensor:
        """Σ weight · loss over the batch's positions, a scalar.

        Args:
            batch: What is read.
            signal: The teacher's, as many rows as the batch has positions.
            teacher_hidden: Outputs of the layers that the student's first ones came from, each
                (batch · length, width), where the hidden-state loss is wanted.
            loss: Instead of the usual one.
        """
        name = loss or self.loss
        wants_hidden = bool(self.hidden and teacher_hidden)
        out = backbone_of(self.student)(
            input_ids=batch.tokens, use_cache=False, output_hidden_states=wants_hidden
        )
        last = out.last_hidden_state
        rows = last.reshape(-1, last.shape[-1])[batch.rows]

        def loss_of(logits: Tensor, start: int, stop: int) -> Tensor:
            hard = self.hard_share(batch)[start:stop]
            weights = batch.weights[start:stop]
            part = distance(
                name,
                logits,
                signal.rows(start, stop),
                weights * (1 - hard),
                temperature=self.temperature,
            )
            if self.cross_entropy:
                nll = F.cross_entropy(logits, batch.labels[start:stop], reduction="none")
                part = part + (nll * weights * hard).sum()
            return part

        weight = head_of(self.student).weight
        cap = soft_cap(self.student)
        if torch.is_grad_enabled():
            chunked: Any = _Chunked.apply
            total: Tensor = chunked(rows, weight, cap, loss_of)
        else:
            total = _measured(rows, weight, cap, loss_of)
        if wants_hidden:
            states = out.hidden_states[1 : len(teacher_hidden) + 1]
            own = [state.reshape(-1, last.shape[-1])[batch.rows] for state in states]
            theirs = [state[batch.teacher_rows] for state in teacher_hidden]
            apart = hidden_loss(own, theirs, self.hidden_kind, batch.weights)
            total = total + self.hidden * apart * batch.weights.sum()
        return total

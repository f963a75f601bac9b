"""How far a student is from its teacher on lessons that it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from tierwise.compression.distillation.lessons import Lesson, collate, plan_epoch
from tierwise.compression.distillation.signal import DenseLogits, TeacherSignal, distance
from tierwise.compression.distillation.student_loss import CHUNK
from tierwise.compression.distillation.teacher import (
    Teacher,
    backbone_of,
    head_of,
    project,
    soft_cap,
)

MICRO_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a student makes of lessons that it does not learn from, in nats per position.

    Args:
        kl: KL(teacher ‖ student), where the student learns from the teacher.
        nll: Negative log-likelihood of replies that are known to be right; None without any.
    """

    kl: float
    nll: float | None


@torch.no_grad()
def held_out_measures(
    student: Any,
    lessons: Sequence[Lesson],
    *,
    temperature: float,
    cross_entropy: float = 0.0,
    teacher: Teacher | None,
    accelerator: Any,
) -> HeldOut:
    """Both distances over the lessons, weighed like them.

    Args:
        student: A decoder of transformers; left in the mode it was in.
        lessons: With the teacher's signal, or the teacher is asked.
        temperature: Of both distributions.
        cross_entropy: See `StudentLoss`: so much less do replies that are given count in the KL.
        teacher: Needed for lessons without a signal.
        accelerator: Of the run, for its device and precision.
    """
    was_training = student.training
    student.eval()
    lengths = [len(lesson.tokens) for lesson in lessons]
    (step,) = plan_epoch(
        lengths, tokens_per_step=sum(lengths), micro_tokens=MICRO_TOKENS, seed=0, epoch=0
    )
    kl = nll = soft = hard = 0.0
    for micro in step:
        batch = collate([lessons[number] for number in micro]).to(accelerator.device)
        signal: TeacherSignal | None = batch.signal
        if signal is None:
            assert teacher is not None
            hidden = teacher.hidden(batch.teacher_tokens)
            signal = DenseLogits(teacher.logits(hidden, batch.teacher_rows))
        given = batch.weights * batch.given
        weights = batch.weights - cross_entropy * given
        with accelerator.autocast():
            last = backbone_of(student)(input_ids=batch.tokens, use_cache=False).last_hidden_state
        rows = last.reshape(-1, last.shape[-1])[batch.rows]
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            with accelerator.autocast():
                logits = project(rows[part], head_of(student).weight, soft_cap(student))
            theirs = signal.rows(start, start + CHUNK)
            kl += float(
                distance("forward_kl", logits, theirs, weights[part], temperature=temperature)
            )
            loss = F.cross_entropy(logits, batch.labels[part], reduction="none")
            nll += float((loss * given[part]).sum())
        soft += float(weights.sum())
        hard += float(given.sum())
    student.train(was_training)
    return HeldOut(kl / max(soft, 1e-12), nll / hard if hard else None)

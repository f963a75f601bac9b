"""How far a student is from its teacher on lessons that it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tierwise.compression.distillation.lessons import Lesson, collate, plan_epoch
from tierwise.compression.distillation.signal import DenseLogits, TeacherSignal
from tierwise.compression.distillation.student_loss import StudentLoss
from tierwise.compression.distillation.teacher import Teacher

MICRO_TOKENS = 2048


@torch.no_grad()
def held_out_divergence(
    student: Any,
    lessons: Sequence[Lesson],
    *,
    temperature: float,
    teacher: Teacher | None,
    accelerator: Any,
) -> float:
    """KL(teacher ‖ student) per position of the lessons, weighed like them, in nats.

    Args:
        student: A decoder of transformers; left in the mode it was in.
        lessons: With the teacher's signal, or the teacher is asked.
        temperature: Of both distributions.
        teacher: Needed for lessons without a signal.
        accelerator: Of the run, for its device and precision.
    """
    was_training = student.training
    student.eval()
    plain = StudentLoss(student, temperature=temperature)
    lengths = [len(lesson.tokens) for lesson in lessons]
    (step,) = plan_epoch(
        lengths, tokens_per_step=sum(lengths), micro_tokens=MICRO_TOKENS, seed=0, epoch=0
    )
    total = weight = 0.0
    for micro in step:
        batch = collate([lessons[number] for number in micro]).to(accelerator.device)
        signal: TeacherSignal | None = batch.signal
        if signal is None:
            assert teacher is not None
            hidden = teacher.hidden(batch.teacher_tokens)
            signal = DenseLogits(teacher.logits(hidden, batch.teacher_rows))
        with accelerator.autocast():
            total += float(plain(batch, signal))
        weight += float(batch.weights.sum())
    student.train(was_training)
    return total / max(weight, 1e-12)

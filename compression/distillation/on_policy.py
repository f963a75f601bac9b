"""On-policy lessons: the student writes, the teacher says what it would have written.

A student that only ever reads right answers never learns what to do after its own mistakes
(GKD, Agarwal et al., arXiv 2306.13649).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tierwise.compression.distillation.lessons import Lesson
from tierwise.compression.distillation.teacher import backbone_of, head_of, project, soft_cap

REPLY_TOKENS = 48
"""Longest reply that is sampled; tool calls are shorter."""


@torch.no_grad()
def write_replies(
    student: Any,
    lessons: Sequence[Lesson],
    *,
    ends: frozenset[int],
    generator: torch.Generator,
    longest: int = REPLY_TOKENS,
) -> list[Lesson]:
    """The student's own replies to the prompts of these lessons, sampled at temperature 1.

    Args:
        student: A decoder of transformers.
        ends: Tokens that end a reply.

    Returns:
        Lessons without a signal, of which the reply alone is learned from.
    """
    device = next(student.parameters()).device
    prompts = [lesson.tokens[: lesson.prompt] for lesson in lessons]
    width = max(map(len, prompts))
    tokens = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all end together
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    replies = _sample(student, tokens.to(device), mask.to(device), ends, generator, longest)
    out = []
    for lesson, prompt, reply in zip(lessons, prompts, replies, strict=True):
        whole = torch.cat([prompt, reply])
        positions = torch.arange(len(prompt) - 1, len(whole) - 1)
        weights = torch.ones(len(positions))
        written = replace(
            lesson,
            tokens=whole,
            positions=positions,
            weights=weights,
            given=torch.zeros(len(positions), dtype=torch.bool),
            signal=None,
        )
        out.append(written)
    return out


def _sample(
    student: Any,
    tokens: Tensor,
    mask: Tensor,
    ends: frozenset[int],
    generator: torch.Generator,
    longest: int,
) -> list[Tensor]:
    """A reply for each row, its end token included; at least one token."""
    was_training = student.training
    student.eval()
    weight, cap = head_of(student).weight, soft_cap(student)
    weight = weight.to(torch.bfloat16)
    stop = torch.tensor(sorted(ends), dtype=torch.long)
    alive = torch.ones(len(tokens), dtype=torch.bool)
    written: list[list[int]] = [[] for _ in range(len(tokens))]
    cache = None
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    reading = tokens
    for _ in range(longest):
        out = backbone_of(student)(
            input_ids=reading,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        logits = project(out.last_hidden_state[:, -1], weight, cap)
        drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0]
        for row in alive.nonzero()[:, 0].tolist():
            written[row].append(int(drawn[row]))
        alive &= ~torch.isin(drawn, stop)
        if not alive.any():
            break
        reading = drawn[:, None].to(tokens.device)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = positions[:, -1:] + 1
    student.train(was_training)
    return [torch.tensor(reply, dtype=torch.long) for reply in written]

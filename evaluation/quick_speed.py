"""How long a tier takes for one call, measured in a second or two: enough to compare tiers.

`profiling` measures more, in a process of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tierwise.runtime.context import Context
from tierwise.runtime.llama import Model

ROUNDS = 2
STEPS = 16

_TEXT = "The weather in Paris is mild today, and the museum by the river opens at nine. "


@dataclass(frozen=True, slots=True)
class QuickSpeed:
    """Seconds of a call's two parts, from an empty cache."""

    prefill_s: float
    decode_s: float


def quick_speed(
    path: Path, *, prompt_tokens: int, reply_tokens: int, threads: int, rounds: int = ROUNDS
) -> QuickSpeed:
    """Times a prompt, and a few tokens behind it for each token of a reply.

    Takes the least of the rounds and not their median: what else the machine does can only add.

    Args:
        path: The GGUF file.
        prompt_tokens, reply_tokens: Of the call. Models of a shorter context read less, and
            their seconds are scaled.
        threads: For llama.cpp.
        rounds: Readings of the prompt.

    Raises:
        ModelError: The file cannot be loaded.
    """
    with Model(path) as model:
        n_ctx = min(prompt_tokens + STEPS, model.context_tokens)
        tokens = model.tokenize(_TEXT)
        prompt = (tokens * (prompt_tokens // len(tokens) + 1))[: n_ctx - STEPS]
        with Context(model, n_ctx, threads=threads) as context:
            prefills, steps = [], []
            for _ in range(rounds):
                context.truncate(0)
                began = time.perf_counter()
                context.decode(prompt, 0)
                context.logits()  # waits for the result where a GPU computes it
                prefills.append(time.perf_counter() - began)
            for step in range(STEPS):
                began = time.perf_counter()
                context.decode([prompt[step % len(prompt)]], len(prompt) + step)
                context.logits()
                steps.append(time.perf_counter() - began)
    return QuickSpeed(
        prefill_s=min(prefills) * prompt_tokens / len(prompt), decode_s=min(steps) * reply_tokens
    )

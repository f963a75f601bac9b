"""A tier's success on a suite of verifiable tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tierwise.evaluation.tasks import SUITE_NAME, Checkable, Task, summarize
from tierwise.runtime.chat import Reply
from tierwise.runtime.errors import CallError
from tierwise.runtime.family import SuiteResult
from tierwise.runtime.loaded_tier import LoadedTier, ReplyStream

AT_ONCE = 8
"""Tasks that share a tier: one alone would leave most of the processor's arithmetic idle."""


T = TypeVar("T", bound=Checkable)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """One task's reply and whether it was right."""

    task: T
    reply: Reply
    passed: bool


def run_suite(
    tier: LoadedTier,
    tasks: Sequence[T],
    *,
    at_once: int = AT_ONCE,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Outcome[T], ...]:
    """Lets a tier answer every task. A task that it cannot take at all counts as failed.

    Args:
        at_once: Tasks in progress at the same time.
    """
    waiting: deque[tuple[T, ReplyStream | None]] = deque()
    outcomes: list[Outcome[T]] = []
    right = 0

    def collect() -> None:
        nonlocal right
        task, stream = waiting.popleft()
        reply, passed = Reply(), False
        if stream is not None:
            with suppress(CallError):
                reply = stream.reply()
                passed = task.check(reply)
        right += passed
        outcomes.append(Outcome(task, reply, passed))
        if progress is not None:
            progress(f"{right} right of {len(outcomes)}", len(outcomes) / len(tasks))

    for task in tasks:
        try:
            stream = tier.stream(replace(task.call, timeout_s=None))
        except CallError:
            stream = None
        waiting.append((task, stream))
        if len(waiting) >= at_once:
            collect()
    while waiting:
        collect()
    return tuple(outcomes)


def measure_success(
    tier: LoadedTier,
    tasks: Sequence[Task],
    *,
    seed: int,
    suite: str = SUITE_NAME,
    progress: Callable[[str, float], None] | None = None,
) -> SuiteResult:
    """`run_suite`, summed up by grade and kind."""
    outcomes = run_suite(tier, tasks, progress=progress)
    return summarize(tasks, [outcome.passed for outcome in outcomes], suite=suite, seed=seed)

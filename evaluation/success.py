"""A tier's success on a suite of verifiable tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tierwise.evaluation.tasks import SUITE_NAME, Task, summarize
from tierwise.runtime.chat import Reply
from tierwise.runtime.errors import CallError
from tierwise.runtime.family import SuiteResult
from tierwise.runtime.loaded_tier import LoadedTier


@dataclass(frozen=True, slots=True)
class Outcome:
    """One task's reply and whether it was right."""

    task: Task
    reply: Reply
    passed: bool


def run_suite(
    tier: LoadedTier,
    tasks: Sequence[Task],
    *,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Outcome, ...]:
    """Lets a tier answer every task. A task that it cannot take at all counts as failed."""
    outcomes: list[Outcome] = []
    right = 0
    for number, task in enumerate(tasks, start=1):
        try:
            reply = tier.reply(replace(task.call, timeout_s=None))
            passed = task.check(reply)
        except CallError:
            reply, passed = Reply(), False
        right += passed
        outcomes.append(Outcome(task, reply, passed))
        if progress is not None:
            progress(f"{right} right of {number}", number / len(tasks))
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

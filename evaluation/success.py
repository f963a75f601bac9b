"""A tier's success on a suite of verifiable tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from tierwise.evaluation.tasks import Checkable
from tierwise.runtime.chat import Call, Reply
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.errors import CallError
from tierwise.runtime.llama import Model
from tierwise.runtime.loaded_tier import LoadedTier, ReplyStream
from tierwise.runtime.memory import predict_memory
from tierwise.runtime.pool import PREFIX_BYTES
from tierwise.runtime.prefix_cache import HostCache
from tierwise.runtime.prompt_tokens import PromptTokenizer
from tierwise.runtime.resources import probe

AT_ONCE = 8
"""Tasks that share a tier: one alone would leave most of the processor's arithmetic idle."""

REPLY_ROOM = 512
"""Tokens of context kept for a reply whose length nobody limits."""

THOUGHT_ROOM = 1_024
"""Tokens that a model may think beyond a reply's limit, where it cannot be told not to."""

_STEP = 256
"""Contexts are multiples of so many tokens."""


T = TypeVar("T", bound=Checkable)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """One task's reply and whether it was right."""

    task: T
    reply: Reply
    passed: bool


def with_thoughts(call: Call, template: ChatTemplate) -> Call:
    """The call with room for thoughts, which count to a reply's length, where there are some."""
    if call.max_tokens is None or template.thinking(call.reasoning) == "no":
        return call
    return replace(call, max_tokens=call.max_tokens + THOUGHT_ROOM)


def suite_tier(
    path: Path, tasks: Sequence[Checkable], context_tokens: int, *, threads: int
) -> LoadedTier:
    """Loads a tier to answer a suite, with room for `AT_ONCE` of its longest calls.

    Fewer at once where they would take more than half of the memory that is free. Prefixes that
    tasks share, but not in a row, are kept aside: else every other task would read its tools anew.

    Args:
        path: The GGUF file.
        tasks: Of the suite.
        context_tokens: Of the longest context; longer calls count as failed.
        threads: For llama.cpp.

    Raises:
        ModelError: The file cannot be loaded.
    """
    with Model(path, vocab_only=True) as model:
        template, tokenize = ChatTemplate.of(model), PromptTokenizer(model)
        calls = [with_thoughts(task.call, template) for task in tasks]
        longest = max(
            len(tokenize(template.render(call))) + (call.max_tokens or REPLY_ROOM) for call in calls
        )
    n_ctx = min(context_tokens, -(-longest // _STEP) * _STEP)
    slots, free = AT_ONCE, probe().available_bytes // 2
    while slots > 1 and predict_memory(path, n_ctx, slots=slots).total_bytes > free:
        slots //= 2
    host = HostCache(PREFIX_BYTES)
    return LoadedTier(path, n_ctx=n_ctx, threads=threads, slots=slots, host=host)


def run_suite(
    tier: LoadedTier,
    tasks: Sequence[T],
    *,
    at_once: int = AT_ONCE,
    progress: Callable[[str, float], None] | None = None,
    each: Callable[[Outcome[T]], None] | None = None,
) -> tuple[Outcome[T], ...]:
    """Lets a tier answer every task. A task that it cannot take at all counts as failed.

    Args:
        at_once: Tasks in progress at the same time.
        each: Called with every outcome, in the order of the tasks, as soon as it is known.
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
        if each is not None:
            each(outcomes[-1])
        if progress is not None:
            progress(f"{right} right of {len(outcomes)}", len(outcomes) / len(tasks))

    for task in tasks:
        try:
            call = with_thoughts(task.call, tier.template)
            stream = tier.stream(replace(call, timeout_s=None))
        except CallError:
            stream = None
        waiting.append((task, stream))
        if len(waiting) >= at_once:
            collect()
    while waiting:
        collect()
    return tuple(outcomes)

"""A request on its way through the scheduler."""

from __future__ import annotations

import time
from dataclasses import dataclass

from tierwise.runtime.chat import Usage
from tierwise.runtime.context import Chunk
from tierwise.runtime.errors import EngineClosedError
from tierwise.runtime.generation import Generation, GenerationRequest
from tierwise.runtime.prefix_cache import Ids, Sequence
from tierwise.runtime.stream import Mailbox, timeout_error


@dataclass(slots=True, eq=False)
class Job:
    """A request and how far it has come. The stream is known by its mailbox alone, so that one
    that is dropped cancels."""

    request: GenerationRequest
    mailbox: Mailbox
    submitted: float
    prompt: Ids
    generation: Generation | None = None
    sequence: Sequence | None = None
    cached: int = 0
    started: float = 0.0
    prefilled: float = 0.0

    @property
    def dead(self) -> BaseException | None:
        """Why nobody needs the reply any more, if so."""
        if self.mailbox.closed:
            return EngineClosedError("the generation was cancelled")
        deadline = self.request.deadline
        return timeout_error() if deadline is not None and time.monotonic() > deadline else None

    def chunk(self, room: int) -> Chunk:
        """The next tokens to read, at most ``room``; a draft goes along whole or not at all."""
        generation, sequence = self.generation, self.sequence
        assert generation is not None and sequence is not None
        unread = generation.unread
        if len(unread) > room:
            generation.draft = []
            unread = generation.unread
        tokens = unread[:room]
        outputs = 1 + len(generation.draft) if len(tokens) == len(unread) else 0
        return Chunk(sequence.number, generation.read, tokens, outputs)

    def usage(self) -> Usage:
        """What the reply has cost up to now."""
        assert self.generation is not None
        count, forced = self.generation.counts
        return Usage(
            prompt_tokens=self.prompt.size,
            cached_tokens=self.cached,
            completion_tokens=count,
            forced_tokens=forced,
            queue_s=self.started - self.submitted,
            prefill_s=self.prefilled - self.started,
            decode_s=time.perf_counter() - self.prefilled,
            reused_tokens=self.generation.reused,
        )

"""Continuous batching: many requests on one context, joining and leaving between two steps.

A step is one ``llama_decode``. Every reply in progress puts its next tokens into it; prompts
fill what is left, in order of arrival, in small parts while somebody waits for a next token.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.cores import release_workers
from tierwise.runtime.drafting import Drafter
from tierwise.runtime.errors import CacheFullError, EngineClosedError, EngineError, TierwiseError
from tierwise.runtime.generation import Generation
from tierwise.runtime.grammar import GrammarCompiler
from tierwise.runtime.job import Job
from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import HostCache, Ids, PrefixCache, shared

SEQUENCES = 16
"""Of a context with shared cells: replies in progress and prefixes kept for later."""

REPLIES = 8
"""Replies in progress at once, and most sequences that are kept apart."""

OUTPUTS = 32
"""Most tokens of one batch whose logits are wanted: replies and their drafts."""

PREFILL_BESIDE_DECODE = 128
"""Prompt tokens in a batch that replies in progress wait for."""

_WORTH_WAITING = 32
"""Tokens of a prompt that is just being read by another request, and worth waiting for."""


@dataclass(slots=True)
class StepCounters:
    """What the scheduler has done since the tier was loaded."""

    requests: int = 0
    steps: int = 0
    tokens: int = 0
    preemptions: int = 0


class Scheduler:
    """The state of the engine's thread, which runs `run`; other threads use `submit`, `between`
    and `stop` only.

    Args:
        model: Freed at the end of `run`.
        open_context: Opens a context of so many tokens and sequences, with `OUTPUTS`.
        n_ctx: Of the first context.
        sequences: Of the first context; over shared cells that of all.
        host: Where cold prefixes go.
        drafter: Guesses at next tokens; not asked where wrong ones could not be taken back.

    Raises:
        OutOfMemoryError: The context cannot be opened.
    """

    def __init__(
        self,
        model: Model,
        grammars: GrammarCompiler,
        open_context: Callable[[int, int], Context],
        n_ctx: int,
        sequences: int,
        host: HostCache,
        drafter: Drafter,
    ) -> None:
        self._model = model
        self._grammars = grammars
        self._open_context = open_context
        self._context = open_context(n_ctx, sequences)
        self._drafter = drafter
        self.n_ctx = self._context.n_ctx
        self.cache = PrefixCache(self._context, host)
        self.counters = StepCounters()
        self._wake = threading.Condition()
        self._arrived: deque[Job] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.stopped = False
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._crowded = False
        """The cells were used up: nobody joins until somebody has ended."""

    # Other threads

    def submit(self, job: Job) -> None:
        """Queues a job; EngineClosedError after `stop`."""
        with self._wake:
            if self.stopped:
                raise _closed()
            self._arrived.append(job)
            self._wake.notify()

    def between(self, command: Callable[[], Any]) -> Future[Any]:
        """Runs ``command`` on the engine's thread, between two steps."""
        future: Future[Any] = Future()
        with self._wake:
            if self.stopped:
                future.set_exception(_closed())
            else:
                self._commands.append((command, future))
                self._wake.notify()
        return future

    def stop(self) -> None:
        """Ends `run` after the step in progress."""
        with self._wake:
            self.stopped = True
            self._wake.notify()

    @property
    def queued(self) -> int:
        """Requests that wait for their first step."""
        return len(self._arrived) + len(self._waiting)

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    # The engine's thread

    def run(self) -> None:
        """Works until `stop`; then fails what is left, and frees context and model."""
        try:
            while self._work():
                pass
        finally:  # whatever has happened, nobody waits for ever
            self.stop()
            for job in [*self._running, *self._waiting, *self._arrived]:
                self._end(job, _closed())
            for _, future in self._commands:
                if future.set_running_or_notify_cancel():
                    future.set_exception(_closed())
            self._grammars.close()  # a compilation in another thread reads the vocabulary
            self.cache.host.clear(self.cache)
            self._context.close()
            self._model.close()

    def _work(self) -> bool:
        """Waits for work and does some; False after `stop`."""
        # Whoever adds something to these does it once: a step later is soon enough.
        if self._arrived or self._commands or self.stopped or not self._running:
            if not self._has_work():
                release_workers()
            with self._wake:
                self._wake.wait_for(self._has_work)
                if self.stopped:
                    return False
                self._waiting.extend(self._arrived)
                self._arrived.clear()
                commands = list(self._commands)
                self._commands.clear()
            if commands:  # and then look again: one may have ended in `stop`
                for command, future in commands:
                    _settle(command, future)
                return True
        self._drop_dead()
        self._admit()
        if self._running:
            self._step()
        return True

    def grow(self, n_ctx: int, sequences: int) -> None:
        """Goes on in a context of another size. To be run by `between`.

        Replies in progress and cached prefixes are kept; what finds no room goes to host memory,
        and replies begin again.

        Raises:
            OutOfMemoryError: It cannot be had; the old one goes on. Should that be gone too, all
                ends as after `stop`.
        """
        n_ctx = max(n_ctx, self.n_ctx)
        old = self.n_ctx, len(self.cache.sequences)
        if (n_ctx, sequences) == old:
            return
        states = self.cache.pack()
        self._context.close()
        failure: TierwiseError | None = None
        try:
            self._context = self._open_context(n_ctx, sequences)
        except TierwiseError as error:
            failure = error
            try:
                self._context = self._open_context(*old)
            except TierwiseError:
                self.stop()
                raise
        self.n_ctx = self._context.n_ctx
        homeless = self.cache.unpack(self._context, states)
        for job in [job for job in reversed(self._running) if job.sequence in homeless]:
            self._back_to_queue(job)
        if failure is not None:
            raise failure
        self._crowded = False

    def _has_work(self) -> bool:
        return bool(
            self.stopped or self._arrived or self._commands or self._waiting or self._running
        )

    def _drop_dead(self) -> None:
        for job in [job for job in self._running if job.dead]:
            self._end(job, job.dead)
        if any(job.dead for job in self._waiting):
            for job in [job for job in self._waiting if job.dead]:
                self._waiting.remove(job)
                self._end(job, job.dead)

    def _admit(self) -> None:
        """Lets waiting requests join, in order of arrival."""
        most = min(REPLIES, len(self.cache.sequences))
        while self._waiting and len(self._running) < most:
            if self._crowded and self._running:
                return
            job = self._waiting[0]
            try:
                if not self._start(job):
                    return
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                self._waiting.popleft()
                self._end(job, error)
                continue
            self._waiting.popleft()
            self._running.append(job)

    def _start(self, job: Job) -> bool:
        """Gives a job its sequence; False where it had better wait."""
        if job.generation is None:
            longest = min(self.n_ctx, self._model.context_tokens)
            job.generation = Generation(
                job.request, self._model, self._grammars, n_ctx=longest, emit=job.mailbox.put
            )
        tokens = job.prompt
        if len(job.generation.tokens) > tokens.size:
            tokens = np.array(job.generation.tokens, np.int32)
        if self._will_be_shared(tokens) > self.cache.longest(tokens) + _WORTH_WAITING:
            return False
        opened = self.cache.open(tokens)
        if opened is None:
            return False
        job.sequence, job.generation.read = opened
        if not job.started:
            job.started = time.perf_counter()
            job.cached = min(job.generation.read, job.prompt.size)
            self.cache.counters.prompt_tokens += job.prompt.size
            self.cache.counters.cached_tokens += job.cached
        return True

    def _will_be_shared(self, tokens: Ids) -> int:
        """What requests that are reading their prompts now will have in common with these."""
        if not self._context.divisible:
            return 0
        reading = (job.prompt for job in self._running if not job.prefilled)
        return max((shared(prompt, tokens[:-1]) for prompt in reading), default=0)

    def _step(self) -> None:
        """One batch: decode, then draw what comes next for everyone whose logits it gave."""
        chunks = self._plan()
        try:
            rows = self._context.run([chunk for _, chunk in chunks])
        except CacheFullError:
            if not self.cache.evict():
                self._preempt()
            return
        except EngineError as error:
            for job, _ in chunks:
                self._fail(job, error)
            return
        self.counters.steps += 1
        for (job, chunk), row in zip(chunks, rows, strict=True):
            self.counters.tokens += len(chunk.tokens)
            try:
                self._take(job, chunk, row)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                self._fail(job, error)

    def _plan(self) -> list[tuple[Job, Chunk]]:
        """Which tokens go into the next batch."""
        room, outputs = self._context.batch_size, self._context.max_outputs
        chunks: list[tuple[Job, Chunk]] = []
        if self._context.divisible:
            self._drafter.prepare([job.generation for job in self._running if job.generation], room)
        replying = [job for job in self._running if job.prefilled]
        reading = [job for job in self._running if not job.prefilled]
        for job in reading:
            if job.generation and not job.mailbox.whole:
                job.generation.draft = []  # it would keep a reader waiting for the first token
        for job in replying + reading:
            if replying and not job.prefilled:
                room = min(room, PREFILL_BESIDE_DECODE)
            if room > 0 and outputs > 0:
                chunk = job.chunk(room)
                chunks.append((job, chunk))
                room -= len(chunk.tokens)
                outputs -= chunk.outputs
        # Of sequences that are kept apart, llama.cpp computes neighbours together, in this order
        # only (llama_batch_allocr::split_equal).
        return sorted(chunks, key=lambda pair: pair[1].sequence)

    def _take(self, job: Job, chunk: Chunk, row: int) -> None:
        generation, sequence = job.generation, job.sequence
        assert generation is not None and sequence is not None
        end = chunk.position + len(chunk.tokens)
        generation.read = min(end, len(generation.tokens))
        if not job.prefilled:
            self.cache.filled(sequence, job.prompt[: generation.read])
        if not chunk.outputs:
            return
        if not job.prefilled:
            job.prefilled = time.perf_counter()
        generation.advance(self._context, row)
        if generation.read < end and not self._context.truncate(generation.read, sequence.number):
            generation.read = 0
        if generation.finish_reason is not None:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        generation = job.generation
        assert generation is not None
        usage = job.usage()
        self.counters.requests += 1
        self._leave(job)
        job.mailbox.put(generation.result(usage))

    def _preempt(self) -> None:
        """Lets the latest request step back, because the cells are used up; it comes back when
        another has ended."""
        job = self._running[-1]
        if len(self._running) == 1:
            self._fail(job, EngineError("the context has no room left for this reply"))
            return
        self.counters.preemptions += 1
        self._crowded = True
        self._leave(job, ended=False)
        self._back_to_queue(job)

    def _back_to_queue(self, job: Job) -> None:
        if job in self._running:
            self._running.remove(job)
        job.sequence = None
        job.prefilled = 0.0
        self._waiting.appendleft(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        """Ends a job whose sequence may hold anything."""
        if job.sequence is not None:
            self.cache.forget(job.sequence)
            job.sequence = None
        self._end(job, error)

    def _end(self, job: Job, error: BaseException | None) -> None:
        assert error is not None
        self._leave(job)
        job.mailbox.put(error)

    def _leave(self, job: Job, *, ended: bool = True) -> None:
        """Gives back what a job holds; what its sequence has read is kept for others."""
        if job in self._running:
            self._running.remove(job)
            self._crowded = self._crowded and not ended
        generation = job.generation
        if generation is None:
            return
        if job.sequence is not None:
            self.cache.release(job.sequence, generation.tokens[: generation.read])
            job.sequence = None
        if ended:
            generation.close()


def _settle(command: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(command())
    except BaseException as error:  # noqa: BLE001 - it belongs to the caller
        future.set_exception(error)


def _closed() -> EngineClosedError:
    return EngineClosedError("this tier was unloaded; ask the pool for it again")

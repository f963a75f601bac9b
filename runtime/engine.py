"""One worker thread owns a tier's llama.cpp context; callers submit requests and stream.

``submit(request) → stream`` is the whole interface. Requests are answered one at a time, in
order of arrival; two threads never touch one context.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

from tierwise.runtime.context import Context
from tierwise.runtime.errors import CallTimeoutError, EngineClosedError
from tierwise.runtime.generation import (
    Delta,
    Generated,
    Generation,
    GenerationRequest,
    PrefixCache,
)
from tierwise.runtime.grammar import GrammarCompiler
from tierwise.runtime.llama import Model


class _CancelledError(Exception):
    """The caller lost interest."""


class GenerationStream:
    """The reply to one request, as it comes. Iterate once, then ask for `result`.

    Leaving it early (``close``, ``with``, or letting it go) cancels the generation.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.submitted = time.perf_counter()
        self._events: queue.SimpleQueue[Delta | Generated | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._outcome: Generated | BaseException | None = None

    def __iter__(self) -> Iterator[Delta]:
        try:
            while self._outcome is None:
                event = self._next_event()
                if isinstance(event, Delta):
                    yield event
                else:
                    self._outcome = event
        finally:
            self.close()
        if isinstance(self._outcome, BaseException):
            raise self._outcome

    def _next_event(self) -> Delta | Generated | BaseException:
        """Waits no longer than the deadline, even where an earlier request takes longer."""
        deadline = self.request.deadline
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self._events.get(timeout=left)
        except queue.Empty:
            return _timeout_error()

    def result(self) -> Generated:
        """Waits for the end and returns the whole reply.

        Raises:
            CallTimeoutError, EngineClosedError, EngineError: The generation failed.
        """
        for _ in self:
            pass
        assert isinstance(self._outcome, Generated)
        return self._outcome

    def close(self) -> None:
        """Tells the engine to stop working on this request, if it still is."""
        self._cancelled.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._cancelled.set()


class _Job:
    """The worker's side of a stream. Holds the stream weakly, so that a dropped one cancels."""

    def __init__(self, stream: GenerationStream) -> None:
        self.request = stream.request
        self.submitted = stream.submitted
        self.events = stream._events
        self.cancelled = stream._cancelled

    def check(self) -> None:
        if self.cancelled.is_set():
            raise _CancelledError
        deadline = self.request.deadline
        if deadline is not None and time.monotonic() > deadline:
            raise _timeout_error()


def _timeout_error() -> CallTimeoutError:
    return CallTimeoutError(
        "the call's time ran out before its reply was complete. Allow more time "
        "(timeout, Budget.seconds_per_call) or fewer tokens (max_tokens)."
    )


_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """llama.cpp must not be running when the interpreter takes its memory away."""
    for engine in list(_open_engines):
        engine.close()


class Engine:
    """Answers requests on one model, one at a time.

    Args:
        model: Owned by the engine from here on; `close` frees it.
        n_ctx: Tokens of context.
        threads: For llama.cpp.
    """

    def __init__(self, model: Model, *, n_ctx: int, threads: int) -> None:
        self.model = model
        self.grammars = GrammarCompiler(model)
        self._context = Context(model, n_ctx, threads=threads)
        self.n_ctx = self._context.n_ctx
        self._cache = PrefixCache()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._current: _Job | None = None
        self._waiting = 0
        self._thread = threading.Thread(
            target=_work, args=(weakref.ref(self), self._jobs), name="tierwise-engine", daemon=True
        )
        self._thread.start()
        _open_engines.add(self)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queues a request.

        Raises:
            EngineClosedError: The engine was closed.
            ToolSchemaError: The request's grammar does not compile.
        """
        if request.constraint is not None:
            self.grammars.matcher(request.constraint.lark)  # compiled here, in the caller's thread
        stream = GenerationStream(request)
        with self._lock:
            if self._closed:
                raise EngineClosedError("this tier was unloaded; ask the pool for it again")
            self._waiting += 1
            self._jobs.put(_Job(stream))
        return stream

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return self._waiting > 0

    def cached_prefix(self, prompt: tuple[int, ...]) -> int:
        """Tokens at the start of ``prompt`` that this engine would not have to prefill."""
        return self._cache.shared(prompt)

    def _run(self, job: _Job) -> None:
        queued = time.perf_counter() - job.submitted
        try:
            job.check()
            generation = Generation(
                job.request,
                self.model,
                self._context,
                self._cache,
                self.grammars,
                check=job.check,
                emit=job.events.put,
            )
            done = generation.run()
            job.events.put(replace(done, usage=replace(done.usage, queue_s=queued)))
        except _CancelledError:
            job.events.put(EngineClosedError("the generation was cancelled"))
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, not to this thread
            job.events.put(error)

    def close(self) -> None:
        """Cancels what runs and waits, and frees context and model. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._current is not None:
                self._current.cancelled.set()
            self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.grammars.close()
        self._context.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Half-made engines (the context did not fit) have no thread to stop.
        if getattr(self, "_thread", None) is not None:
            self.close()


def _work(engine_ref: weakref.ref[Engine], jobs: queue.SimpleQueue[_Job | None]) -> None:
    """The worker thread: holds the engine only while it works, so that a dropped one ends."""
    while (job := jobs.get()) is not None:
        engine = engine_ref()
        if engine is None or engine._closed:
            job.events.put(EngineClosedError("the tier was unloaded while the call waited"))
            continue
        with engine._lock:
            engine._current = job
            if engine._closed:
                job.cancelled.set()
        engine._run(job)
        with engine._lock:
            engine._current = None
            engine._waiting -= 1
        del engine

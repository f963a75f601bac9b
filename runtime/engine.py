"""A loaded model that answers requests: ``submit(request) → stream`` is the whole interface.

One thread owns the model's llama.cpp context (see `Scheduler`). Callers may be any number of
threads and coroutines; two threads never touch one context.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from tierwise.runtime.context import Context, KVType
from tierwise.runtime.draft_engine import DraftEngine
from tierwise.runtime.drafting import Drafter
from tierwise.runtime.errors import (
    CallError,
    ConfigError,
    EngineBusyError,
    EngineClosedError,
)
from tierwise.runtime.generation import GenerationRequest
from tierwise.runtime.grammar import GrammarCompiler
from tierwise.runtime.job import Job
from tierwise.runtime.llama import Model
from tierwise.runtime.prefix_cache import HostCache, ids_of
from tierwise.runtime.scheduler import OUTPUTS, REPLIES, SEQUENCES, Scheduler
from tierwise.runtime.stream import GenerationStream, forked_error

MAX_WAITING = 1024
"""Requests that may wait for one model; further ones are refused."""

_open_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """llama.cpp must not be running when the interpreter takes its memory away."""
    for engine in list(_open_engines):
        engine.close()
    for thread in list(_threads):
        thread.join()


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """What an engine has done since its model was loaded, and does now."""

    requests: int
    """Replies that were finished."""
    active: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    """Of the prompts, those that needed no prefill."""
    saved_bytes: int
    """Keys and values that were not computed again."""
    steps: int
    tokens: int
    """Tokens that the model has read, in all steps together."""
    evictions: int
    restores: int
    preemptions: int
    host_bytes: int
    """Cold prefixes in host memory."""

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that needed no prefill."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Engine:
    """Answers requests on one model, many at a time.

    Args:
        model: Owned by the engine from here on; `close` frees it.
        n_ctx: Tokens of context, of one request where ``slots`` are given, else of all together.
        threads: For llama.cpp.
        slots: Requests that have cells of their own, as many as are answered at once; None for
            one cache that all share.
        kv_type: How keys and values are stored.
        host: Where cold prefixes go; nowhere by default.
        drafter: Guesses at next tokens; by default nobody does.
        max_waiting: Requests that may wait.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        threads: int,
        slots: int | None = None,
        kv_type: KVType = "f16",
        host: HostCache | None = None,
        drafter: Drafter | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        if max_waiting < 1:
            raise ConfigError(f"max_waiting must be at least 1, got {max_waiting}")
        self.model = model
        self.grammars = GrammarCompiler(model)
        self.host = host or HostCache()
        self._max_waiting = max_waiting
        self.apart = slots is not None

        def open_context(n_ctx: int, sequences: int) -> Context:
            return Context(
                model,
                n_ctx,
                threads=threads,
                sequences=sequences,
                apart=slots is not None,
                outputs=OUTPUTS,
                kv_type=kv_type,
            )

        self.drafter = drafter or Drafter()
        self._scheduler = Scheduler(
            model,
            self.grammars,
            open_context,
            n_ctx,
            SEQUENCES if slots is None else slots,
            self.host,
            self.drafter,
        )
        # q8_0 has 34 bytes for 32 values. Known from here on, as metrics outlive the model.
        self._token_bytes = model.kv_bytes_per_token * (34 if kv_type == "q8_0" else 64) // 64
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(
            target=self._scheduler.run, name="tierwise-engine", daemon=True
        )
        self._thread.start()
        _open_engines.add(self)
        _threads.add(self._thread)

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queues a request. Never waits, so that coroutines may call it too.

        Raises:
            CallError: The prompt is empty, or has tokens that the model does not know.
            EngineBusyError: As many requests wait as are allowed.
            EngineClosedError: The engine was closed.
            EngineError: This process is a fork of the one that loaded the model.
            ToolSchemaError: The request's grammar does not compile.
        """
        self._check_process()
        prompt = np.array(request.prompt, dtype=np.int32)
        if not prompt.size or prompt.min() < 0 or prompt.max() >= self.model.vocab_size:
            raise CallError(
                f"a prompt must be tokens from 0 to {self.model.vocab_size - 1}, at least one; got "
                f"{request.prompt[:8]}{'...' if prompt.size > 8 else ''}"
            )
        if request.constraint is not None:
            self.grammars.compile(request.constraint.lark)  # here, in the caller's thread
        stream = GenerationStream(request, self)
        job = Job(request, stream.mailbox, stream.submitted, prompt)
        with self._lock:
            if self._closed:
                raise EngineClosedError("this tier was unloaded; ask the pool for it again")
            if self._scheduler.queued >= self._max_waiting:
                raise EngineBusyError(
                    f"{self._max_waiting} requests wait for {self.model.path.name!r} already. Try "
                    "again later, or send fewer at once (max_concurrency)."
                )
            self._scheduler.submit(job)
        return stream

    @property
    def n_ctx(self) -> int:
        """Tokens of context, of one request where they are kept apart, else of all together."""
        return self._scheduler.n_ctx

    @property
    def slots(self) -> int:
        """Requests that may be answered at once."""
        return min(REPLIES, len(self._scheduler.cache.sequences))

    @property
    def wanted_slots(self) -> int:
        """More than `slots` where as many prefixes have come back from host memory already:
        conversations take turns for which there are too few."""
        slots = self.slots
        return min(REPLIES, 2 * slots) if self._scheduler.cache.swaps >= slots else slots

    def draft_with(self, smaller: Engine) -> bool:
        """Lets a smaller model guess at next tokens; False if its vocabulary is another.

        Whether it is asked is up to `drafter`.
        """
        same = self.model.tokens_sha256 == smaller.model.tokens_sha256
        self.drafter.smaller = DraftEngine(smaller) if same else None
        return same

    @property
    def alive(self) -> bool:
        """Whether it takes requests: false after `close`, and after an error of its own."""
        return not self._scheduler.stopped

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return self._scheduler.active + self._scheduler.queued > 0

    def cached_prefix(self, prompt: tuple[int, ...]) -> int:
        """Tokens at the start of ``prompt`` that this engine would not have to prefill."""
        return self._scheduler.cache.longest(ids_of(prompt))

    def grow_soon(self, n_ctx: int, slots: int | None = None) -> Future[None]:
        """Goes on in a context of at least ``n_ctx`` tokens, from the end of the step that runs.

        Where requests are kept apart, there is room for ``slots`` of them.

        What runs and what is cached stays. The future fails with OutOfMemoryError where so
        large a context cannot be had (the old one is kept), and with EngineClosedError where
        the engine was closed.

        Raises:
            EngineError: This process is a fork of the one that loaded the model.
        """
        self._check_process()
        sequences = slots if self.apart and slots else len(self._scheduler.cache.sequences)
        return self._scheduler.between(partial(self._scheduler.grow, n_ctx, sequences))

    def metrics(self) -> EngineMetrics:
        """What it has done, and does now."""
        scheduler = self._scheduler
        steps, cache = scheduler.counters, scheduler.cache.counters
        return EngineMetrics(
            requests=steps.requests,
            active=scheduler.active,
            waiting=scheduler.queued,
            prompt_tokens=cache.prompt_tokens,
            cached_tokens=cache.cached_tokens,
            saved_bytes=cache.cached_tokens * self._token_bytes,
            steps=steps.steps,
            tokens=steps.tokens,
            evictions=cache.evictions,
            restores=cache.restores,
            preemptions=steps.preemptions,
            host_bytes=self.host.bytes,
        )

    def close(self) -> None:
        """Cancels what runs and waits, and frees context and model. Safe to call twice."""
        if os.getpid() != self._process:
            return  # the thread, and what it may be in the middle of, is the parent's
        with self._lock:
            self._closed = True
        self._scheduler.stop()  # its thread frees context and model
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise forked_error(f"the model {self.model.path.name!r} was loaded")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Half-made engines (the context did not fit) have no thread to stop. It is not waited
        # for: the garbage collector may be here at any time, with any lock held.
        if getattr(self, "_thread", None) is not None and os.getpid() == self._process:
            self._scheduler.stop()

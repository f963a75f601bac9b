"""The reply to one request, as it comes: read from a thread or from an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Self

from tierwise.runtime.errors import CallTimeoutError, EngineError
from tierwise.runtime.generation import Delta, Generated, GenerationRequest

Event = Delta | Generated | BaseException


class Mailbox:
    """Events from the engine's thread to one reader, who may be a thread or a coroutine."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self.closed = False
        """The reader has lost interest. Written once, read by the engine between two steps."""
        self.whole = False
        """The reader wants the end only, which has the whole text: pieces are left out."""

    def put(self, event: Event) -> None:
        """Adds an event and wakes the reader."""
        sleeper = self._sleeper
        if sleeper is not None and sleeper[0].is_closed():
            self.closed = True  # nobody reads any more
        if self.whole and isinstance(event, Delta):
            return
        with self._changed:
            self._events.append(event)
            self._changed.notify()
            sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            loop, woken = sleeper
            with suppress(RuntimeError):  # closed just now
                loop.call_soon_threadsafe(woken.set)

    def get(self, timeout_s: float | None) -> Event | None:
        """The next event; None when ``timeout_s`` passed without one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._events, timeout_s):
                return None
            return self._events.popleft()

    async def aget(self, timeout_s: float | None) -> Event | None:
        """The same, without blocking the event loop."""
        with self._changed:
            if self._events:
                return self._events.popleft()
            woken = asyncio.Event()
            self._sleeper = asyncio.get_running_loop(), woken
        try:
            async with asyncio.timeout(timeout_s):
                await woken.wait()
        except TimeoutError:
            return None
        return await self.aget(0)


class GenerationStream:
    """The reply to one request, as it comes. Iterate once, then ask for `result`.

    Leaving it early (``close``, ``with``, or letting it go) cancels the generation. `async for`
    and `aresult` are the same for coroutines: they hold no thread while they wait.

    Args:
        request: What was asked.
        engine: Kept alive until the stream goes.
    """

    def __init__(self, request: GenerationRequest, engine: object) -> None:
        self.request = request
        self._engine = engine
        self.submitted = time.perf_counter()
        self.mailbox = Mailbox()
        self._process = os.getpid()
        self._outcome: Generated | BaseException | None = None

    def __iter__(self) -> Iterator[Delta]:
        try:
            while self._outcome is None:
                if (delta := self._take(self.mailbox.get(self._left()))) is not None:
                    yield delta
        finally:
            self.close()
        if isinstance(self._outcome, BaseException):
            raise self._outcome

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            while self._outcome is None:
                if (delta := self._take(await self.mailbox.aget(self._left()))) is not None:
                    yield delta
        finally:
            self.close()
        if isinstance(self._outcome, BaseException):
            raise self._outcome

    def result(self) -> Generated:
        """Waits for the end and returns the whole reply.

        Raises:
            CallTimeoutError, EngineClosedError, EngineError: The generation failed, or this
                process is a fork of the one that asked.
        """
        self.mailbox.whole = True
        for _ in self:
            pass
        return self._generated()

    async def aresult(self) -> Generated:
        """`result` for coroutines."""
        self.mailbox.whole = True
        async for _ in self:
            pass
        return self._generated()

    def close(self) -> None:
        """Tells the engine to stop working on this request, if it still is."""
        self.mailbox.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _left(self) -> float | None:
        """Seconds to the deadline, even where an earlier request takes longer."""
        if os.getpid() != self._process:
            raise forked_error("this reply was asked for")
        deadline = self.request.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _take(self, event: Event | None) -> Delta | None:
        if isinstance(event, Delta):
            return event
        self._outcome = timeout_error() if event is None else event
        return None

    def _generated(self) -> Generated:
        assert isinstance(self._outcome, Generated)
        return self._outcome


def timeout_error() -> CallTimeoutError:
    """What a call gets whose time ran out."""
    return CallTimeoutError(
        "the call's time ran out before its reply was complete. Allow more time "
        "(timeout, Budget.seconds_per_call) or fewer tokens (max_tokens)."
    )


def forked_error(what: str) -> EngineError:
    """For a process whose parent did ``what``, e.g. "the model 'a.gguf' was loaded"."""
    return EngineError(
        f"{what} before this process was forked, and llama.cpp's threads do not come along. Load "
        "models after the fork (make a new ChatTierwise in the child), or start processes with "
        "'spawn'."
    )

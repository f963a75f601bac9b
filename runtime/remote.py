"""Tiers on other machines: OpenAI-compatible servers (vLLM, llama.cpp, or a provider).

They are asked through langchain-openai, which is imported when the first one is. A server that
fails, hangs, drops a stream, throttles, or answers as another model than it was asked for counts as
out of reach for a while, and its calls go to other tiers.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Self

from tierwise.runtime.chat import Call, Message, Reply, ToolCall, Usage
from tierwise.runtime.consent import refusal
from tierwise.runtime.errors import (
    CallTimeoutError,
    RemoteError,
    RemoteReplyError,
    ThrottledError,
)
from tierwise.runtime.profile import Profile, load_profile, machine_fingerprint, utc_now
from tierwise.runtime.remote_model import as_protocol, key_of, model_of
from tierwise.runtime.remote_tier import RemoteTier
from tierwise.runtime.reply_parser import Piece

LONGEST_BREAK_S = 60.0
"""After many failures in a row a server is left alone for so long between two calls."""

GUESSED_PREFILL, GUESSED_DECODE = 2000.0, 50.0
"""Tokens/s before the first reply; what calls really take corrects it."""


def remote_profile(tier: RemoteTier) -> Profile:
    """What a calibration has timed; a guess for a server that nobody has timed yet."""
    return load_profile(tier.sha256) or Profile(
        tier_sha256=tier.sha256,
        machine=machine_fingerprint(),
        threads=1,
        prefill_tokens_per_s=GUESSED_PREFILL,
        decode_tokens_per_s=GUESSED_DECODE,
        load_s=0.0,
        resident_bytes=0,
        context_tokens=tier.context_tokens,
        measured_at=utc_now(),
        runs=0,
        estimated=True,
    )


class RemoteClient:
    """Asks one server. Safe to use from many threads.

    Args:
        tier: Where it is and what it is asked for.
    """

    def __init__(self, tier: RemoteTier) -> None:
        self.tier = tier
        self._refusal = refusal(tier)
        self._lock = threading.Lock()
        self._failures = 0
        self._again_at = 0.0
        self._why = ""
        self._connections: tuple[Any, Any] | None = None

    def out_of_reach(self) -> str:
        """Why it should not be asked now, in English; "" if it may."""
        if self._refusal:
            return self._refusal
        with self._lock:
            left = self._again_at - time.monotonic()
            return f"{self._why}; asked again in {left:.0f} s" if left > 0 else ""

    def cannot(self, call: Call) -> str:
        """What the call asks that such servers do not promise; "" for nothing."""
        if call.regex is not None or call.choices:
            return "a remote server cannot be held to a regex or to choices"
        return ""

    def stream(
        self,
        call: Call,
        prompt: tuple[int, ...] | None = None,
        hint: tuple[int, ...] = (),
        until: float | None = None,
    ) -> RemoteReply:
        """Starts answering when it is read. ``hint`` is of no use here, as the server has its own
        template and vocabulary; ``prompt`` is counted where the server does not say what it read.
        From ``until`` on (of ``time.monotonic()``) no more is read; a tool call that was not
        finished by then is lost.

        Raises:
            MissingExtraError: langchain-openai is not installed.
            RemoteError: The environment variable of the key is not set, or nobody has connected
                the tier on this machine.
        """
        del hint
        key_of(self.tier)
        return RemoteReply(self, call, until, prompt_tokens=len(prompt or ()))

    def model(self, call: Call) -> Any:
        """langchain-openai's model for a call, over connections that all calls share.

        Its own ones would be kept for every timeout that a call ever had.
        """
        return model_of(self.tier, call, *self._shared())

    @asynccontextmanager
    async def amodel(self, call: Call) -> AsyncIterator[Any]:
        """`model` for a coroutine, with a connection of its own: one that was opened in another
        event loop is of no use in this."""
        from openai import DefaultAsyncHttpxClient

        async with DefaultAsyncHttpxClient() as own:
            yield model_of(self.tier, call, self._shared()[0], own)

    def _shared(self) -> tuple[Any, Any]:
        """Connections for calls that wait, and some for coroutines, of which none is opened."""
        from openai import DefaultAsyncHttpxClient, DefaultHttpxClient

        with self._lock:
            if self._connections is None:
                http = DefaultHttpxClient()
                weakref.finalize(self, http.close)
                self._connections = http, DefaultAsyncHttpxClient()
            return self._connections

    def failed(self, error: Exception) -> RemoteError:
        """The error for callers. The server is left alone for a while, unless it works and only
        this call came to nothing."""
        wait = _retry_after(error)
        why = f"remote tier {self.tier.name!r} at {self.tier.url}: {_told(error)}"
        kind = _kind(error)
        if kind is not RemoteReplyError:
            with self._lock:
                self._failures += 1
                pause = min(LONGEST_BREAK_S, 2.0 ** min(self._failures - 1, 6))
                self._again_at = time.monotonic() + max(pause, wait)
                self._why = why
        told = kind(why)
        told.retry_s = wait
        return told

    def answered(self) -> None:
        """It works."""
        with self._lock:
            self._failures, self._again_at, self._why = 0, 0.0, ""


def ask_briefly(tier: RemoteTier) -> float:
    """Asks a server one small thing; returns the seconds that it took.

    Raises:
        MissingExtraError, RemoteError: As `RemoteClient.stream` and `RemoteReply.reply`.
    """
    began = time.perf_counter()
    call = Call((Message("user", "Say OK."),), max_tokens=16)
    RemoteClient(tier).stream(call).reply()
    return time.perf_counter() - began


class RemoteLease:
    """A remote tier that is used; there is nothing to hold. Use as a context manager."""

    cold, load_s = False, 0.0
    events: tuple[str, ...] = ()

    def __init__(self, client: RemoteClient) -> None:
        self.tier = client

    def release(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class RemoteReply:
    """A reply as it comes, in the form of `ReplyStream`."""

    def __init__(
        self,
        client: RemoteClient,
        call: Call,
        until: float | None = None,
        *,
        prompt_tokens: int = 0,
    ) -> None:
        self._client, self._call, self._until = client, call, until
        self._prompt_tokens, self._parts = prompt_tokens, 0
        self._cut = False
        self._messages = [as_protocol(message) for message in call.messages]
        self._began = time.perf_counter()
        self._first_s: float | None = None
        self._whole: Any = None
        self._reply: Reply | None = None
        self._chunks: Any = None

    def __iter__(self) -> Iterator[Piece]:
        with self._failures_told():
            self._chunks = self._client.model(self._call).stream(self._messages)
            for chunk in self._chunks:
                if piece := self._take(chunk):
                    yield piece
                if self._is_late():
                    break
            self.close()
            self._finish()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        with self._failures_told():
            async with (
                self._client.amodel(self._call) as model,
                aclosing(model.astream(self._messages)) as chunks,
            ):
                async for chunk in chunks:
                    if piece := self._take(chunk):
                        yield piece
                    if self._is_late():
                        break
            self._finish()

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """What goes wrong is the server's fault, and it is left alone for a while; but not where
        it was in the middle of a reply that the caller had no more time for."""
        try:
            yield
        except Exception as error:
            limit, took = self._call.timeout_s, time.perf_counter() - self._began
            if limit is None or took < limit:
                raise self._client.failed(error) from error
            if self._first_s is None:
                self._client.failed(error)
            raise CallTimeoutError(
                f"remote tier {self._client.tier.name!r} gave no whole reply in {limit:g} s; allow "
                "more (timeout)"
            ) from error

    def reply(self) -> Reply:
        """Waits for the end.

        Raises:
            RemoteError: The server failed; names it and what happened. ThrottledError and
                RemoteReplyError are kinds of it.
        """
        if self._reply is None:
            for _ in self:
                pass
        assert self._reply is not None
        return self._reply

    async def areply(self) -> Reply:
        """`reply` for coroutines."""
        if self._reply is None:
            async for _ in self:
                pass
        assert self._reply is not None
        return self._reply

    def close(self) -> None:
        """Hangs up, if the server still writes. Safe to call twice."""
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, chunk: Any) -> Piece | None:
        limit = self._call.timeout_s
        if limit is not None and time.perf_counter() - self._began > limit:
            raise TimeoutError(f"no whole reply in {limit:g} s")
        if self._first_s is None:
            self._first_s = time.perf_counter() - self._began
        self._whole = chunk if self._whole is None else self._whole + chunk
        self._parts += bool(chunk.content or chunk.tool_call_chunks)
        text = _text(chunk)
        return Piece(text, reasoning=False) if text else None

    def _is_late(self) -> bool:
        """Whether no more is to be read, though there is more: the last chunk says that it is."""
        late = self._until is not None and time.monotonic() >= self._until
        self._cut = late and not self._whole.response_metadata.get("finish_reason")
        return self._cut

    def _finish(self) -> None:
        whole = self._whole
        told = {} if whole is None else whole.response_metadata
        reason = "length" if self._cut else told.get("finish_reason")
        if whole is None or not reason:
            raise ConnectionError("the stream ended in the middle of the reply")
        _check_model(self._client.tier.model, str(told.get("model_name") or ""))
        chunks = () if self._cut else whole.tool_call_chunks
        calls = tuple(_tool_call(chunk) for chunk in chunks)
        first = self._first_s or 0.0
        usage = whole.usage_metadata or {}
        details = usage.get("input_token_details") or {}
        self._reply = Reply(
            text=_text(whole),
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "length" if reason == "length" else "stop",
            usage=Usage(
                # Servers that do not count send a token at a time.
                prompt_tokens=usage.get("input_tokens") or self._prompt_tokens,
                cached_tokens=details.get("cache_read") or 0,
                completion_tokens=usage.get("output_tokens") or self._parts,
                prefill_s=first,
                decode_s=time.perf_counter() - self._began - first,
            ),
        )
        self._client.answered()


def _tool_call(chunk: Any) -> ToolCall:
    """Read strictly: langchain would take half of the arguments for all of them."""
    try:
        arguments = json.loads(chunk["args"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict) or not chunk["name"]:
        raise _UnreadableError("it wrote a tool call that cannot be read")
    return ToolCall(chunk["name"], arguments, id=chunk["id"] or "")


def _text(message: Any) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _check_model(asked: str, told: str) -> None:
    """Servers may add a date or a path to the name, and no more."""
    if told and told not in asked and asked not in told:
        raise ValueError(f"it answers as {told!r}, and {asked!r} was asked for")


class _UnreadableError(ValueError):
    """What the model wrote is at fault, and not the server."""


_REFUSED = (400, 413, 422)
"""Of HTTP: the request itself is not liked, and asking it again would not help."""


def _kind(error: Exception) -> type[RemoteError]:
    status = getattr(error, "status_code", None)
    if status == 429:
        return ThrottledError
    if status in _REFUSED or isinstance(error, _UnreadableError):
        return RemoteReplyError
    return RemoteError


def _told(error: Exception) -> str:
    status = getattr(error, "status_code", None)
    if status == 429:
        return "it has too many requests (429)"
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if status == 404:
        text = f"{text}; check the URL (it often ends in /v1) and the model's name"
    elif "onnection error" in text:
        text = f"{text} Does the server run, and at this address?"
    return f"{text} ({status})" if status else text


def _retry_after(error: Exception) -> float:
    """Seconds that the server asked for; 0 if it did not."""
    response = getattr(error, "response", None)
    value = None if response is None else response.headers.get("retry-after")
    try:
        return min(600.0, max(0.0, float(value or 0)))
    except ValueError:  # a date: then our own pause must do
        return 0.0

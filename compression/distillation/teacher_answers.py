"""The teacher's own answers to conversations, kept on disk as they come."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tierwise.compression.distillation.conversations import Conversation
from tierwise.runtime.chat import Call, Message, ToolCall
from tierwise.runtime.errors import CallError
from tierwise.runtime.files import FileHashes, disk_full_named
from tierwise.runtime.loaded_tier import LoadedTier, ReplyStream

AT_ONCE = 8
"""Calls that the teacher answers at the same time."""

LONGEST_ANSWER = 112
"""Tokens of a reply; longer ones end there, and are not learned from."""

CONTEXT = 8192


class TeacherAnswers:
    """Lets a model answer, constrained as in use: calls that it makes are valid.

    The cache is a file of JSON lines, one for each answer, each with a digest of its own: a run
    that was killed goes on where it was, and a damaged line is computed anew.

    Args:
        gguf: The teacher's file. It is loaded when the first answer is not known yet.
        cache: The file of answers; made where it is not there. None keeps nothing.
        threads: For llama.cpp.
        at_once: Calls in progress at the same time.
    """

    def __init__(
        self, gguf: Path, cache: Path | None, *, threads: int, at_once: int = AT_ONCE
    ) -> None:
        self._gguf = gguf
        self._cache = cache
        self._threads = threads
        self._at_once = at_once
        self._tier: LoadedTier | None = None
        self._sha256 = FileHashes.shared().sha256(gguf)
        self._known = _read(cache)

    def fill(
        self,
        conversations: Sequence[Conversation],
        progress: Callable[[str, float], None] | None = None,
    ) -> list[Conversation]:
        """The conversations with every asked turn answered, earlier turns first.

        One that cannot be answered (too long, or a reply without an end) is cut before the turn
        that failed; one of which nothing is left is left out.

        Raises:
            DiskFullError: There is no room for the cache.
            ModelError, OutOfMemoryError: The teacher cannot be loaded.
        """
        out = list(conversations)
        total = sum(len(one.asked) for one in out)
        while waiting := [index for index, one in enumerate(out) if one.asked]:
            calls = [_call(out[index]) for index in waiting]
            for index, answer in zip(waiting, self.answers(calls), strict=True):
                out[index] = _answered(out[index], answer)
            if progress is not None:
                done = total - sum(len(one.asked) for one in out)
                progress(f"{done} of {total} answers", done / total)
        return [one for one in out if any(m.role == "assistant" for m in one.messages)]

    def answers(self, calls: Sequence[Call]) -> list[Message | None]:
        """One reply for each call; None where there is none that ends by itself."""
        keys = [_key(self._sha256, call) for call in calls]
        waiting: deque[tuple[str, ReplyStream | None]] = deque()
        started: set[str] = set()
        for key, call in zip(keys, calls, strict=True):
            if key in self._known or key in started:
                continue
            started.add(key)
            stream = None
            with suppress(CallError):
                stream = self._loaded().stream(call)
            waiting.append((key, stream))
            if len(waiting) >= self._at_once:
                self._keep(*waiting.popleft())
        while waiting:
            self._keep(*waiting.popleft())
        return [_message(self._known[key]) for key in keys]

    def close(self) -> None:
        """Unloads the teacher."""
        if self._tier is not None:
            self._tier.close()
            self._tier = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _loaded(self) -> LoadedTier:
        if self._tier is None:
            self._tier = LoadedTier(self._gguf, n_ctx=CONTEXT, threads=self._threads)
        return self._tier

    def _keep(self, key: str, stream: ReplyStream | None) -> None:
        answer: dict[str, Any] = {"text": "", "calls": [], "whole": False}
        if stream is not None:
            with suppress(CallError):
                reply = stream.reply()
                answer = {
                    "text": reply.text,
                    "calls": [[call.name, dict(call.arguments)] for call in reply.tool_calls],
                    "whole": reply.finish_reason != "length",
                }
        self._known[key] = answer
        if self._cache is None:
            return
        line = json.dumps({"key": key, "answer": answer, "digest": _digest(key, answer)})
        with disk_full_named(self._cache), self._cache.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _call(conversation: Conversation) -> Call:
    """The next call to answer: by a tool where the gold answer has one, else in words."""
    turn = min(conversation.asked)
    choice = "any" if conversation.messages[turn].tool_calls else "none"
    call = conversation.call(turn)
    return replace(call, max_tokens=LONGEST_ANSWER, tool_choice=choice)


def _answered(conversation: Conversation, answer: Message | None) -> Conversation:
    turn = min(conversation.asked)
    if answer is None:
        return conversation.cut(turn)
    return conversation.with_answer(turn, answer)


def _message(answer: dict[str, Any]) -> Message | None:
    calls = tuple(ToolCall(name, arguments) for name, arguments in answer["calls"])
    if not answer["whole"] or not (calls or answer["text"].strip()):
        return None
    return Message("assistant", answer["text"], tool_calls=calls)


def _key(sha256: str, call: Call) -> str:
    inputs = [sha256, repr(call)]
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:32]


def _digest(key: str, answer: dict[str, Any]) -> str:
    text = json.dumps([key, answer], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(cache: Path | None) -> dict[str, dict[str, Any]]:
    """The answers of a cache file; lines that are damaged count as not there."""
    known: dict[str, dict[str, Any]] = {}
    if cache is None:
        return known
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        lines = cache.read_bytes().split(b"\n")
    except FileNotFoundError:
        return known
    if lines[-1]:  # a write was cut short, and the next must not go on in its line
        with disk_full_named(cache), cache.open("ab") as file:
            file.write(b"\n")
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            entry = json.loads(line)
            if entry["digest"] == _digest(entry["key"], entry["answer"]):
                known[entry["key"]] = entry["answer"]
    return known

"""A tier that is in memory and answers calls: template, grammar and engine joined."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tierwise.runtime.chat import Call, Reply, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.engine import Engine, GenerationStream
from tierwise.runtime.errors import ContextOverflowError, ToolSchemaError
from tierwise.runtime.generation import Generated, GenerationRequest
from tierwise.runtime.grammar import constraint_for
from tierwise.runtime.llama import Model
from tierwise.runtime.text_stream import TextStream
from tierwise.runtime.tool_format import ToolFormat


class ReplyStream:
    """Text of a reply as it comes; `reply` has the whole of it, tool calls parsed.

    Tool calls are not given out piece by piece: iterating yields only what is text for sure.
    """

    def __init__(self, stream: GenerationStream, call: Call, tool_format: ToolFormat) -> None:
        self._stream = stream
        self._call = call
        self._format = tool_format
        self._reply: Reply | None = None

    def __iter__(self) -> Iterator[str]:
        if not self._call.usable_tools:
            yield from (delta.text for delta in self._stream)
            return
        # A call may follow some words; from its opening tag on nothing is text.
        words = TextStream((self._format.opening.strip(),))
        for delta in self._stream:
            if not delta.constrained and (text := words.push(delta.text.encode())):
                yield text
        if text := words.push(b"", final=True):
            yield text

    def reply(self) -> Reply:
        """Waits for the end. Raises what `GenerationStream.result` raises."""
        if self._reply is None:
            self._reply = _parse(self._stream.result(), self._call, self._format)
        return self._reply

    def close(self) -> None:
        """Cancels the generation, if it still runs."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(done: Generated, call: Call, tool_format: ToolFormat) -> Reply:
    text, finish = done.text, done.finish_reason
    calls: tuple[ToolCall, ...] = ()
    if call.usable_tools:
        names = {tool.name for tool in call.usable_tools}
        text, calls = tool_format.read(done.text, names)
        if calls:
            finish = "tool_calls"
    return Reply(text, calls, finish, done.usage, done.confidence)


class LoadedTier:
    """One GGUF file, loaded.

    Args:
        path: The GGUF file.
        n_ctx: Tokens of context; must not be larger than the model was trained for.
        threads: For llama.cpp.

    Raises:
        ModelNotFoundError, DamagedModelError, UnsupportedModelError, OutOfMemoryError: The
            tier cannot be loaded.
        ContextOverflowError: ``n_ctx`` is larger than the model's.
    """

    def __init__(self, path: Path, *, n_ctx: int, threads: int) -> None:
        began = time.perf_counter()
        model = Model(path)
        try:
            if n_ctx > model.context_tokens:
                raise ContextOverflowError(
                    f"a context of {n_ctx} tokens was asked for, but {path.name!r} was trained "
                    f"for {model.context_tokens}. Ask for at most that."
                )
            self.template = ChatTemplate.of(model)
            for tag in self.template.tool_format.tags:
                model.show_tag(tag)
            self.engine = Engine(model, n_ctx=n_ctx, threads=threads)
        except BaseException:
            model.close()
            raise
        self.path = path
        self.model = model
        self.n_ctx = self.engine.n_ctx
        self.load_s = time.perf_counter() - began

    def prompt(self, call: Call) -> tuple[int, ...]:
        """The call's prompt in tokens."""
        return tuple(self.model.tokenize(self.template.render(call)))

    def stream(self, call: Call, prompt: tuple[int, ...] | None = None) -> ReplyStream:
        """Starts answering a call.

        Args:
            call: The call.
            prompt: Its tokens, where the caller has them already.

        Raises:
            ToolSchemaError: A schema cannot be compiled; names the tool and the property.
        """
        constraint = constraint_for(call, self.template.tool_format)
        request = GenerationRequest(
            prompt=self.prompt(call) if prompt is None else prompt,
            max_tokens=call.max_tokens,
            sampling=call.sampling,
            stop=call.stop,
            constraint=constraint,
            deadline=None if call.timeout_s is None else time.monotonic() + call.timeout_s,
        )
        try:
            stream = self.engine.submit(request)
        except ToolSchemaError:
            self.engine.grammars.check(call)
            raise
        return ReplyStream(stream, call, self.template.tool_format)

    def reply(self, call: Call) -> Reply:
        """Answers a call and waits for the whole reply."""
        return self.stream(call).reply()

    def close(self) -> None:
        """Unloads the tier. Calls that run or wait get EngineClosedError."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

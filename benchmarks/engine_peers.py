"""The sides that the engine benchmark compares, each behind the same question.

The prompt tokens of each call are checked; all get the same GGUF file, threads and longest
reply; and all decode greedily. Only the call itself is timed, not the making of its messages.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from engine_answer import Answer
from engine_server import LlamaServer
from langchain_community.chat_models import ChatLlamaCpp
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from tierwise import ChatTierwise, Family
from tierwise.runtime.chat import Call, Message, Tool, ToolCall
from tierwise.runtime.chat_template import ChatTemplate
from tierwise.runtime.llama import Model

PEER_CONTEXT = 8192
"""Tokens of context that ChatLlamaCpp and Llama get: what the model was trained for."""


class Side(Protocol):
    """One contestant. Those that stream have ``stream`` too."""

    @property
    def name(self) -> str: ...

    def reply(self, call: Call) -> Answer:
        """Asks for the whole reply."""


class Prompts:
    """What every side is to be asked: the model's own template, rendered by our code."""

    # Told through this template, a call gives the plain messages behind its prompt: tools as
    # part of the system prompt, tool calls and results as text.
    _AS_JSON = "{{ messages | tojson }}"

    def __init__(self, path: Path) -> None:
        self._model = Model(path, vocab_only=True)
        self._template = ChatTemplate.of(self._model)
        self._plain = ChatTemplate(self._AS_JSON)

    def tokens(self, call: Call) -> list[int]:
        return self._model.tokenize(self._template.render(call))

    def plain_messages(self, call: Call) -> list[dict[str, str]]:
        # Replies keep their white space whatever a template does, which is no JSON: put in last.
        said = {
            f"reply {index}": message
            for index, message in enumerate(call.messages)
            if message.role == "assistant" and not message.tool_calls
        }
        marks = {id(message): mark for mark, message in said.items()}
        turns = (replace(m, content=marks.get(id(m), m.content)) for m in call.messages)
        plain: list[dict[str, str]] = json.loads(
            self._plain.render(replace(call, messages=tuple(turns)))
        )
        for turn in plain:
            if turn["content"] in said:
                turn["content"] = said[turn["content"]].content
        return plain

    def count(self, text: str) -> int:
        """Tokens of a reply's text."""
        return len(self._model.tokenize(text, special=False))

    def check(self, side: str, call: Call, given: int | list[int]) -> int:
        """The prompt's tokens; stops the benchmark where a side read another one."""
        wanted = self.tokens(call)
        if given != (wanted if isinstance(given, list) else len(wanted)):
            count = len(given) if isinstance(given, list) else given
            raise SystemExit(f"{side} read a prompt of {count} tokens, not these {len(wanted)}")
        return len(wanted)


class Tierwise:
    """`ChatTierwise` over a family of one tier, in this process."""

    name = "ChatTierwise"

    def __init__(self, family: Family, prompts: Prompts, threads: int) -> None:
        self._prompts = prompts
        self.model = ChatTierwise(
            family=str(family.folder), model=family.tiers[0].name, threads=threads
        )

    def reply(self, call: Call) -> Answer:
        model, messages, options = self._request(call)
        began = time.perf_counter()
        message = model.invoke(messages, **options)
        seconds = time.perf_counter() - began
        return self._answer(call, message, seconds, seconds)

    def stream(self, call: Call) -> Answer:
        model, messages, options = self._request(call)
        seconds, first_s, message = _read(model.stream(messages, **options))
        return self._answer(call, message, seconds, first_s)

    def _request(self, call: Call) -> tuple[Any, list[BaseMessage], dict[str, Any]]:
        tools = [tool.to_openai() for tool in call.tools]
        model = self.model.bind_tools(tools, tool_choice=call.tool_choice) if tools else self.model
        return model, _to_langchain(call.messages), {"max_tokens": call.max_tokens}

    def _answer(self, call: Call, message: AIMessage, seconds: float, first_s: float) -> Answer:
        usage = message.usage_metadata
        assert usage is not None
        read = self._prompts.check(self.name, call, usage["input_tokens"])
        text = str(message.content)
        return Answer(seconds, first_s, usage["output_tokens"], read, text, _calls(message))


class LlamaCpp:
    """`ChatLlamaCpp` behind a lock, without which two threads abort the process.

    Its defaults would slow it down or spoil its replies, so it gets batches of 512 instead of
    8, the model's own rotary base instead of 10,000, no repeat penalty (that is not greedy),
    and flash attention, as our side and the server have it.
    """

    name = "ChatLlamaCpp"

    def __init__(self, path: Path, prompts: Prompts, threads: int) -> None:
        self._prompts = prompts
        self._lock = threading.Lock()
        self.model = ChatLlamaCpp(
            model_path=str(path),
            n_ctx=PEER_CONTEXT,
            n_batch=512,
            n_threads=threads,
            rope_freq_base=0.0,
            temperature=0.0,
            repeat_penalty=1.0,
            streaming=False,
            verbose=False,
            model_kwargs={"n_threads_batch": threads, "flash_attn": True},
        )

    def reply(self, call: Call, *, tools: Sequence[Tool] = ()) -> Answer:
        """``tools`` are bound in place of the call's own; the prompt stays."""
        model, messages = self._request(call, tools or call.tools)
        began = time.perf_counter()
        with self._lock:
            message = model.invoke(messages, max_tokens=call.max_tokens)
            seconds = time.perf_counter() - began
            read = self._check(call)
        tokens = message.response_metadata["token_usage"]["completion_tokens"]
        return Answer(seconds, seconds, tokens, read, str(message.content), _calls(message))

    def stream(self, call: Call) -> Answer:
        model, messages = self._request(call, call.tools)
        with self._lock:
            pieces = model.stream(messages, max_tokens=call.max_tokens)
            seconds, first_s, message = _read(pieces)
            read = self._check(call)
        text = str(message.content)
        count = self._prompts.count(text)
        return Answer(seconds, first_s, count, read, text, _calls(message))

    def complete(self, call: Call) -> Answer:
        """`Llama.create_completion` on the same model, without LangChain."""
        prompt = self._prompts.tokens(call)
        began = time.perf_counter()
        with self._lock:
            done = self.model.client.create_completion(
                prompt, max_tokens=call.max_tokens, temperature=0.0, repeat_penalty=1.0
            )
        seconds = time.perf_counter() - began
        tokens = done["usage"]["completion_tokens"]
        return Answer(seconds, seconds, tokens, len(prompt), done["choices"][0]["text"])

    def forget(self) -> None:
        """Drops the prefix that it keeps."""
        self.model.client.reset()

    def _request(self, call: Call, tools: Sequence[Tool]) -> tuple[Any, list[dict[str, str]]]:
        model: Any = self.model
        if call.must_call:
            choice = {"type": "function", "function": {"name": call.tool_choice}}
            model = self.model.bind_tools([t.to_openai() for t in tools], tool_choice=choice)
        return model, self._prompts.plain_messages(call)

    def _check(self, call: Call) -> int:
        """Its context must begin with exactly our tokens."""
        held = self.model.client.input_ids[: len(self._prompts.tokens(call))]
        return self._prompts.check(self.name, call, held.tolist())


class WholeCalls:
    """`LlamaCpp` that writes the tool's name too, and not its arguments alone.

    Its grammar begins a forced call at the arguments, where the prompt taught the model to write
    ``{"name": …, "arguments": …}``, and fewer of them come out right. Bound to tools whose
    arguments are that whole object, it writes the same text as our side.
    """

    name = "ChatLlamaCpp, whole calls"

    def __init__(self, peer: LlamaCpp) -> None:
        self._peer = peer

    def reply(self, call: Call) -> Answer:
        answer = self._peer.reply(call, tools=[_whole(tool) for tool in call.tools])
        inner = (one.arguments.get("arguments") for one in answer.tool_calls)
        calls = (ToolCall(call.tool_choice, args) for args in inner if isinstance(args, dict))
        return replace(answer, tool_calls=tuple(calls))


def _whole(tool: Tool) -> Tool:
    properties = {"name": {"const": tool.name}, "arguments": dict(tool.parameters)}
    schema = {"type": "object", "properties": properties, "required": ["name", "arguments"]}
    return replace(tool, parameters=schema)


class Server:
    """llama.cpp's own server in a process of its own, asked over HTTP without LangChain."""

    name = "llama.cpp server"

    def __init__(self, server: LlamaServer, prompts: Prompts) -> None:
        self._server = server
        self._prompts = prompts

    def reply(self, call: Call) -> Answer:
        request = {
            "prompt": self._prompts.tokens(call),
            "n_predict": call.max_tokens,
            "temperature": 0.0,
            "cache_prompt": True,
        }
        began = time.perf_counter()
        done = self._server.post("/completion", request)
        seconds = time.perf_counter() - began
        read = self._prompts.check(self.name, call, done["tokens_evaluated"])
        # The others do not count the token that ends a reply.
        tokens = done["tokens_predicted"] - (done["stop_type"] == "eos")
        return Answer(seconds, seconds, tokens, read, done["content"])


def _read(pieces: Iterator[AIMessageChunk]) -> tuple[float, float, AIMessageChunk]:
    """Seconds to the end and to the first piece with content, and the whole message."""
    began = time.perf_counter()
    first_s: float | None = None
    whole: AIMessageChunk | None = None
    for piece in pieces:
        if first_s is None and (piece.content or piece.tool_call_chunks):
            first_s = time.perf_counter() - began
        whole = piece if whole is None else whole + piece
    seconds = time.perf_counter() - began
    assert whole is not None
    return seconds, seconds if first_s is None else first_s, whole


def _calls(message: AIMessage) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call["name"], call["args"]) for call in message.tool_calls)


def _to_langchain(messages: tuple[Message, ...]) -> list[BaseMessage]:
    out: list[BaseMessage] = []
    for message in messages:
        if message.role == "system":
            out.append(SystemMessage(message.content))
        elif message.role == "user":
            out.append(HumanMessage(message.content))
        elif message.role == "tool":
            out.append(
                ToolMessage(
                    message.content, tool_call_id=message.tool_call_id, name=message.tool_name
                )
            )
        else:
            calls = [
                {"name": c.name, "args": dict(c.arguments), "id": c.id, "type": "tool_call"}
                for c in message.tool_calls
            ]
            out.append(AIMessage(message.content, tool_calls=calls))
    return out

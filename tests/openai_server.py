"""A server on loopback that speaks OpenAI's streaming protocol, and breaks it on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OpenAIServer(ThreadingHTTPServer):
    """Answers chat completions.

    Attributes:
        mode: "ok", "hang" (not a word), "drop" (half a reply), "throttle" (429), "broken" (500),
            "liar" (another model), "nonsense" (no JSON), "bad call" (unreadable arguments), or
            "refuse" (400).
        throttled: So many further requests get 429, whatever the mode.
        retry_after: What the server then asks for.
        knows: Replies by a text that the last message contains; a reply of None is a bad call.
        counts: Whether it tells of tokens at the end.
        pause_s: Between two parts of a reply.
        most_at_once: Requests that were in progress at the same time.
        asked: Every request's body.
        call: A tool call to reply with, as (name, arguments); None for words.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = "ok"
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.call: tuple[str, str] | None = None
        self.throttled = 0
        self.pause_s = 0.005
        self.counts = True
        self.retry_after = "30"
        self.knows: dict[str, str | None] = {}
        self.most_at_once = self.at_once = 0
        self.counting = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        server = self.server
        with server.counting:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            throttled, server.throttled = server.throttled > 0, max(0, server.throttled - 1)
        self._counts = True
        try:
            self._answer(throttled)
        finally:
            self._leave()

    def _leave(self) -> None:
        with self.server.counting:
            self.server.at_once -= self._counts
            self._counts = False

    def _answer(self, throttled: bool) -> None:
        size = int(self.headers["content-length"])
        asked = json.loads(self.rfile.read(size))
        server = self.server
        server.asked.append(asked)
        server.keys.append(self.headers.get("authorization", ""))
        if server.mode == "hang":
            server.over.wait(300)
            return
        status = {"throttle": 429, "broken": 500, "refuse": 400}.get(server.mode)
        if not self.path.startswith("/v1/"):
            status = 404
        if status or throttled:
            self._refuse(429 if throttled else status)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number, chunk in enumerate(self._chunks(asked)):
            if server.mode == "drop" and number == 2:
                break
            if chunk == "[DONE]":
                self._leave()  # before the client can ask anew
            self.wfile.write(f"data: {chunk}\n\n".encode())
            self.wfile.flush()
            time.sleep(server.pause_s)
        self.close_connection = True

    def _refuse(self, status: int | None) -> None:
        self._leave()
        body = b'{"error": {"message": "not now"}}'
        self.send_response(status or 500)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if status == 429:
            self.send_header("retry-after", self.server.retry_after)
        self.end_headers()
        self.wfile.write(body)

    def _chunks(self, asked: dict[str, Any]) -> Iterator[str]:
        server = self.server
        model = "something-else" if server.mode == "liar" else asked["model"]
        turn = str(asked["messages"][-1]["content"])
        words = next((said for key, said in server.knows.items() if key in turn), "From far away.")
        if server.mode == "nonsense":
            yield "{no json"
            return

        def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model}
            return json.dumps({**head, "choices": [choice], **more})

        yield chunk({"role": "assistant", "content": ""})
        if server.call is not None or words is None:
            name, arguments = server.call or ("broken", "{")
            if server.mode == "bad call":
                arguments = arguments[:-3]
            function = {"name": name, "arguments": arguments}
            yield chunk(
                {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
            )
            yield chunk({}, "tool_calls")
        else:
            for number, word in enumerate(words.split(" ")):
                yield chunk({"content": word if not number else f" {word}"})
            yield chunk({}, "stop")
        if not server.counts:
            yield "[DONE]"
            return
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        last = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model}
        yield json.dumps({**last, "choices": [], "usage": usage})
        yield "[DONE]"


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """One that runs until the block ends."""
    server = OpenAIServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()

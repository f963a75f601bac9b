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
            "liar" (another model), "nonsense" (no JSON), or "bad call" (unreadable arguments).
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
        size = int(self.headers["content-length"])
        asked = json.loads(self.rfile.read(size))
        server = self.server
        server.asked.append(asked)
        server.keys.append(self.headers.get("authorization", ""))
        if server.mode == "hang":
            server.over.wait(20)
            return
        if server.mode in ("throttle", "broken"):
            self._refuse()
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number, chunk in enumerate(self._chunks(asked["model"])):
            if server.mode == "drop" and number == 2:
                break
            self.wfile.write(f"data: {chunk}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.005)
        self.close_connection = True

    def _refuse(self) -> None:
        throttled = self.server.mode == "throttle"
        body = b'{"error": {"message": "not now"}}'
        self.send_response(429 if throttled else 500)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if throttled:
            self.send_header("retry-after", "30")
        self.end_headers()
        self.wfile.write(body)

    def _chunks(self, asked: str) -> Iterator[str]:
        server = self.server
        model = "something-else" if server.mode == "liar" else asked
        if server.mode == "nonsense":
            yield "{no json"
            return

        def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model}
            return json.dumps({**head, "choices": [choice], **more})

        yield chunk({"role": "assistant", "content": ""})
        if server.call is not None:
            name, arguments = server.call
            if server.mode == "bad call":
                arguments = arguments[:-3]
            function = {"name": name, "arguments": arguments}
            yield chunk(
                {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
            )
            yield chunk({}, "tool_calls")
        else:
            for word in ("From", " far", " away."):
                yield chunk({"content": word})
            yield chunk({}, "stop")
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

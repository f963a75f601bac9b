"""llama.cpp's own server as a peer, in a process of its own.

Run as a program it hosts the server of the `xllamacpp` wheel until its standard input closes.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

STARTS_WITHIN_S = 60.0


class LlamaServer:
    """A running server.

    Args:
        model: GGUF file.
        n_ctx: Tokens of context, of all slots together.
        slots: Requests that it answers at once.
        threads: For llama.cpp.
        unified: One KV cache for all slots, instead of an equal share for each.
        program: A ``llama-server`` to run instead of the wheel's, which is compiled for any
            x86-64 with AVX2 and knows nothing of this machine's newer instructions.
    """

    def __init__(
        self,
        model: Path,
        *,
        n_ctx: int,
        slots: int,
        threads: int,
        unified: bool = False,
        program: Path | None = None,
    ) -> None:
        port = _free_port()
        if program is None:
            options = {"model": str(model), "n_ctx": n_ctx, "slots": slots, "threads": threads}
            host = json.dumps({**options, "unified": unified, "port": port})
            command = [sys.executable, __file__, host]
        else:
            command = [str(program), "--model", str(model), "--port", str(port), "--offline"]
            command += ["--ctx-size", str(n_ctx), "--parallel", str(slots)]
            command += ["--threads", str(threads), "--threads-batch", str(threads)]
            command += ["--kv-unified" if unified else "--no-kv-unified"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # One kept-alive connection for each slot.
        limits = httpx.Limits(max_connections=slots, max_keepalive_connections=slots)
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits, trust_env=False
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended with code {self._process.returncode}")
            try:
                if self._http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"the server did not answer within {STARTS_WITHIN_S:g} s")

    def post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """Sends JSON and returns the answer; raises `httpx.HTTPStatusError` for a refusal."""
        response = self._http.post(path, json=request)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._http.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host(options: dict[str, Any]) -> None:
    """Serves until standard input closes: when the benchmark ends, however it ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.port = options["port"]
    params.n_ctx = options["n_ctx"]
    params.n_parallel = options["slots"]
    params.kv_unified = options["unified"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    # Continuous batching, the prompt cache and automatic flash attention are on by default.
    server = xllamacpp.Server(params)
    assert server.listening_address
    sys.stdin.read()


if __name__ == "__main__":
    host(json.loads(sys.argv[1]))

"""Measures a tier's speed and memory on this machine, in a process of its own.

A child process gives clean memory figures, and a crash of llama.cpp does not take the build
down with it. ``python -m tierwise.evaluation.profiling FILE`` is that child.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tierwise.runtime import errors
from tierwise.runtime.context import Chunk, Context, KVType, keeps_apart
from tierwise.runtime.errors import (
    ConfigError,
    EngineError,
    ModelNotFoundError,
    TierwiseError,
    UnsupportedModelError,
)
from tierwise.runtime.grammar import GrammarCompiler
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import Profile, machine_fingerprint, utc_now
from tierwise.runtime.scheduler import OUTPUTS, SEQUENCES

PREFILL_TOKENS = 512
DECODE_TOKENS = 48
SINGLE_RUN_PROMPT, SINGLE_RUN_REPLY = 192, 32
"""Tokens, where each speed is measured once."""
WARM_UP_PROMPT, WARM_UP_REPLY = 128, 4
"""Tokens before a single run: a whole micro-batch, so that all buffers are in use."""
STEP_TOKENS = (1, 2, 4, 8, 16)
STEP_SEQUENCES = (1, 2, 4, 8)
STEP_RUNS = 8
"""Of each step at least, which is too short for a few to do; half of them in a single run."""
_TEXT = "The weather in Paris is mild today, and the museum by the river opens at nine. "

Progress = Callable[[str, float], None]
"""Called with what is being measured and the share (0..1) of all measuring that is done."""


def measure_profile(
    path: Path,
    tier_sha256: str,
    *,
    threads: int,
    context_tokens: int = 2048,
    runs: int = 3,
    progress: Progress | None = None,
) -> Profile:
    """Measures one GGUF file on this machine; nothing else should be running.

    Each speed is the median of ``runs``. The first load warms the page cache and gives
    ``resident_bytes``: the child's growth in resident memory (weights that went to a GPU are
    not in it) from before the load to after a prefill and a decode.

    Args:
        path: The GGUF file.
        tier_sha256: Its hash, which the profile is kept under.
        threads: For llama.cpp.
        context_tokens: Size of the KV cache; cut to what the model was trained for. In a
            context of less than 560 tokens, prefill and decode are measured on fewer.
        runs: At least 1. A single run is for little time: its prompt and reply are shorter.

    Raises:
        ConfigError: An argument is not positive.
        ModelError: The file cannot be loaded, as when loading it here.
        EngineError: The child died; gives the signal or exit code and what it said last.
    """
    for name, value in (("threads", threads), ("context_tokens", context_tokens), ("runs", runs)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if not path.is_file():
        raise ModelNotFoundError(f"there is no model file {str(path)!r}")
    command = [sys.executable, "-P", "-m", "tierwise.evaluation.profiling", str(path.resolve())]
    command += ["--threads", str(threads), "--context", str(context_tokens), "--runs", str(runs)]
    figures = _run_child(command, path, progress)
    return Profile(
        tier_sha256=tier_sha256,
        machine=machine_fingerprint(),
        threads=threads,
        measured_at=utc_now(),
        runs=runs,
        **figures,
    )


def _run_child(command: list[str], path: Path, progress: Progress | None) -> dict[str, Any]:
    """The figures from the child's last line; lines before it are progress."""
    figures: dict[str, Any] | None = None
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True
        ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if not line.startswith("{"):  # some driver that greets on stdout
                    continue
                message = json.loads(line)
                if "error" in message:
                    raise getattr(errors, message["error"])(message["reason"])
                if "stage" in message and progress is not None:
                    progress(message["stage"], message["done"])
                figures = message.get("figures", figures)
        except BaseException:
            child.kill()
            raise
        code = child.wait()
        if code == 0 and figures is not None:
            return figures
        said.seek(0)
        last = " | ".join(line.strip() for line in said.readlines()[-5:] if line.strip())
    raise EngineError(
        f"profiling {path.name!r} failed: {_ending(code)}. It said last: {last or '(nothing)'}. "
        "Copy the file again, close other programs, or use fewer context_tokens."
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"the measuring process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hint = " (the system kills processes so when memory runs out)" if name == "SIGKILL" else ""
    return f"the measuring process was killed by signal {name}{hint}"


def _measure(
    path: Path, *, threads: int, context_tokens: int, runs: int, progress: Progress
) -> dict[str, Any]:
    """The figures, measured in this process. The first load must be the process's first."""
    progress("load", 0.0)
    before = psutil.Process().memory_info().rss
    with Model(path) as model:
        n_ctx = min(context_tokens, model.context_tokens)
        size, reply = PREFILL_TOKENS, DECODE_TOKENS
        if runs == 1:
            size, reply = SINGLE_RUN_PROMPT, SINGLE_RUN_REPLY
        decode_tokens = min(reply, max(1, n_ctx // 4))
        prompt = _prompt(model, max(1, min(size, n_ctx - decode_tokens)))
        with _context(model, n_ctx, threads) as context:
            grammars = GrammarCompiler(model)
            grammars.matcher("start: /a/")  # builds the token trie
            grammars.close()
            progress("warm-up", 0.1)
            if runs > 1:
                _time_call(context, prompt, decode_tokens)
            else:
                _time_call(context, prompt[:WARM_UP_PROMPT], WARM_UP_REPLY)
            resident = psutil.Process().memory_info().rss - before
            cells = context.n_ctx
            timings = []
            for run in range(runs):
                progress("speed", 0.3 + 0.2 * run / runs)
                timings.append(_time_call(context, prompt, decode_tokens))
            progress("steps", 0.5)
            step_s = _time_steps(context, prompt, runs)
        with _context(model, n_ctx, threads, sequences=max(STEP_SEQUENCES)) as context:
            sequences_s = _time_sequences(context, prompt, runs)
        prefill_s, decode_s = (statistics.median(times) for times in zip(*timings, strict=True))
        progress("KV cache of q8_0", 0.6)
        kv_speed = None
        with (
            suppress(UnsupportedModelError),
            _context(model, n_ctx, threads, kv_type="q8_0") as context,
        ):
            if runs > 1:  # else the machine is warm from the run with f16
                _time_call(context, prompt, decode_tokens)
            timings = [_time_call(context, prompt, decode_tokens) for _ in range(runs)]
            prefill, decode = (statistics.median(times) for times in zip(*timings, strict=True))
            kv_speed = {"prefill": prefill_s / prefill, "decode": decode_s / decode}
    loads = []
    for run in range(runs):
        progress("load", 0.8 + 0.2 * run / runs)
        began = time.perf_counter()
        with Model(path) as model, _context(model, n_ctx, threads):
            loads.append(time.perf_counter() - began)
    progress("done", 1.0)
    return {
        "prefill_tokens_per_s": len(prompt) / prefill_s,
        "decode_tokens_per_s": decode_tokens / decode_s,
        "load_s": statistics.median(loads),
        "resident_bytes": max(0, resident),
        "context_tokens": cells,
        "step_s": step_s,
        "sequences_s": sequences_s,
        "kv_q8_0": kv_speed,
    }


def _context(
    model: Model, n_ctx: int, threads: int, *, sequences: int = 1, kv_type: KVType = "f16"
) -> Context:
    """As an engine opens it."""
    apart = keeps_apart(model)
    return Context(
        model,
        n_ctx,
        threads=threads,
        sequences=sequences if apart else SEQUENCES,
        apart=apart,
        outputs=OUTPUTS,
        kv_type=kv_type,
    )


def _prompt(model: Model, size: int) -> list[int]:
    """``size`` tokens of plain text."""
    tokens = model.tokenize(_TEXT)
    return (tokens * (size // len(tokens) + 1))[:size]


def _time_call(context: Context, prompt: list[int], decode_tokens: int) -> tuple[float, float]:
    """Seconds of prefill and of decode from an empty cache, taking the likeliest token."""
    context.truncate(0)
    began = time.perf_counter()
    context.decode(prompt, 0)
    token = int(context.logits().argmax())  # waits for the result where a GPU computes it
    prefilled = time.perf_counter()
    for step in range(decode_tokens):
        context.decode([token], len(prompt) + step)
        token = int(context.logits().argmax())
    return prefilled - began, time.perf_counter() - prefilled


def _time_steps(context: Context, prompt: list[int], runs: int) -> dict[int, float]:
    """Seconds of a decode step behind ``prompt``, which is left in the cache, by the number of
    tokens of one sequence. Sizes that the context has no room for are left out."""
    end = len(prompt)
    context.truncate(end)
    room = min(context.n_ctx - end, context.batch_size, context.max_outputs)
    return {
        size: _seconds(context, [Chunk(0, end, [prompt[0]] * size, size)], runs)
        for size in STEP_TOKENS
        if size <= room
    }


def _time_sequences(context: Context, prompt: list[int], runs: int) -> dict[int, float]:
    """Seconds of a decode step with one token of each of some sequences that hold ``prompt``, by
    their number. Of models whose sequences cannot be shared, none."""
    if not context.divisible:
        return {}
    end = len(prompt)
    context.decode(prompt, 0)
    for sequence in range(1, max(STEP_SEQUENCES)):
        context.share(0, sequence, end)
    room = context.batch_size if context.apart else context.n_ctx - end
    return {
        count: _seconds(context, [Chunk(s, end, [prompt[0]], 1) for s in range(count)], runs)
        for count in STEP_SEQUENCES
        if count <= room
    }


def _seconds(context: Context, chunks: list[Chunk], runs: int) -> float:
    """Of one step, which is taken back."""
    times = []
    for _ in range(max(runs, STEP_RUNS) if runs > 1 else STEP_RUNS // 2):
        began = time.perf_counter()
        row = context.run(chunks)[-1]
        context.logits(row)
        times.append(time.perf_counter() - began)
        for chunk in chunks:
            context.truncate(chunk.position, chunk.sequence)
    return statistics.median(times)


def _say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    """Parses, measures, and prints one JSON object a line; the last has the figures."""
    parser = argparse.ArgumentParser(prog="tierwise.evaluation.profiling")
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    try:
        figures = _measure(
            options.file,
            threads=options.threads,
            context_tokens=options.context,
            runs=options.runs,
            progress=lambda stage, done: _say(stage=stage, done=done),
        )
    except TierwiseError as error:
        _say(error=type(error).__name__, reason=str(error))
        return
    _say(figures=figures)


if __name__ == "__main__":
    main()

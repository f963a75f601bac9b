"""How llama.cpp's contexts are best used on this machine: what `runtime.context` and
`runtime.cores` rest on.

    python benchmarks/contexts.py [GGUF] [--threads N] [--runs N] [--json FILE]

Milliseconds, medians, the kinds in turn:

- ``attention``: a prompt of 1,400 tokens in parts of 512, and 1, 4 and 33 tokens more behind it,
  by flash and by plain attention.
- ``cells``: a step of eight sequences of 1,300 tokens, and 512 prompt tokens beside them, over
  shared cells and over cells of their own (flash attention in both).
- ``helpers``: a token of a reply, two contexts being used in turn by a thread each, where the idle
  thread keeps its OpenMP helpers and where it sends them away.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import arguments, report, say
from engine_setup import Bench

from tierwise.runtime import context as contexts
from tierwise.runtime.context import Chunk, Context
from tierwise.runtime.cores import release_workers
from tierwise.runtime.llama import Model
from tierwise.runtime.resources import probe

PROMPT, HELD, STEPS = 1400, 1300, 16


def milliseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def medians(times: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        kind: {what: round(statistics.median(values), 1) for what, values in measured.items()}
        for kind, measured in times.items()
    }


def open_context(
    model: Model, threads: int, *, plain: bool = False, apart: bool = True, sequences: int = 1
) -> Context:
    contexts._PLAIN_IS_QUICKER = plain
    n_ctx = 2048 if apart else 2048 * sequences
    return Context(model, n_ctx, threads=threads, sequences=sequences, apart=apart)


def attention(model: Model, tokens: list[int], threads: int, runs: int) -> dict[str, Any]:
    kinds = {
        name: open_context(model, threads, plain=name == "plain") for name in ("flash", "plain")
    }
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in kinds}
    for _ in range(runs):
        for name, context in kinds.items():
            context.truncate(0)
            whole = milliseconds(lambda context=context: context.decode(tokens[:PROMPT], 0))
            times[name]["prompt"].append(whole)
            for more in (1, 4, 33):
                part = tokens[:more]
                read = milliseconds(lambda c=context, part=part: c.decode(part, PROMPT))
                times[name][f"{more} more"].append(read)
                context.truncate(PROMPT)
    for context in kinds.values():
        context.close()
    return medians(times)


def cells(model: Model, tokens: list[int], threads: int, runs: int) -> dict[str, Any]:
    kinds = {
        name: open_context(model, threads, apart=name == "apart", sequences=8)
        for name in ("shared", "apart")
    }
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in kinds}
    for context in kinds.values():
        for sequence in range(8):
            for start in range(0, HELD, 512):
                part = tokens[start : min(start + 512, HELD)]
                context.run([Chunk(sequence, start, part)])
    for _ in range(runs):
        for name, context in kinds.items():
            step = [Chunk(sequence, HELD, tokens[:1], 1) for sequence in range(8)]
            took = milliseconds(lambda c=context, step=step: c.run(step))
            times[name]["step of eight"].append(took)
            for sequence in range(8):
                context.truncate(HELD, sequence)
            context.truncate(0)
            prompt = milliseconds(lambda c=context: c.run([Chunk(0, 0, tokens[:512], 1)]))
            times[name]["512 prompt tokens"].append(prompt)
            context.run([Chunk(0, 512, tokens[512:1024])])
            context.run([Chunk(0, 1024, tokens[1024:HELD])])
    for context in kinds.values():
        context.close()
    return medians(times)


def helpers(model: Model, tokens: list[int], threads: int, runs: int) -> dict[str, Any]:
    times: dict[str, dict[str, list[float]]] = {
        name: defaultdict(list) for name in ("kept", "sent away")
    }

    def write(context: Context) -> None:
        for step in range(STEPS):
            context.decode(tokens[:1], 64 + step)
        context.truncate(64)

    for kind, measured in times.items():
        pair = [open_context(model, threads, plain=True) for _ in range(2)]
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            for context in pair:
                context.decode(tokens[:64], 0)
            release_workers()
            for _ in range(runs):
                for context, thread in zip(pair, (one, other), strict=True):
                    took = thread.submit(milliseconds, lambda c=context: write(c)).result()
                    measured["a token"].append(took / STEPS)
                    if kind == "sent away":
                        thread.submit(release_workers).result()
        for context in pair:
            context.close()
    return medians(times)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("file", type=Path, nargs="?", metavar="GGUF", help="SmolLM2 as Q8_0")
    parser.add_argument("--threads", type=int, default=probe().threads, help="for llama.cpp")
    options = parser.parse_args()
    file = options.file or Bench(options.runs, False, options.threads, None).path
    figures: dict[str, Any] = {"file": file.name, "runs": options.runs}
    with Model(file) as model:
        text = "Once upon a time there was a king who could not sleep. " * 200
        tokens = model.tokenize(text)[:PROMPT]
        for measure in (attention, cells, helpers):
            say(f"{measure.__name__} …")
            figures[measure.__name__] = measure(model, tokens, options.threads, options.runs)
    report(figures, options.json)


if __name__ == "__main__":
    main()

"""The engine against its peers: ChatLlamaCpp, llama_cpp.Llama, and llama.cpp's own server.

    python benchmarks/engine.py [--runs N] [--only KEY ...] [--quick] [--threads N]
                                [--llama-server FILE] [--json FILE]

One GGUF file (the bundled SmolLM2 requantized to Q8_0, for which all sides have fast kernels),
the same questions, each prompt's tokens checked at every call (an agent's history holds what the
side itself has replied), threads and longest reply, greedy everywhere.
Sides take turns within each run and change places from run to run; each figure is the median
of the runs' ratios, with the smallest and the largest. No two runs share a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
from common import arguments, report, say
from engine_measurements import (
    agents_ttft,
    long_decode,
    parallel,
    server_parallel,
    server_single,
    shared_prefix_ttft,
    tool_call,
)
from engine_overhead import overhead
from engine_setup import Bench, Figures
from roofline import roofline

from tierwise.runtime.resources import probe

MEASUREMENTS: dict[str, Callable[[Bench], Figures]] = {
    "tool_call_speedup": tool_call,
    "agents_ttft_speedup": agents_ttft,
    "shared_prefix_ttft_speedup": shared_prefix_ttft,
    "parallel_speedup": parallel,
    "server_ratio_parallel": server_parallel,
    "server_ratio_single": server_single,
    "long_decode_ratio": long_decode,
    "overhead_ms": overhead,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=3)
    parser.add_argument("--only", nargs="+", choices=[*MEASUREMENTS, "roofline"], metavar="KEY")
    parser.add_argument("--quick", action="store_true", help="one short run, to see that it works")
    parser.add_argument("--threads", type=int, default=probe().threads, help="for llama.cpp")
    parser.add_argument(
        "--llama-server",
        type=Path,
        help="a llama-server compiled for this machine, instead of the xllamacpp wheel's",
    )
    options = parser.parse_args()
    wanted = options.only or [*MEASUREMENTS, "roofline"]
    runs = 1 if options.quick else options.runs
    say("making the model file")
    bench = Bench(runs, options.quick, options.threads, options.llama_server)
    figures: Figures = {
        "file": bench.path.name,
        "llama_threads": bench.threads,
        "runs": runs,
        "llama_cpp": llama_cpp.llama_print_system_info().decode(),
    }
    details: Figures = {}
    try:
        for key in wanted:
            began = time.perf_counter()
            say(f"{key} …")
            if key == "roofline":
                repeats, steps = (2, 8) if options.quick else (20, 128)
                figures[key] = roofline(bench.path, bench.threads, repeats=repeats, steps=steps)
            else:
                measured = MEASUREMENTS[key](bench)
                details[key] = measured["details"]
                figures[key] = measured[key]
            say(f"{key}: {figures[key]} ({time.perf_counter() - began:.0f} s)")
    finally:
        bench.close()
    report({**figures, "details": details}, options.json)


if __name__ == "__main__":
    main()

"""Forced tool calls: our engine against ``llama_cpp.Llama`` with a GBNF grammar.

The same GGUF file, the same prompt tokens, the same schemas, greedy on both sides, in turn in
one process. Both keep the prefix that a prompt shares with the one before it.

    python benchmarks/engine.py [--runs N] [--json FILE]
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from common import arguments, report, spread
from llama_cpp import Llama, LlamaGrammar

from tierwise.compression.source import resolve_base
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Task
from tierwise.runtime.grammar import closed
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.resources import probe

CONTEXT = 4096
TASKS = 12


def main() -> None:
    options = arguments(__doc__).parse_args()
    path = resolve_base("bundled:smollm2").gguf
    tasks = [task for task in generate_tasks(TASKS * 4, seed=7) if task.call.must_call][:TASKS]
    threads = probe().threads
    peer = Llama(str(path), n_ctx=CONTEXT, n_threads=threads, verbose=False)
    ratios, ours_s, peer_s, ours_right, peer_right = [], [], [], 0, 0
    with LoadedTier(path, n_ctx=CONTEXT, threads=threads) as tier:
        for _ in range(options.runs):
            ours_total = peer_total = 0.0
            for task in tasks:
                prompt = tier.prompt(task.call)
                began = time.perf_counter()
                reply = tier.stream(task.call, prompt).reply()
                ours_total += time.perf_counter() - began
                ours_right += task.check(reply)
                seconds, text = run_peer(peer, list(prompt), task)
                peer_total += seconds
                _, calls = tier.template.tool_format.read(text, {t.name for t in task.call.tools})
                peer_right += task.check(type(reply)(tool_calls=calls))
            ours_s.append(ours_total / len(tasks))
            peer_s.append(peer_total / len(tasks))
            ratios.append(peer_total / ours_total)
    report(
        {
            "file": Path(path).name,
            "tool_call_speedup_vs_llama": spread(ratios),
            "tool_call_s": spread(ours_s),
            "llama_tool_call_s": spread(peer_s),
            "right": ours_right,
            "llama_right": peer_right,
            "of": len(tasks) * options.runs,
        },
        options.json,
    )


def run_peer(peer: Llama, prompt: list[int], task: Task) -> tuple[float, str]:
    """One forced tool call with llama-cpp-python's own generator."""
    schema = {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": closed(tool.parameters),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in task.call.usable_tools
        ]
    }
    began = time.perf_counter()
    grammar = LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    tokens: list[int] = []
    for token in peer.generate(prompt, temp=0.0, top_k=1, grammar=grammar):
        if token == peer.token_eos() or len(tokens) >= (task.call.max_tokens or 256):
            break
        tokens.append(token)
    seconds = time.perf_counter() - began
    return seconds, peer.detokenize(tokens).decode("utf-8", errors="replace")


if __name__ == "__main__":
    main()

"""What a routing decision costs: a long conversation with twenty tools over a built family.

python benchmarks/routing.py [--runs N] [--json FILE] [--family DIR]
"""

from __future__ import annotations

import statistics
import time

from common import arguments, report

from tierwise import Budget, Family, Router
from tierwise.evaluation.tool_catalog import CATALOGS
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.pool import Pool

TURN = "Tell me more about the hills, the rain and the road that leads there. " * 4


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=200)
    parser.add_argument("--family", default="families/smollm2")
    options = parser.parse_args()
    family = Family.load(options.family)
    call = long_call()
    with Pool(family) as pool:
        router = Router(family, pool, Budget())
        router.decide(call)  # reads the vocabulary and each tier's memory need once
        seconds = []
        for _ in range(options.runs):
            began = time.perf_counter()
            decision = router.decide(call)
            seconds.append(time.perf_counter() - began)
    cuts = statistics.quantiles(seconds, n=100)
    report(
        {
            "decision_ms_p50": round(cuts[49] * 1e3, 3),
            "decision_ms_p99": round(cuts[98] * 1e3, 3),
            "prompt_tokens": decision.prompt_tokens,
            "tiers": len(family.tiers),
            "tools": len(call.tools),
        },
        options.json,
    )


def long_call() -> Call:
    patterns = (p for domain in CATALOGS["test"].domains for p in domain.tools)
    turns = [Message("user" if turn % 2 == 0 else "assistant", TURN) for turn in range(41)]
    tools: list[Tool] = [pattern.tool for pattern in patterns]
    return Call(tuple(turns), tuple(tools[:20]))


if __name__ == "__main__":
    main()

"""What a routing decision costs, from the call to the prompt's tokens and the chosen tier.

Two agents: one with 10 tools and some 1,200 tokens of prompt, one with 20 tools and some 4,700.
Each run is a conversation of its own, decided twice: ``first`` when nobody has seen it, and
``next`` one turn later. ``again`` is the same call once more. Milliseconds of wall-clock time;
nothing is generated and no weights are loaded.

python benchmarks/routing.py [--runs N] [--json FILE] [--family DIR]
"""

from __future__ import annotations

import time
from collections.abc import Callable

from common import arguments, report, spread

from tierwise import Budget, Family, Router
from tierwise.evaluation.tool_catalog import CATALOGS
from tierwise.routing.decision import Decision
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.pool import Pool

TURN = "Tell me more about the hills, the rain and the road that leads there. " * 4
AGENTS = {"10_tools": (10, 1), "20_tools": (20, 35)}
"""Tools and turns of each."""


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=100)
    parser.add_argument("--family", default="families/smollm2")
    options = parser.parse_args()
    family = Family.load(options.family)
    with Pool(family) as pool:
        router = Router(family, pool, Budget())
        figures = {
            name: measure(router, tools, turns, options.runs)
            for name, (tools, turns) in AGENTS.items()
        }
    report({"tiers": len(family.tiers), "decision_ms": figures}, options.json)


def measure(router: Router, tools: int, turns: int, runs: int) -> dict[str, object]:
    """Milliseconds by turn, and how long the prompts were."""
    # Reads the vocabulary and each tier's need of memory, which happens once.
    router.decide(conversation("warm-up", tools, turns))
    times: dict[str, list[float]] = {"first": [], "next": [], "again": []}
    for run in range(runs):
        call = conversation(f"conversation {run}", tools, turns)
        later = call.with_messages(Message("assistant", TURN), Message("user", f"And {run}?"))
        for name, asked in (("first", call), ("next", later), ("again", later)):
            decision, seconds = timed(lambda asked=asked: router.decide(asked))
            times[name].append(seconds * 1e3)
    shown = {name: spread(milliseconds) for name, milliseconds in times.items()}
    return {"tools": tools, "prompt_tokens": decision.prompt_tokens, **shown}


def timed(decide: Callable[[], Decision]) -> tuple[Decision, float]:
    began = time.perf_counter()
    decision = decide()
    return decision, time.perf_counter() - began


def conversation(name: str, tools: int, turns: int) -> Call:
    """An agent's call; no turn of it is in a conversation of another name."""
    texts = [f"{name}, turn {turn}. {TURN}" for turn in range(turns)]
    messages = [
        Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)
    ]
    patterns = (p for domain in CATALOGS["test"].domains for p in domain.tools)
    chosen: list[Tool] = [pattern.tool for pattern in patterns][:tools]
    return Call((Message("system", f"This is {name}."), *messages), tuple(chosen))


if __name__ == "__main__":
    main()

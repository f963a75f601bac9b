"""A LangChain agent with four real tools, routed over a calibrated family under two budgets.

First comes what the calibration found: whether calls are routed, or the tier that will do is the
same for all of them. Every model call prints which tier answered, why, what was predicted and what
it took. At the end the two budgets are held against always using the best tier.

    python examples/04_langchain_agent.py [FAMILY]
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from agent_tools import make_tools
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langgraph.errors import GraphRecursionError

from tierwise import Budget, ChatTierwise, Family
from tierwise.plugin.calibration_text import in_words
from tierwise.routing.calibration_store import calibration_of

REQUESTS = [
    # (the request, a text that a right answer rests on: in a tool's result or in the reply)
    ("Convert 5 miles to kilometers.", "8.047"),
    ("How many pounds are 80 kilograms?", "176.4"),
    ("Convert 12 feet to meters.", "3.658"),
    ("Find the files that contain the word invoice.", "march.txt"),
    ("Which files contain the word budget?", "plan.md"),
    ("What did the customer Dana Moss order?", "2 lamp"),
    ("Look up the orders of the customer Ivo Lang.", "1 desk"),
    ("Calculate 12 * 7.", "84"),
    ("Work out the expression (17 + 5) * 3.", "66"),
    ("Hello, how are you?", ""),
]


@dataclass
class Score:
    """What a run over all requests came to."""

    name: str
    seconds: float = 0.0
    right: int = 0
    calls: int = 0
    escalations: int = 0
    missed: int = 0
    """Calls whose forecast was off by more than half of what they took."""


def main() -> None:
    family = Family.load(sys.argv[1] if len(sys.argv) > 1 else "families/smollm2")
    print(in_words(calibration_of(family)))
    with ChatTierwise(family=str(family.folder)) as model:
        best = model.router.tiers[-1]  # as calibration ranks them
    smallest = min(tier.bytes for tier in family.tiers)
    ample = Budget(quality=0.95)
    tight = Budget(memory=int(smallest * 2.3), seconds_per_call=1.5, quality=0.7)
    scores = [
        run("ample budget", ChatTierwise(family=str(family.folder), budget=ample, max_tokens=64)),
        run("tight budget", ChatTierwise(family=str(family.folder), budget=tight, max_tokens=64)),
        run(
            f"always {best.name}",
            ChatTierwise(family=str(family.folder), model=best.name, max_tokens=64),
        ),
    ]
    print("\nSummary")
    print(f"{'':<18}{'seconds':>9}{'right':>9}{'calls':>7}{'escalated':>11}{'forecast off':>14}")
    for s in scores:
        print(
            f"{s.name:<18}{s.seconds:>9.1f}{s.right:>6} of {len(REQUESTS)}{s.calls:>6}"
            f"{s.escalations:>11}{s.missed:>14}"
        )


def run(name: str, model: ChatTierwise) -> Score:
    """Asks everything once, each request in a conversation of its own."""
    print(f"\n== {name}: {model.budget.model_dump(exclude_unset=True)}")
    score = Score(name)
    with tempfile.TemporaryDirectory() as folder, model:
        agent = create_agent(model, make_tools(Path(folder)))
        for request, expected in REQUESTS:
            print(f"\n{request}")
            began = time.perf_counter()
            try:
                state = agent.invoke({"messages": [("user", request)]}, {"recursion_limit": 9})
                messages = state["messages"][1:]
            except GraphRecursionError:
                print("  gave up: too many steps")
                messages = []
            score.seconds += time.perf_counter() - began
            score.right += _is_right(messages, expected)
            for message in messages:
                _show(message, score)
    return score


def _is_right(messages: list[AIMessage | ToolMessage], expected: str) -> bool:
    """The expected text came up, or, where none is expected, no tool was called."""
    if not messages:
        return False
    if not expected:
        return not any(isinstance(message, ToolMessage) for message in messages)
    return any(expected in str(message.content) for message in messages)


def _show(message: AIMessage | ToolMessage, score: Score) -> None:
    if isinstance(message, ToolMessage):
        print(f"    {message.name} → {message.content}")
        return
    told = message.response_metadata
    score.calls += 1
    score.escalations += told["escalated"]
    score.missed += abs(told["predicted_s"] - told["actual_s"]) > told["actual_s"] / 2
    said = (
        ", ".join(f"{call['name']}({call['args']})" for call in message.tool_calls)
        or " ".join(str(message.content).split())[:76]
    )
    print(f"  [{told['tier']}] {said}")
    print(
        f"      {told['reason']}; predicted {told['predicted_s']:.2f} s, "
        f"took {told['actual_s']:.2f} s" + ("; escalated" if told["escalated"] else "")
    )


if __name__ == "__main__":
    main()

"""What it saves to price the reading of a conversation anew when it changes its tier.

    python benchmarks/routing_switch.py FAMILY [--conversations N] [--turns T] [--json FILE]

Agents' conversations with a system message, tools, and turns of 20 to 500 tokens. One turn in
three asks for the best tier, as the agent middleware does where tools have failed; the others for
half of its quality. Every conversation is answered twice, in an order drawn anew each time: by the
router as it is, and by the same one told that each tier has read as much of the conversation as
that which has read most. Both call the same tiers with the same prompts, so that the seconds
differ by the choice of tiers alone.

``switch_saved``: share of the seconds that the second takes and the first does not, with a 95 %
interval over conversations.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, say

from tierwise import Budget, Family, Router
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.routing.bootstrap import Interval, resamples
from tierwise.routing.calibration_store import calibration_of
from tierwise.routing.cascade import answer
from tierwise.runtime.chat import Call, Message
from tierwise.runtime.family import Tier
from tierwise.runtime.pool import Pool

REPLY_TOKENS = 24
WARM_UP = 2
"""Conversations before the first that counts."""

_WORDS = ("hill", "rain", "road", "valley", "bridge", "mill", "orchard", "ferry", "tower", "letter")


class Blind(Pool):
    """Says of every tier that it has read what the best informed one has."""

    def cached_prefix(self, tier: Tier | str, prompt: tuple[int, ...]) -> int:
        del tier
        return max(super(Blind, self).cached_prefix(name, prompt) for name in self.resident())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    family = Family.load(options.family)
    calibration = calibration_of(family)
    rng = random.Random(f"routing-switch-{options.seed}")
    tasks = generate_tasks(6 * (options.conversations + WARM_UP), seed=91 + options.seed, menu=6)
    used: dict[str, Counter[str]] = {"priced": Counter(), "ignored": Counter()}
    switches: Counter[str] = Counter()
    rows = []
    with Pool(family) as priced, Blind(family) as ignored:
        routers = {
            "priced": Router(family, priced, calibration=calibration),
            "ignored": Router(family, ignored, calibration=calibration),
        }
        for number in range(options.conversations + WARM_UP):
            calls = conversation(tasks[6 * number].call, options.turns, rng)
            sides = rng.sample(sorted(routers), 2)
            seconds = dict.fromkeys(sides, 0.0)
            for side in sides:
                before = None
                for call, budget in calls:
                    found = answer(routers[side], call, budget=budget)
                    seconds[side] += found.seconds
                    tier = found.final.decision.tier
                    used[side][tier] += 1
                    switches[side] += before not in (None, tier)
                    before = tier
            if number >= WARM_UP:
                rows.append([seconds["priced"], seconds["ignored"]])
                say(f"{len(rows)}: {rows[-1][0]:.2f} s priced, {rows[-1][1]:.2f} s ignored")
    report(
        {
            "conversations": options.conversations,
            "turns": options.turns,
            "calibrated": calibration is not None,
            "switch_saved": saved(np.array(rows)),
            "seconds": dict(zip(("priced", "ignored"), np.sum(rows, axis=0).round(2), strict=True)),
            "switches": dict(switches),
            "tiers": {side: dict(counts.most_common()) for side, counts in used.items()},
        },
        options.json,
    )


def saved(rows: Any) -> dict[str, float]:
    """Of seconds of shape (conversations, 2)."""
    counts = resamples(len(rows), draws=10_000)
    drawn = counts @ rows
    total = rows.sum(axis=0)
    found = Interval.of(1 - total[0] / total[1], 1 - drawn[:, 0] / drawn[:, 1])
    return {
        "value": round(found.value, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
    }


def conversation(first: Call, turns: int, rng: random.Random) -> list[tuple[Call, Budget]]:
    """Calls one turn after the other, each with its budget. What was replied is made up, so that
    both sides read the same."""
    messages = list(first.messages)
    calls = []
    for _ in range(turns):
        call = Call(tuple(messages), first.tools, tool_choice="any", max_tokens=REPLY_TOKENS)
        hard = rng.random() < 1 / 3
        calls.append((call, Budget(quality=1.0 if hard else 0.5)))
        words = " ".join(rng.choices(_WORDS, k=rng.choice((15, 60, 150, 400))))
        messages += [Message("assistant", "Done."), Message("user", f"It says: {words}. Go on.")]
    return calls


if __name__ == "__main__":
    main()

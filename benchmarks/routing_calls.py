"""Mixed calls under budgets and pressure that change at random: are forecasts and limits kept?

    python benchmarks/routing_calls.py FAMILY [--calls N] [--seed S] [--json FILE]

Calls are of our suite: three share a menu of tools, so that prefixes are cached as in an agent.
Before each, the budget is drawn anew: a deadline that the quickest tier can keep by its profile
(from just so to eight times as long) or none, a cap on memory or none, and a quality. The machine
is made to look as if other processes held a part of its memory, a different one for each call.

``latency_error_median``: |predicted − actual| ÷ actual, over all attempts.
``budget_violations``: share of answered calls that took longer than their deadline (with a
twentieth for the clock) or left more in memory than their cap. Calls that nothing fits are refused
beforehand, and counted apart, as are those that failed in any other way, by the error.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from common import arguments, report, say

from tierwise import Budget, Family, Router
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.routing.answer import Answer
from tierwise.routing.calibration_store import calibration_of
from tierwise.routing.cascade import answer
from tierwise.runtime.errors import CallError, NoFeasibleTierError
from tierwise.runtime.pool import Pool
from tierwise.runtime.profile import family_profiles
from tierwise.runtime.resources import Resources, probe

MENU = 3
LATE = 1.05
"""Times the deadline; less is the clock's."""

WARM_UP = 12
"""Calls before the first that counts, without budgets."""


class Pressure:
    """A resource probe that hides a part of the memory."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held = 0.0

    def change(self) -> None:
        """Other processes hold something else from now on: mostly little, sometimes nearly all."""
        self._held = self._rng.choice((0.0, 0.0, 0.3, 0.6, 0.9, 0.97))

    def __call__(self) -> Resources:
        now = probe()
        left = int(now.available_bytes * (1 - self._held))
        return replace(now, available_bytes=left)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(f"routing-calls-{options.seed}")
    family = Family.load(options.family)
    pressure = Pressure(rng)
    tasks = generate_tasks(options.calls + WARM_UP, seed=77 + options.seed, menu=MENU)
    least = min(
        profile.seconds(500, 30, cold=False) for profile in family_profiles(family).values()
    )
    smallest = min(tier.bytes for tier in family.tiers)
    errors: list[float] = []
    broken: Counter[str] = Counter()
    used: Counter[str] = Counter()
    late: list[dict[str, Any]] = []
    unanswered: Counter[str] = Counter()
    with Pool(family, probe=pressure) as pool:
        calibration = calibration_of(family)
        router = Router(family, pool, probe=pressure, calibration=calibration)
        for task in tasks[:WARM_UP]:
            answer(router, task.call)
        began = time.monotonic()
        for number, task in enumerate(tasks[WARM_UP:]):
            pressure.change()
            budget = drawn(rng, least, smallest)
            try:
                found = answer(router, task.call, budget=budget)
            except (NoFeasibleTierError, CallError) as error:
                unanswered[type(error).__name__] += 1
                continue
            errors += off(found)
            used[found.final.decision.tier] += 1
            resident = sum(one.bytes for one in pool.resident().values())
            broken.update(kinds := violations(found, budget, resident))
            if "deadline" in kinds:
                late.append(told(found, budget))
            if number % 50 == 49:
                say(f"{number + 1} calls in {time.monotonic() - began:.0f} s")
    answered = sum(used.values())
    report(
        {
            "calls": options.calls,
            "answered": answered,
            "refused": unanswered.pop(NoFeasibleTierError.__name__, 0),
            "failed": dict(unanswered),
            "calibrated": calibration is not None,
            "latency_error_median": round(statistics.median(errors), 4),
            "latency_error_quartiles": [
                round(value, 4) for value in statistics.quantiles(errors, n=4)
            ],
            "budget_violations": round(sum(broken.values()) / max(1, answered), 4),
            "violations": dict(broken),
            "late": late,
            "tiers": dict(used.most_common()),
            "peak_bytes": psutil.Process().memory_info().rss,
        },
        options.json,
    )


def drawn(rng: random.Random, least: float, smallest: int) -> Budget:
    """A budget at random."""
    limits: dict[str, Any] = {"quality": rng.choice((0.0, 0.5, 0.8, 0.9, 1.0))}
    if rng.random() < 0.6:
        limits["seconds_per_call"] = least * 2 ** rng.uniform(0.5, 3)
    if rng.random() < 0.5:
        limits["memory"] = int(smallest * rng.uniform(1.8, 6))
    return Budget(**limits)


def off(found: Answer) -> list[float]:
    """How far the forecast of every attempt was off."""
    return [
        abs(one.decision.forecast.seconds - one.seconds) / one.seconds
        for one in found.attempts
        if one.seconds > 0
    ]


def violations(found: Answer, budget: Budget, resident: int) -> list[str]:
    """Which limits a call did not keep."""
    late = budget.seconds_per_call is not None and found.seconds > LATE * budget.seconds_per_call
    large = budget.memory is not None and resident > budget.memory
    return [name for name, broke in (("deadline", late), ("memory", large)) if broke]


def told(found: Answer, budget: Budget) -> dict[str, Any]:
    """Of a call that took longer than its deadline: what was forecast, and what took so long."""
    return {
        "deadline": round(budget.seconds_per_call or 0.0, 3),
        "seconds": round(found.seconds, 3),
        "attempts": [
            {
                "tier": one.decision.tier,
                "forecast": round(one.decision.forecast.seconds, 3),
                "seconds": round(one.seconds, 3),
                "load_s": round(one.load_s, 3),
                "new_tokens": one.decision.forecast.new_tokens,
                "read_tokens": one.reply.usage.prompt_tokens - one.reply.usage.cached_tokens,
                "completion_tokens": one.reply.usage.completion_tokens,
                "forced_tokens": one.reply.usage.forced_tokens,
                "queue_s": round(one.reply.usage.queue_s, 3),
                "prefill_s": round(one.reply.usage.prefill_s, 3),
                "decode_s": round(one.reply.usage.decode_s, 3),
                "problem": one.problem,
            }
            for one in found.attempts
        ],
    }


if __name__ == "__main__":
    main()

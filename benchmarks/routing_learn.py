"""Does a cheap tier learn from a log? Online distillation on tasks of one menu of tools.

    python benchmarks/routing_learn.py FAMILY TIER BETTER... [--calls N] [--fresh N] [--minutes M]

FAMILY is copied, and the copy thrown away. The first N tasks of a menu are asked of TIER and, where
it fails, of each BETTER, by a user who confirms right replies and rejects wrong ones; all of that
goes into a decision log with text. `learn_tier` then teaches TIER from the log alone. The other
tasks of the menu are asked of the tier before and after: nothing of them was in the log.

``fresh``: share of them that are answered rightly, before and after, with the paired difference and
its 95 % interval. ``learned``: the verdict of `tierwise learn` itself, on held-out logged calls and
on general tasks of other tools.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, report, say

from tierwise import Budget, Family, Router
from tierwise.evaluation.success import run_suite
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.evaluation.tasks import Task
from tierwise.plugin.learning import LearnConfig, learn_tier
from tierwise.routing.bootstrap import mean_interval, resamples
from tierwise.routing.cascade import answer
from tierwise.routing.decision_log import DecisionLog
from tierwise.runtime.pool import Pool

CONTEXT = 4096


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("tier")
    parser.add_argument("better", nargs="+")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--fresh", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--general", type=int, default=80, help="tasks of other tools")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count = options.calls + options.fresh
    tasks = generate_tasks(count, seed=55 + options.seed, menu=count)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "family"
        shutil.copytree(options.family, copy, ignore=shutil.ignore_patterns(".*"))
        log = Path(folder) / "log.sqlite"
        confirmed = ask(copy, log, tasks[: options.calls], [options.tier, *options.better])
        fresh = tasks[options.calls :]
        before = passed(copy, options.tier, fresh)
        began = time.perf_counter()
        config = LearnConfig(minutes=options.minutes, suites=(f"tools:{options.general}",))
        learned = learn_tier(copy, [log], tier=options.tier, config=config)
        took = time.perf_counter() - began
        after = passed(copy, options.tier, fresh) if learned.swapped else before
    gain = mean_interval(after - before, resamples(len(fresh), draws=10_000))
    report(
        {
            "tier": options.tier,
            "logged": len(tasks[: options.calls]),
            "confirmed": confirmed,
            "seconds": round(took, 1),
            "fresh": {
                "tasks": len(fresh),
                "before": round(float(before.mean()), 4),
                "after": round(float(after.mean()), 4),
                "gain": [round(x, 4) for x in (gain.value, gain.low, gain.high)],
            },
            "learned": learned.to_json(),
        },
        options.json,
    )


def ask(folder: Path, path: Path, tasks: tuple[Task, ...], tiers: list[str]) -> int:
    """Asks tier after tier until one is right, and says so; returns how often one was."""
    family, log = Family.load(folder), DecisionLog(path, text=True)
    confirmed = 0
    with Pool(family) as pool:
        router = Router(family, pool, Budget(quality=0.0), log=log)
        for number, task in enumerate(tasks):
            for tier in tiers:
                found = answer(router, task.call, pin=tier)
                right = task.check(found.reply)
                router.feedback(found.id, right)
                confirmed += right
                if right:
                    break
            if number % 20 == 19:
                say(f"{number + 1} logged, {confirmed} confirmed")
    log.close()
    return confirmed


def passed(folder: Path, tier: str, tasks: tuple[Task, ...]) -> Any:
    """1 for every task that a tier answers rightly, shape (tasks,)."""
    family = Family.load(folder)
    with Pool(family) as pool, pool.acquire(tier, context_tokens=CONTEXT) as lease:
        return np.array([float(one.passed) for one in run_suite(lease.tier, list(tasks))])


if __name__ == "__main__":
    main()

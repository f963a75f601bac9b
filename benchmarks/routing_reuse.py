"""What an escalation saves by reading the given-up reply along.

    python benchmarks/routing_reuse.py FAMILY SMALL LARGE [--tasks N] [--json FILE]

Tasks of our suite that the tier SMALL does wrong are answered by LARGE twice, in an order drawn
anew each time: alone, and with the reply of SMALL as its hint. Prompts are read before the clock
runs.

``steps``: of the model, for all these replies together. ``seconds_ratio``: of their decoding, alone
÷ with hints. ``same``: replies that are the same token by token; the others differ where two tokens
are as good as equal, as steps of another size round differently.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from common import arguments, report, say

from tierwise import Family
from tierwise.evaluation.task_generator import generate_tasks
from tierwise.runtime.chat import Reply
from tierwise.runtime.drafting import Drafter
from tierwise.runtime.loaded_tier import LoadedTier
from tierwise.runtime.profile import load_profile
from tierwise.runtime.resources import probe

REPLY_TOKENS = 96


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("small")
    parser.add_argument("large")
    parser.add_argument("--tasks", type=int, default=48)
    options = parser.parse_args()
    family = Family.load(options.family)
    rng = random.Random("routing-reuse")
    steps, seconds = {"alone": 0, "hinted": 0}, {"alone": 0.0, "hinted": 0.0}
    asked = same = chosen = reused = 0
    with opened(family, options.small) as small, opened(family, options.large) as large:
        for task in generate_tasks(options.tasks, seed=5, split="test", menu=4):
            call = replace(task.call, max_tokens=REPLY_TOKENS)
            draft = small.reply(call)
            if task.check(draft):
                continue
            asked += 1
            large.reply(replace(call, max_tokens=1))
            replies: dict[str, Reply] = {}
            for way in rng.sample(sorted(steps), 2):
                before = large.engine.metrics().steps
                hint = draft.tokens if way == "hinted" else ()
                replies[way] = large.stream(call, None, hint).reply()
                steps[way] += large.engine.metrics().steps - before
                seconds[way] += replies[way].usage.decode_s
            usage = replies["hinted"].usage
            same += replies["hinted"].tokens == replies["alone"].tokens
            chosen += usage.completion_tokens - usage.forced_tokens
            reused += usage.reused_tokens
            say(f"{asked}: {steps['alone']} steps alone, {steps['hinted']} hinted")
    report(
        {
            "replies": asked,
            "same": same,
            "steps": steps,
            "seconds_ratio": round(seconds["alone"] / seconds["hinted"], 3) if asked else None,
            "chosen_tokens": chosen,
            "reused_tokens": reused,
        },
        options.json,
    )


def opened(family: Family, name: str) -> LoadedTier:
    """A tier by itself, with what steps cost it on this machine where that is known."""
    tier = family.tier(name)
    profile = load_profile(tier.sha256)
    drafter = Drafter(profile.step_s) if profile is not None else None
    threads = probe().threads
    return LoadedTier(family.path(tier), n_ctx=4096, threads=threads, drafter=drafter)


if __name__ == "__main__":
    main()

"""How long until memory pressure has brought a variant of a tier that does not fit?

    python benchmarks/routing_adapt.py FAMILY FALLBACK TIER --memory BYTES [--every SECONDS]

FAMILY is copied, and the copy thrown away. An uncalibrated `ChatTierwise(adapt=True)` with these
two tiers is asked for the best under a cap on memory that FALLBACK keeps to and TIER does not,
every few seconds, until a variant answers. What is reported: after how many seconds that was, what
the variant is, and the chances that the router goes by.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from common import arguments, report, say

from tierwise import Budget, ChatTierwise

QUESTION = "Say something kind about the rain."


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("family", type=Path)
    parser.add_argument("fallback")
    parser.add_argument("tier")
    parser.add_argument("--memory", required=True, help="of all tiers, such as 220MB")
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--longest", type=float, default=600.0)
    options = parser.parse_args()
    kept = shutil.ignore_patterns(".*", "calibration*", "outcomes*", "variants")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "family"
        shutil.copytree(options.family, copy, ignore=kept)
        budget = Budget(memory=options.memory, quality=1.0)
        names = [options.fallback, options.tier]
        with ChatTierwise(
            family=copy, tiers=names, budget=budget, adapt=True, max_tokens=40
        ) as model:
            began, tier = time.monotonic(), ""
            while (took := time.monotonic() - began) < options.longest:
                tier = model.invoke(QUESTION).response_metadata["tier"]
                if tier not in names:
                    break
                say(f"{took:.0f} s: {tier}")
                time.sleep(options.every)
            decision = model.explain(QUESTION)
            known = model.router.family.tier(tier)
    report(
        {
            "memory": options.memory,
            "seconds": round(took, 1),
            "tier": tier,
            "bytes": known.bytes,
            "quantization": known.lineage.quantization,
            "layers": known.layers,
            "chances": {one.tier: round(one.success, 4) for one in decision.forecasts},
        },
        options.json,
    )


if __name__ == "__main__":
    main()

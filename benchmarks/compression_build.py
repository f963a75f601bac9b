"""Builds a quantization-only family of SmolLM2 and reports its time, stage by stage.

python benchmarks/compression_build.py [--effort quick|normal|thorough] [--runs N] [--json FILE]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import arguments, report, spread

from tierwise import BuildConfig, Family, build_family
from tierwise.compression.reporting import Progress


class Stopwatch:
    """A reporter that adds up seconds by the first word of a stage's title."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        began = time.perf_counter()
        yield lambda _text, _share: None
        word = title.split()[0].lower()
        self.seconds[word] = self.seconds.get(word, 0.0) + time.perf_counter() - began

    def note(self, text: str) -> None:
        print(f"  {text}")


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(runs=1)
    parser.add_argument("--effort", default="normal", help="quick, normal or thorough")
    options = parser.parse_args()
    config = BuildConfig.make(effort=options.effort)
    totals = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TIERWISE_HOME"] = str(Path(folder) / "home")  # nothing is known already
            watch = Stopwatch()
            began = time.perf_counter()
            out = Path(folder) / "family"
            family = build_family("bundled:smollm2", out, config, reporter=watch)
            totals.append(time.perf_counter() - began)
            tiers = describe(family)
    stages = {name: round(seconds, 1) for name, seconds in watch.seconds.items()}
    seconds = spread(totals)
    report(
        {
            "build_seconds": seconds["median"],
            "build_s": seconds,
            "stage_s": stages,  # of the last run
            "tiers": tiers,
            "config": config.model_dump(mode="json"),
        },
        options.json,
    )


def describe(family: Family) -> list[dict[str, object]]:
    out = []
    for tier in family.tiers:
        divergence, tools = tier.quality.divergence, tier.quality.tools
        assert divergence is not None and tools is not None
        out.append(
            {
                "tier": tier.name,
                "bytes": tier.bytes,
                "kl_mean": round(divergence.kl_mean, 4),
                "top1": round(divergence.top1_agreement.value, 4),
                "tools": round(tools.overall.value, 3),
            }
        )
    return out


if __name__ == "__main__":
    main()

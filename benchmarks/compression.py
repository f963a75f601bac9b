"""All figures of the compression, each from a script of its own, as one JSON document.

    build_seconds          compression_build.py       a quantization-only family of SmolLM2
    export_max_kl          compression_export.py      transformers against llama.cpp
    allocation_kld_ratio   compression_allocation.py  searched mix against llama.cpp's types
    quality_tier_*         compression_retained.py    the distilled tier nearest to the base
    fast_tier_*            compression_retained.py    the quickest tier
    case_study             examples/05_text_classification.py

python benchmarks/compression.py [--family DIR] [--only NAME...] [--json FILE] [--work DIR]

The tiers' figures need ``--family``: one that ``tierwise build --distill-minutes 60`` made. What
a script says on its way goes to stderr; with ``--work`` its own JSON is kept there.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import arguments, report, say

from tierwise import Family
from tierwise.compression.measure import call_seconds
from tierwise.runtime.family import Tier

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "build": ("benchmarks/compression_build.py",),
    "export": ("benchmarks/compression_export.py",),
    "allocation": ("benchmarks/compression_allocation.py",),
    "retained": ("benchmarks/compression_retained.py",),
    "case_study": ("examples/05_text_classification.py",),
}


def main() -> None:
    options = parse()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for part in options.only:
            arguments = [str(options.family)] if part == "retained" else []
            if part == "build":
                arguments = ["--runs", str(options.runs)]
            if part == "retained" and options.family is None:
                say("no --family: quality_tier_* and fast_tier_* are left out")
                continue
            found = run(part, arguments, work)
            if found is None:
                figures.setdefault("failed", []).append(part)
            else:
                figures |= named(part, found, options.family)
    report(figures, options.json)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(runs=3)
    parser.add_argument("--family", type=Path, help="folder of a family with distilled tiers")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--work", type=Path, help="where each script's JSON is kept")
    return parser.parse_args()


def run(part: str, arguments: list[str], work: Path) -> dict[str, Any] | None:
    """What a script wrote; None if it failed."""
    target = work / f"{part}.json"
    command = [sys.executable, *(str(ROOT / word) for word in PARTS[part]), *arguments]
    say(f"{part}: {' '.join(command)}")
    done = subprocess.run([*command, "--json", str(target)], stdout=sys.stderr, check=False)
    if done.returncode:
        say(f"{part} failed with exit code {done.returncode}")
        return None
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def named(part: str, found: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """A script's figures under the names of the table above."""
    if part == "build":
        return {"build_seconds": found["build_seconds"], "build_stage_s": found["stage_s"]}
    if part == "export":
        return {"export_max_kl": found["export_max_kl"]}
    if part == "allocation":
        return {"allocation_kld_ratio": found["allocation_kld_ratio"]}
    if part == "case_study":
        return {"case_study": found["worst"]}
    assert folder is not None
    quality, fast = chosen(Family.load(folder))
    figures: dict[str, Any] = {}
    for key, tier in (("quality_tier", quality), ("fast_tier", fast)):
        measured = found["tiers"].get(tier.name, {})
        figures[key] = tier.name
        figures[f"{key}_retained"] = measured.get("retained")
        figures[f"{key}_speedup"] = measured.get("speedup")
    return figures


def chosen(family: Family) -> tuple[Tier, Tier]:
    """The distilled tier that is nearest to the base, and the one that is quickest here."""

    def seconds(tier: Tier) -> float:
        return call_seconds(tier) or math.inf

    def divergence(tier: Tier) -> float:
        found = tier.quality.divergence
        return 0.0 if found is None else found.kl_mean

    taught = [tier for tier in family.tiers if tier.lineage.distillation is not None]
    return min(taught or family.tiers, key=divergence), min(family.tiers, key=seconds)


if __name__ == "__main__":
    main()

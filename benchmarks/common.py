"""What every benchmark shares: arguments, medians, and the JSON at the end."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tierwise.runtime.profile import machine_fingerprint
from tierwise.runtime.resources import probe


def arguments(description: str | None) -> argparse.ArgumentParser:
    """``--json FILE`` and ``--runs N``, which all benchmarks take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--runs", type=int, default=5, help="runs that each figure is a median of")
    return parser


def say(text: str) -> None:
    """Progress, kept apart from the figures."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def report(figures: dict[str, Any], target: Path | None) -> None:
    """Prints the figures, and writes them where asked."""
    machine = {"machine": machine_fingerprint(), "threads": probe().threads}
    text = json.dumps({**machine, **figures}, indent=2)
    print(text)
    if target is not None:
        target.write_text(text + "\n", encoding="utf-8")

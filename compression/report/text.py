"""Numbers as people read them. Plots, tables and model cards all write them in this one way."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tierwise.runtime.family import Estimate
from tierwise.runtime.units import show_bytes

UNKNOWN = "–"


def size_text(count: float | None) -> str:
    """Bytes: "92 MB"; `show_bytes` with kilobytes for the very small."""
    if count is None:
        return UNKNOWN
    return show_bytes(count) if count >= 10_000_000 else f"{count / 1e3:,.0f} kB"


def nats_text(value: float | None) -> str:
    """A divergence in nats, with as many digits as tell tiers apart."""
    return UNKNOWN if value is None else _finite(value, f"{value:.4f}")


def seconds_text(value: float | None) -> str:
    """Seconds of a call: "0.88"; three digits where it is quick."""
    if value is None:
        return UNKNOWN
    return _finite(value, f"{value:.2f}" if value >= 0.1 else f"{value:.3g}")


def span_text(seconds: float) -> str:
    """How long a stage took: "48 s", "13 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def rate_text(value: float | None) -> str:
    """Tokens a second, or a perplexity."""
    if value is None:
        return UNKNOWN
    return _finite(value, f"{value:,.0f}" if value >= 1000 else f"{value:.1f}")


def count_text(count: float) -> str:
    """Tokens, steps or parameters: "1,234", "12.3 k", "134.5 M"."""
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= scale * (10 if unit == "k" else 1):
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f}"


def share_text(share: float | None, digits: int = 1) -> str:
    """A share of 0..1 as "81.4%"."""
    return UNKNOWN if share is None else f"{share:.{digits}%}"


def interval_text(estimate: Estimate | None, digits: int = 0) -> str:
    """A share with its 95 % interval: "21% (12%–34%)"."""
    if estimate is None:
        return UNKNOWN
    value, low, high = (f"{x:.{digits}%}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}–{high})"


def ranges_text(numbers: Iterable[int]) -> str:
    """Layer numbers in short: "3, 12–17, 25"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def day_text(moment: str) -> str:
    """The day of an ISO 8601 time."""
    return moment.partition("T")[0]


def _finite(value: float, text: str) -> str:
    if math.isnan(value):
        return "not a number"
    return text if math.isfinite(value) else "∞"

"""What a stretch of work took in joules: measured where the machine can say, else estimated.

Measured are the processor's energy counters (Linux powercap, Documentation/power/powercap;
often readable by root alone) or, on battery, the battery's own power. Both are of the whole
machine or package: what else ran meanwhile is in them. Elsewhere the estimate is processor
seconds times an assumed power, and says so.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EnergySource = Literal["rapl", "battery", "estimated"]

SYSTEM = Path("/sys/class")

WATTS_PER_CORE = 6.0
"""Assumed of a busy core where nothing can be read: laptop packages of 15 to 28 W have four to
six cores, servers of 200 W have thirty."""


@dataclass(frozen=True, slots=True)
class Energy:
    """Of one stretch of work.

    Args:
        joules: Taken.
        source: Where the figure is from; "estimated" is none of the machine's.
    """

    joules: float
    source: EnergySource


class EnergyMeter:
    """Counts from when it is made, and again from each `lap`.

    Args:
        threads: Cores that the work keeps busy, for the estimate.
        system: Where ``powercap`` and ``power_supply`` are.
    """

    def __init__(self, *, threads: int, system: Path = SYSTEM) -> None:
        self._threads = threads
        self._zones = [zone for zone in _zones(system) if _number(zone / "energy_uj") is not None]
        self._battery = _battery(system)
        self._counts = self._counters()
        self._began = time.perf_counter()

    @property
    def source(self) -> EnergySource:
        """Where the next figure will be from."""
        if self._zones:
            return "rapl"
        return "battery" if self._battery and _power(self._battery) else "estimated"

    def lap(self) -> Energy:
        """What was taken since the last lap."""
        now, counts = time.perf_counter(), self._counters()
        seconds, self._began = now - self._began, now
        before, self._counts = self._counts, counts
        taken = [one for one in map(self._taken, self._zones, before, counts) if one is not None]
        if taken and len(taken) == len(self._zones):
            return Energy(sum(taken), "rapl")
        power = _power(self._battery) if self._battery else None
        if power:
            return Energy(power * seconds, "battery")
        return Energy(seconds * self._threads * WATTS_PER_CORE, "estimated")

    def _counters(self) -> list[int | None]:
        return [_number(zone / "energy_uj") for zone in self._zones]

    @staticmethod
    def _taken(zone: Path, before: int | None, after: int | None) -> float | None:
        """Joules between two readings; None if one failed. A counter starts again at 0 beyond its
        range."""
        if before is None or after is None:
            return None
        if after < before:
            most = _number(zone / "max_energy_range_uj")
            if most is None or most < before:
                return None
            after += most
        return (after - before) / 1e6


def _zones(system: Path) -> list[Path]:
    """The counters of whole packages: parts of them ("intel-rapl:0:1"), and that of the whole
    machine ("psys", in which they are) beside them, would count twice."""
    found = (system / "powercap").glob("intel-rapl:*")
    whole = sorted(zone for zone in found if zone.name.count(":") == 1)
    return [zone for zone in whole if _text(zone / "name") != "psys"] or whole


def _battery(system: Path) -> Path | None:
    for supply in sorted((system / "power_supply").glob("*")):
        if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging":
            return supply
    return None


def _power(battery: Path) -> float | None:
    """Watts that leave the battery now."""
    if (power := _number(battery / "power_now")) is not None:
        return abs(power) / 1e6  # the sign is the driver's choice, as of the current
    current, voltage = _number(battery / "current_now"), _number(battery / "voltage_now")
    return None if current is None or voltage is None else abs(current) / 1e6 * voltage / 1e6


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None

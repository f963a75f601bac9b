"""Joules from counters, from the battery, or estimated and called so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tierwise.runtime.energy import WATTS_PER_CORE, EnergyMeter


def zone(system: Path, name: str, joules: float, *, most: float = 1000.0) -> Path:
    folder = system / "powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    (folder / "max_energy_range_uj").write_text(f"{most * 1e6:.0f}\n")
    return folder


def battery(system: Path, status: str, **values: int) -> None:
    folder = system / "power_supply" / "BAT0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type").write_text("Battery\n")
    (folder / "status").write_text(f"{status}\n")
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        zone(tmp_path, name, 10.0)
    meter = EnergyMeter(threads=2, system=tmp_path)
    zone(tmp_path, "intel-rapl:0", 14.0)
    zone(tmp_path, "intel-rapl:1", 11.5)
    zone(tmp_path, "intel-rapl:0:0", 500.0)
    found = meter.lap()
    assert (found.joules, found.source) == (pytest.approx(5.5), "rapl")
    assert meter.lap().joules == 0.0


def test_a_counter_that_started_again_is_read_on(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 998.0)
    meter = EnergyMeter(threads=2, system=tmp_path)
    zone(tmp_path, "intel-rapl:0", 3.0)
    assert meter.lap().joules == pytest.approx(5.0)


def test_the_whole_machine_is_not_added_to_its_packages(tmp_path: Path) -> None:
    names = {"intel-rapl:0": "package-0", "intel-rapl:1": "psys"}
    for folder, name in names.items():
        (zone(tmp_path, folder, 10.0) / "name").write_text(f"{name}\n")
    meter = EnergyMeter(threads=2, system=tmp_path)
    zone(tmp_path, "intel-rapl:0", 14.0)
    zone(tmp_path, "intel-rapl:1", 30.0)
    assert meter.lap().joules == pytest.approx(4.0)


def test_a_reading_that_fails_is_no_counter_that_started_again(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", 600.0)
    meter = EnergyMeter(threads=1, system=tmp_path)
    (folder / "energy_uj").unlink()
    lost = meter.lap()
    zone(tmp_path, "intel-rapl:0", 601.0)
    back = meter.lap()
    zone(tmp_path, "intel-rapl:0", 603.0)
    assert lost.source == back.source == "estimated" and lost.joules + back.joules < 100
    assert (meter.lap().joules, meter.source) == (pytest.approx(2.0), "rapl")
    zone(tmp_path, "intel-rapl:0", 1.0)
    (folder / "max_energy_range_uj").unlink()
    assert meter.lap().source == "estimated"


@pytest.mark.parametrize(
    "values",
    [
        {"power_now": 12_000_000},
        {"power_now": -12_000_000},
        {"current_now": -1_000_000, "voltage_now": 12_000_000},
    ],
)
def test_on_battery_its_power_is_taken(tmp_path: Path, values: dict[str, int]) -> None:
    battery(tmp_path, "Discharging", **values)
    began = time.perf_counter()
    meter = EnergyMeter(threads=2, system=tmp_path)
    time.sleep(0.05)
    found = meter.lap()
    assert found.source == "battery"
    assert 0.05 * 12 <= found.joules <= 12 * (time.perf_counter() - began)


def test_elsewhere_it_is_estimated_and_says_so(tmp_path: Path) -> None:
    battery(tmp_path, "Charging", power_now=5_000_000)
    meter = EnergyMeter(threads=3, system=tmp_path)
    time.sleep(0.02)
    found = meter.lap()
    assert found.source == meter.source == "estimated"
    assert found.joules >= 0.02 * 3 * WATTS_PER_CORE


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", 1.0)
    (folder / "energy_uj").unlink()
    assert EnergyMeter(threads=1, system=tmp_path).lap().source == "estimated"

"""What this machine can spare now: memory, processor, battery, GPU.

Inside a container the machine's own numbers mislead, so control groups and resource limits
count too. Sources: Linux ``Documentation/admin-guide/cgroup-v2.rst`` ("Memory Interface
Files", "CPU Interface Files"), ``cgroup-v1/memory.rst``, ``accounting/psi.rst`` and
``proc_pid_status(5)``. Where a file is absent (macOS, Windows, no cgroups) it sets no limit.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import psutil

from tierwise.runtime.cpu_load import others_load

if sys.platform != "win32":
    import resource

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

_NO_LIMIT = 1 << 62
"""cgroup v1 writes "no limit" as the largest multiple of a page below 2**63."""

_GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU: has memory of its own (or Metal's share of it)


@dataclass(frozen=True, slots=True)
class Resources:
    """A snapshot.

    Args:
        available_bytes: Memory that this process may still take without pushing anything out
            but page cache that nobody has mapped. Files that this process itself has mapped
            (the weights of loaded tiers) count as taken.
        total_bytes: Of the machine or, where smaller, of the container.
        threads: Cores that llama.cpp can really use: physical, allowed and paid for.
        memory_pressure: Share (0..1) of the last 10 s in which some task waited for memory;
            None where the kernel does not say.
        cpu_load: Share (0..1) of the machine's logical cores that ran or were wanted over the
            last minute; None where the system does not say.
        others_load: Share (0..1) of the logical cores that this process may use which other
            processes kept busy since the last snapshot; None at the first.
        logical_cores: That this process may use.
        battery: Charge (0..1); None without a battery.
        on_battery: Whether the battery is what the machine runs on.
        gpu_free_bytes: Free memory of all GPUs that this llama.cpp can use; 0 without one.
        gpu_total_bytes: All their memory; 0 without one.
    """

    available_bytes: int
    total_bytes: int
    threads: int
    memory_pressure: float | None = None
    cpu_load: float | None = None
    battery: float | None = None
    on_battery: bool = False
    gpu_free_bytes: int = 0
    gpu_total_bytes: int = 0
    others_load: float | None = None
    logical_cores: int = 1


class ResourceProbe(Protocol):
    """Anything that says what can be spared now. `probe` asks this machine."""

    def __call__(self) -> Resources: ...


def probe(*, root: Path = CGROUPS, proc: Path = PROC) -> Resources:
    """What this machine can spare now; about 0.2 ms (the first call loads llama.cpp's library).

    Args:
        root: Where the control groups are mounted.
        proc: Where ``self/cgroup``, ``self/status`` and ``pressure/memory`` are.
    """
    groups = _control_groups(root, proc)
    status = _numbers(proc / "self" / "status", unit=1024)
    memory = psutil.virtual_memory()
    limits = list(_memory_limits(groups))
    cached = min([memory.available, *(spare for _, spare in limits)]) - status.get("RssFile", 0)
    battery, on_battery = _battery()
    gpus = _gpu_memory()
    return Resources(
        available_bytes=max(0, min([cached, *_rlimits_left(status)])),
        total_bytes=min([memory.total, *(limit for limit, _ in limits)]),
        threads=_usable_cores(groups),
        memory_pressure=_memory_pressure(groups, proc),
        cpu_load=_cpu_load(),
        battery=battery,
        on_battery=on_battery,
        gpu_free_bytes=sum(free for free, _ in gpus),
        gpu_total_bytes=sum(total for _, total in gpus),
        others_load=others_load(),
        logical_cores=_allowed_cores(),
    )


@dataclass(frozen=True, slots=True)
class _Groups:
    """Folders of the groups that this process is in, the innermost first, the root last."""

    unified: tuple[Path, ...]
    memory_v1: tuple[Path, ...]
    cpu_v1: tuple[Path, ...]


def _control_groups(root: Path, proc: Path) -> _Groups:
    """The groups that ``/proc/self/cgroup`` names now."""
    return _groups_named(_text(proc / "self" / "cgroup"), root)


@lru_cache(maxsize=8)
def _groups_named(lines: str, root: Path) -> _Groups:
    """``lines`` are "0::/path" (v2) and "4:cpu,cpuacct:/path" (v1)."""
    unified: tuple[Path, ...] = ()
    found: dict[str, tuple[Path, ...]] = {}
    for line in lines.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            hybrid = root / "unified"  # systemd's mount beside the v1 controllers
            unified = _with_parents(hybrid if hybrid.is_dir() else root, path)
            continue
        for name in controllers.split(","):
            joint = root / controllers
            found[name] = _with_parents(joint if joint.is_dir() else root / name, path)
    return _Groups(unified, found.get("memory", ()), found.get("cpu", ()))


def _with_parents(mount: Path, path: str) -> tuple[Path, ...]:
    """Any ancestor may limit. In a container whose mount is its own group, only the root is."""
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        return (mount,)
    folders = (mount.joinpath(*parts[:depth]) for depth in range(len(parts), 0, -1))
    return (*(folder for folder in folders if folder.is_dir()), mount)


def _memory_limits(groups: _Groups) -> Iterator[tuple[int, int]]:
    """(limit, bytes still spare under it) for each group that has a limit.

    Clean and dirty file pages can be given back, so they count as spare. ``memory.high`` counts
    as a limit: above it the kernel slows the group down until it gives memory back.
    """
    for group in groups.unified:
        bounds = [_number(group / name) for name in ("memory.max", "memory.high")]
        limit = min((bound for bound in bounds if bound is not None), default=None)
        if limit is not None:
            yield limit, limit - _used(group, "memory.current", "")
    for group in groups.memory_v1:
        limit = _number(group / "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT:
            yield limit, limit - _used(group, "memory.usage_in_bytes", "total_")


def _used(group: Path, usage: str, prefix: str) -> int:
    stat = _numbers(group / "memory.stat")
    pages = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(0, (_number(group / usage) or 0) - pages)


def _rlimits_left(status: dict[str, int]) -> Iterator[int]:
    """What ``ulimit -v`` (address space) and ``ulimit -d`` (private memory) leave, in bytes."""
    if sys.platform == "win32":
        return
    for kind, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY and taken in status:
            yield soft - status[taken]


def _usable_cores(groups: _Groups) -> int:
    """Physical cores, cut to the affinity mask and to whole cores of the groups' CPU quota.

    llama.cpp's threads wait for each other at every operation, so a second thread on a core,
    or one that the quota stops, slows all of them down.
    """
    cores = [_physical_cores(), _allowed_cores()]
    for group in groups.unified:
        quota, _, period = _text(group / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            cores.append(int(quota) // int(period))
    for group in groups.cpu_v1:
        share, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if share is not None and share > 0 and period_us:
            cores.append(share // period_us)
    return max(1, min(cores))


def _allowed_cores() -> int:
    """Logical ones, by the affinity mask."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _physical_cores() -> int:
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _memory_pressure(groups: _Groups, proc: Path) -> float | None:
    """The worse of the group's own and the machine's "some avg10" (pressure stall information)."""
    files = [group / "memory.pressure" for group in groups.unified[:1]]
    shares = []
    for file in (*files, proc / "pressure" / "memory"):
        first, _, _ = _text(file).partition("\n")
        for field in first.split():
            if first.startswith("some") and field.startswith("avg10="):
                shares.append(float(field.removeprefix("avg10=")) / 100)
    return max(shares, default=None)


def _cpu_load() -> float | None:
    """The load average counts the whole machine's tasks, so it is shared over all its cores."""
    if sys.platform == "win32":
        return None
    return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _battery() -> tuple[float | None, bool]:
    sensor = getattr(psutil, "sensors_battery", None)  # absent on some systems
    state = None
    with suppress(OSError):  # Linux without /sys/class/power_supply
        state = sensor() if sensor else None
    if state is None:
        return None, False
    return float(state.percent) / 100, state.power_plugged is False


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this llama.cpp can use, by their drivers' names."""
    ggml, devices = _gpus()
    names = (ggml.ggml_backend_dev_description(device) for device in devices)
    return tuple(name.decode("utf-8", errors="replace") for name in names)


def _gpu_memory() -> list[tuple[int, int]]:
    """(free, total) bytes of each GPU."""
    ggml, devices = _gpus()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    found = []
    for device in devices:
        ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append((free.value, total.value))
    return found


@lru_cache(maxsize=1)
def _gpus() -> tuple[Any, tuple[int, ...]]:
    """ggml's library and its GPU devices; none where the library is too old to list devices."""
    from llama_cpp import _ggml
    from llama_cpp._ctypes_extensions import load_shared_library

    try:
        # Windows finds a symbol only in the very library that defines it.
        base = load_shared_library("ggml-base", _ggml.libggml_base_path)
        count, get = _ggml.libggml.ggml_backend_dev_count, _ggml.libggml.ggml_backend_dev_get
        kind, memory = base.ggml_backend_dev_type, base.ggml_backend_dev_memory
        describe = base.ggml_backend_dev_description
    except (AttributeError, FileNotFoundError):
        return None, ()
    pointer, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
    count.argtypes, count.restype = [], ctypes.c_size_t
    get.argtypes, get.restype = [ctypes.c_size_t], pointer
    kind.argtypes, kind.restype = [pointer], ctypes.c_int
    memory.argtypes, memory.restype = [pointer, size, size], None
    describe.argtypes, describe.restype = [pointer], ctypes.c_char_p
    devices = [get(index) for index in range(count())]
    return base, tuple(device for device in devices if kind(device) == _GPU)


def _text(path: Path) -> str:
    """The file's text, "" where there is none (or where it may not be read)."""
    try:
        with path.open("rb", buffering=0) as file:  # half the time of Path.read_text
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """The file's one integer; None where it is absent or says "max"."""
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _numbers(path: Path, unit: int = 1) -> dict[str, int]:
    """Lines "key 123" or "Key:  123 kB" as integers times ``unit``."""
    out: dict[str, int] = {}
    for line in _text(path).splitlines():
        fields = line.split()
        if len(fields) > 1 and fields[1].isdigit():
            out[fields[0].rstrip(":")] = int(fields[1]) * unit
    return out

"""The probe reads control groups as the kernel writes them: the trees here are real folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tierwise.runtime.resources import Resources, gpu_names, probe

MIB = 2**20


def write(folder: Path, **files: str | int) -> Path:
    """Writes files; ``__`` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A process without groups that has mapped nothing."""
    write(tmp_path / "proc" / "self", cgroup="", status="VmSize:\t 100 kB\nRssFile:\t 0 kB")
    return tmp_path / "proc"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "cgroup")


def test_this_machine() -> None:
    found = probe()
    assert 0 < found.available_bytes <= found.total_bytes <= psutil.virtual_memory().total
    assert 1 <= found.threads <= (os.cpu_count() or 1)
    for share in (found.memory_pressure, found.cpu_load, found.battery):
        assert share is None or 0 <= share <= 1
    assert found.gpu_free_bytes <= found.gpu_total_bytes
    assert bool(gpu_names()) == bool(found.gpu_total_bytes)


def test_a_probe_is_quick() -> None:
    probe()  # loads llama.cpp's library and counts the cores
    timings = []
    for _ in range(20):
        began = time.thread_time()
        probe()
        timings.append(time.thread_time() - began)
    assert min(timings) < 2e-3


def test_a_process_that_is_moved_is_seen_in_its_new_group(root: Path, proc: Path) -> None:
    for group, limit in (("one", 300), ("two", 200), ("one", 100)):
        write(root / group, memory__max=limit * MIB, memory__current=0, memory__stat="")
        write(proc / "self", cgroup=f"0::/{group}")
        assert probe(root=root, proc=proc).total_bytes == limit * MIB


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    found = probe(root=tmp_path / "absent", proc=tmp_path / "absent")
    assert found.total_bytes == psutil.virtual_memory().total
    assert found.available_bytes > 0
    assert found.memory_pressure is None


def test_v2_file_pages_can_be_given_back(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="0::/app")
    write(
        root / "app",
        memory__max=400 * MIB,
        memory__high="max",
        memory__current=300 * MIB,
        memory__stat=f"anon {150 * MIB}\ninactive_file {100 * MIB}\nactive_file {50 * MIB}",
    )
    found = probe(root=root, proc=proc)
    assert found.total_bytes == 400 * MIB
    assert found.available_bytes == (400 - 150) * MIB


def test_files_that_this_process_has_mapped_are_taken(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="0::/app", status=f"RssFile:\t {30 * 1024} kB")
    write(root / "app", memory__max=400 * MIB, memory__current=0, memory__stat="")
    assert probe(root=root, proc=proc).available_bytes == 370 * MIB


def test_v2_any_ancestor_may_limit(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="0::/outer/middle/inner")
    write(root / "outer", memory__max=200 * MIB, memory__current=80 * MIB, memory__stat="")
    write(root / "outer" / "middle", memory__max="max", memory__high=150 * MIB)
    write(root / "outer" / "middle", memory__current=10 * MIB, memory__stat="")
    write(root / "outer" / "middle" / "inner", memory__max=500 * MIB, memory__current=0)
    found = probe(root=root, proc=proc)
    assert found.total_bytes == 150 * MIB
    assert found.available_bytes == 120 * MIB  # outer's 200 - 80


def test_v2_a_container_sees_its_group_as_the_root(root: Path, proc: Path) -> None:
    for path in ("/", "/../..", "/docker/0123abcd"):
        write(proc / "self", cgroup=f"0::{path}")
        write(root, memory__max=100 * MIB, memory__current=40 * MIB, memory__stat="")
        assert probe(root=root, proc=proc).available_bytes == 60 * MIB


def test_a_group_over_its_limit_has_nothing_to_spare(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="0::/")
    write(root, memory__max=100 * MIB, memory__current=120 * MIB, memory__stat="")
    assert probe(root=root, proc=proc).available_bytes == 0


def test_v1_limits(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="5:cpu,cpuacct:/app\n4:memory:/app/worker\n1:name=systemd:/")
    write(root / "memory" / "app", memory__limit_in_bytes=9223372036854771712)
    write(
        root / "memory" / "app" / "worker",
        memory__limit_in_bytes=256 * MIB,
        memory__usage_in_bytes=200 * MIB,
        memory__stat=f"inactive_file 0\ntotal_inactive_file {40 * MIB}\ntotal_active_file 0",
    )
    write(root / "cpu,cpuacct" / "app", cpu__cfs_quota_us=100_000, cpu__cfs_period_us=100_000)
    found = probe(root=root, proc=proc)
    assert found.total_bytes == 256 * MIB
    assert found.available_bytes == 96 * MIB
    assert found.threads == 1


def test_v1_without_limits(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="5:cpu:/\n4:memory:/")
    write(root / "memory", memory__limit_in_bytes=9223372036854771712)
    write(root / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    found = probe(root=root, proc=proc)
    assert found.total_bytes == psutil.virtual_memory().total
    assert found.threads == probe().threads


@pytest.mark.parametrize(
    ("quota", "threads"), [("50000 100000", 1), ("199999 100000", 1), ("max 100000", None)]
)
def test_v2_cpu_quota_counts_whole_cores(
    root: Path, proc: Path, quota: str, threads: int | None
) -> None:
    write(proc / "self", cgroup="0::/outer/inner")
    write(root / "outer", cpu__max=quota)
    write(root / "outer" / "inner", cpu__max="max 100000")
    expected = min(threads or probe().threads, probe().threads)
    assert probe(root=root, proc=proc).threads == expected


def test_hybrid_hierarchy(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="4:memory:/\n0::/app")
    write(root / "memory", memory__limit_in_bytes=90 * MIB, memory__usage_in_bytes=0)
    write(root / "unified" / "app", memory__pressure="some avg10=12.50 avg60=0.00")
    found = probe(root=root, proc=proc)
    assert found.available_bytes == 90 * MIB
    assert found.memory_pressure == 0.125


def test_memory_pressure_is_the_worse_of_group_and_machine(root: Path, proc: Path) -> None:
    write(proc / "self", cgroup="0::/")
    some = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10=99.00 avg60=0.00"
    write(proc / "pressure", memory=some.format("3.00"))
    assert probe(root=root, proc=proc).memory_pressure == pytest.approx(0.03)
    write(root, memory__pressure=some.format("40.00"))
    assert probe(root=root, proc=proc).memory_pressure == pytest.approx(0.4)


def in_child(setup: str) -> Resources:
    """What a process of its own finds after ``setup``, so that no limit outlives a test."""
    code = (
        "import dataclasses, json, os, resource\n"
        "from tierwise.runtime.resources import probe\n"
        f"probe()\n{setup}\n"
        "print(json.dumps(dataclasses.asdict(probe())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return Resources(**json.loads(done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="limits and affinity as Linux has them")
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_ulimits_count(kind: str) -> None:
    found = in_child(f"resource.setrlimit(resource.{kind}, (2 << 30, 2 << 30))")
    assert 0 < found.available_bytes < 2 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="limits and affinity as Linux has them")
def test_affinity_counts() -> None:
    found = in_child("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})")
    assert found.threads == 1

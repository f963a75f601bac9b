"""A tier's speed and memory on one machine: measured, or estimated until it is.

Profiles are kept apart from families, in ``home()/profiles/<machine>/<tier sha256>.json``,
because a family travels and speed does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from pydantic import Field

from tierwise.runtime.family import Family, Tier
from tierwise.runtime.files import home, write_atomically
from tierwise.runtime.record import Record
from tierwise.runtime.resources import gpu_names, probe

# What an unknown machine is taken for until a tier was measured on it: half of what two cores
# of a 2024 server gave SmolLM2-135M (Q8_0: 95 tokens/s decode, 360 tokens/s prefill).
ASSUMED_BYTES_PER_S = 7e9
"""Decode reads every weight once per token, so memory bandwidth bounds it."""
ASSUMED_OPERATIONS_PER_S = 25e9
"""Per thread. Prefill takes 2 operations per weight and token (arXiv:2001.08361, §2.1)."""
ASSUMED_LOAD_BYTES_PER_S = 1e9
ASSUMED_LOAD_S = 0.2
"""Vocabulary and buffers, whatever the size of the weights."""
ASSUMED_CONTEXT_TOKENS = 2048


class KVSpeed(Record):
    """Speed with a KV cache of another type, as a multiple of that with f16."""

    prefill: float = Field(gt=0, allow_inf_nan=False)
    decode: float = Field(gt=0, allow_inf_nan=False)


class Profile(Record):
    """One tier on one machine.

    Args:
        tier_sha256: Of the tier's GGUF file.
        machine: `machine_fingerprint` of where it holds.
        threads: That llama.cpp used.
        prefill_tokens_per_s: Prompt tokens, in batches of 512.
        decode_tokens_per_s: Reply tokens, one by one, without a grammar.
        load_s: Seconds to load the file when the page cache holds it.
        resident_bytes: What the process grew by when the tier was loaded and had answered.
        context_tokens: Size of the KV cache that is part of ``resident_bytes``.
        measured_at: ISO 8601 time in UTC (of the estimate, where it is one).
        runs: Measurements that each number is the median of; 0 for an estimate.
        estimated: Whether this was reckoned from another tier or from rough constants.
        step_s: Seconds of a decode step with so many tokens of one sequence, the logits of all
            being read: what it costs to check drafts.
        sequences_s: Seconds of a decode step with one token of each of so many sequences.
        kv_q8_0: Speed with a KV cache of q8_0; None if the model cannot have one.
        drafting: What drafts gained on replies that copy from their prompts (seconds without,
            divided by seconds with them), by what made them: "prompt_lookup", or the sha256 of a
            smaller tier.

    Steps are measured behind a prompt of 512 tokens. Estimates, and profiles that were made
    before these were measured, have none.
    """

    tier_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    machine: str = Field(pattern=r"^[0-9a-f]{16}$")
    threads: int = Field(gt=0)
    prefill_tokens_per_s: float = Field(gt=0, allow_inf_nan=False)
    decode_tokens_per_s: float = Field(gt=0, allow_inf_nan=False)
    load_s: float = Field(ge=0, allow_inf_nan=False)
    resident_bytes: int = Field(ge=0)
    context_tokens: int = Field(gt=0)
    measured_at: str
    runs: int = Field(ge=0)
    estimated: bool = False
    step_s: dict[int, float] = Field(default={})
    sequences_s: dict[int, float] = Field(default={})
    kv_q8_0: KVSpeed | None = None
    drafting: dict[str, float] = Field(default={})

    def seconds(self, new_tokens: int, reply_tokens: float, *, cold: bool) -> float:
        """How long a call should take.

        Args:
            new_tokens: Of the prompt, those that the tier has not cached.
            reply_tokens: Expected length of the reply.
            cold: Whether the tier must be loaded first.
        """
        load = self.load_s if cold else 0.0
        prefill = new_tokens / self.prefill_tokens_per_s
        return load + prefill + reply_tokens / self.decode_tokens_per_s


@lru_cache(maxsize=1)
def machine_fingerprint() -> str:
    """16 hex digits that change when speed may: processor, cores, memory, GPUs, llama.cpp, and
    how the engine uses them."""
    resources = probe()
    facts = {
        "cpu": _cpu_name(),
        "threads": resources.threads,
        "memory_gib": round(resources.total_bytes / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "llama_cpp": version("llama-cpp-python"),
        "gpus": gpu_names(),
        "engine": 2,  # cells apart, plain attention
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _cpu_name() -> str:
    """The processor's name, or what the system says that comes nearest."""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "linux":
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
            # ARM has no model name, but numbers of implementer, part and revision.
            names = ("model name", "CPU implementer", "CPU part", "CPU revision")
            lines = dict.fromkeys(line for line in text.splitlines() if line.startswith(names))
            return "; ".join(" ".join(line.split()) for line in lines) or platform.machine()
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def save_profile(profile: Profile) -> Path:
    """Keeps a profile for `load_profile`; replaces an older one. Returns where.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = _place(profile.machine, profile.tier_sha256)
    write_atomically(path, profile.model_dump_json(indent=2) + "\n")
    return path


def load_profile(tier_sha256: str) -> Profile | None:
    """The tier's profile on this machine; None where it has none that can be read."""
    machine = machine_fingerprint()
    try:
        text = _place(machine, tier_sha256).read_text(encoding="utf-8")
        profile = Profile.model_validate_json(text)
    except (OSError, ValueError):  # pydantic's and Unicode's errors are ValueErrors
        return None
    # A file that was copied or renamed says nothing about this tier here.
    return profile if (profile.machine, profile.tier_sha256) == (machine, tier_sha256) else None


def _place(machine: str, tier_sha256: str) -> Path:
    return home() / "profiles" / machine / f"{tier_sha256}.json"


def family_profiles(family: Family) -> dict[str, Profile]:
    """A profile for every tier by name: measured where there is one, else estimated."""
    found = ((tier, load_profile(tier.sha256)) for tier in family.tiers)
    measured = {tier.name: (tier, profile) for tier, profile in found if profile is not None}
    return {
        tier.name: measured[tier.name][1]
        if tier.name in measured
        else estimated_profile(tier, measured.values())
        for tier in family.tiers
    }


def estimated_profile(tier: Tier, measured: Iterable[tuple[Tier, Profile]] = ()) -> Profile:
    """What a tier that was never measured on this machine will do, roughly.

    Scales from the tier of ``measured`` that is most alike (of the same quantization if there
    is one, then the nearest in size): decode by bytes, prefill by parameters, load and
    resident memory by bytes. Without any, the constants of this module apply. Expect a factor
    of 2 between quantizations (Q8_0 prefills at twice the speed of Q4_1 where the processor
    has fast 8-bit dot products); measuring takes seconds.
    """

    def unlike(known: tuple[Tier, Profile]) -> tuple[bool, float]:
        other = known[0]
        return (
            other.lineage.quantization != tier.lineage.quantization,
            abs(math.log(other.bytes / tier.bytes)),
        )

    nearest = min(measured, key=unlike, default=None)
    if nearest is None:
        return _assumed_profile(tier)
    other, profile = nearest
    size = tier.bytes / other.bytes
    work = tier.parameters / other.parameters
    kv_bytes = (tier.kv_bytes_per_token - other.kv_bytes_per_token) * profile.context_tokens
    grown = tier.bytes - other.bytes + kv_bytes
    return profile.model_copy(
        update={
            "tier_sha256": tier.sha256,
            "prefill_tokens_per_s": profile.prefill_tokens_per_s / work,
            "decode_tokens_per_s": profile.decode_tokens_per_s / size,
            "load_s": profile.load_s * size,
            "resident_bytes": max(0, profile.resident_bytes + grown),
            "measured_at": utc_now(),
            "runs": 0,
            "estimated": True,
            "step_s": {},
            "sequences_s": {},
            "kv_q8_0": None,
            "drafting": {},
        }
    )


def _assumed_profile(tier: Tier) -> Profile:
    threads = probe().threads
    context = min(ASSUMED_CONTEXT_TOKENS, tier.context_tokens)
    return Profile(
        tier_sha256=tier.sha256,
        machine=machine_fingerprint(),
        threads=threads,
        prefill_tokens_per_s=threads * ASSUMED_OPERATIONS_PER_S / (2 * tier.parameters),
        decode_tokens_per_s=ASSUMED_BYTES_PER_S / tier.bytes,
        load_s=ASSUMED_LOAD_S + tier.bytes / ASSUMED_LOAD_BYTES_PER_S,
        resident_bytes=tier.bytes + context * tier.kv_bytes_per_token,
        context_tokens=context,
        measured_at=utc_now(),
        runs=0,
        estimated=True,
    )


def utc_now() -> str:
    """The time in UTC to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

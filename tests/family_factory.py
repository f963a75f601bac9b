"""A family on disk from GGUF files and made-up measurements.

The files, their sizes and hashes are real, and so is what the models themselves say (layers,
context, KV bytes). Quality and speed are data: a test gives the numbers that it needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierwise.evaluation.tasks import SUITE_NAME, wilson_interval
from tierwise.runtime.family import Base, Divergence, Family, Quality, SuiteResult, Tier
from tierwise.runtime.files import sha256_of
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.llama import Model
from tierwise.runtime.profile import Profile, machine_fingerprint, save_profile

MEASURED_AT = "2025-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class TierSpec:
    """One tier to be: a GGUF file, and what was supposedly measured of it.

    Args:
        name: Of the tier; its file will be called so too.
        file: A GGUF file anywhere; it is copied.
        kl: Mean divergence from the base in nats; None for an adopted tier, never compared.
        success: Share of tasks solved by grade; None for none measured.
        n: Tasks behind each of these shares.
        prefill: Tokens/s.
        decode: Tokens/s.
        load_s: Seconds to load.
        demonstration_tokens: As of `Tier`.
    """

    name: str
    file: Path
    kl: float | None = 0.0
    success: Mapping[str, float] | None = None
    n: int = 16
    prefill: float = 1000.0
    decode: float = 100.0
    load_s: float = 0.1
    demonstration_tokens: int | None = None


def make_family(folder: Path, specs: Sequence[TierSpec]) -> Family:
    """Copies the files, writes family.json, saves a profile of each tier, and loads the family.

    Profiles go to ``TIERWISE_HOME``, so a family made by a session fixture has none in a test's
    own home: hand `make_profile` to the router there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tiers = tuple(_tier(folder, spec) for spec in specs)
    best = tiers[-1]
    base = Base(
        name="base",
        source="tests",
        sha256=best.sha256,
        architecture="llama",
        parameters=best.parameters,
        layers=best.layers,
        context_tokens=best.context_tokens,
        vocab_size=300,
        tokenizer_sha256="0" * 64,
    )
    Family(created=MEASURED_AT, tierwise="0", base=base, tiers=tiers).save(folder)
    for spec, tier in zip(specs, tiers, strict=True):
        save_profile(make_profile(spec, tier))
    return Family.load(folder)


def make_profile(spec: TierSpec, tier: Tier) -> Profile:
    """The profile of a tier on this machine."""
    return Profile(
        tier_sha256=tier.sha256,
        machine=machine_fingerprint(),
        threads=1,
        prefill_tokens_per_s=spec.prefill,
        decode_tokens_per_s=spec.decode,
        load_s=spec.load_s,
        resident_bytes=tier.bytes,
        context_tokens=tier.context_tokens,
        measured_at=MEASURED_AT,
        runs=3,
    )


def make_quality(
    kl: float | None, success: Mapping[str, float] | None = None, n: int = 16
) -> Quality:
    """Measurements with these results; None for what was not measured."""
    divergence = None
    if kl is not None:
        divergence = Divergence(
            tokens=4096,
            kl_mean=kl,
            kl_p999=10 * kl,
            top1_agreement=wilson_interval(90, 100),
            perplexity=10.0,
            base_perplexity=10.0,
        )
    tools = None
    if success is not None:
        right = {grade: round(share * n) for grade, share in success.items()}
        tools = SuiteResult(
            suite=SUITE_NAME,
            seed=0,
            overall=wilson_interval(sum(right.values()), n * len(right)),
            by_grade={grade: wilson_interval(count, n) for grade, count in right.items()},
            by_kind={},
        )
    return Quality(divergence=divergence, tools=tools)


def described_family(*tiers: tuple[str, int, Quality]) -> Family:
    """Of (name, bytes, quality); nothing here opens a file."""
    zeros = "0" * 64
    base = Base(
        name="b",
        source="tests",
        sha256=zeros,
        architecture="llama",
        parameters=1,
        layers=1,
        context_tokens=1,
        vocab_size=1,
        tokenizer_sha256=zeros,
    )
    made = [
        Tier(
            name=name,
            file=f"{name}.gguf",
            sha256=zeros,
            bytes=size,
            parameters=1,
            layers=1,
            context_tokens=1,
            kv_bytes_per_token=1,
            lineage=Lineage(origin="built", quantization="F16"),
            quality=quality,
        )
        for name, size, quality in tiers
    ]
    return Family(created="now", tierwise="0", base=base, tiers=tuple(made))


def _tier(folder: Path, spec: TierSpec) -> Tier:
    path = folder / f"{spec.name}.gguf"
    shutil.copyfile(spec.file, path)
    with Model(path, no_alloc=True) as model:
        return Tier(
            name=spec.name,
            file=path.name,
            sha256=sha256_of(path),
            bytes=path.stat().st_size,
            parameters=model.parameters,
            layers=model.layers,
            context_tokens=model.context_tokens,
            kv_bytes_per_token=model.kv_bytes_per_token,
            demonstration_tokens=spec.demonstration_tokens,
            lineage=Lineage(origin="adopted" if spec.kl is None else "built", quantization="F16"),
            quality=make_quality(spec.kl, spec.success, spec.n),
        )

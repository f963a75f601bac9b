"""When a KV cache of q8_0 is worth it."""

from __future__ import annotations

from typing import Any

import pytest

from tierwise.compression.precision.kv import KVAdvice, advise_kv
from tierwise.evaluation.tasks import wilson_interval
from tierwise.runtime.family import Divergence, Quality, Tier
from tierwise.runtime.lineage import Lineage
from tierwise.runtime.profile import KVSpeed, Profile, machine_fingerprint, utc_now

CONTEXT = 8192


def divergence(kl: float) -> Divergence:
    return Divergence(
        tokens=1000,
        kl_mean=kl,
        kl_p999=10 * kl,
        top1_agreement=wilson_interval(950, 1000),
        perplexity=10.0,
        base_perplexity=10.0,
    )


def tier(*, kv_kl: float | None = 0.004, kl: float = 0.01, kv_bytes: int = 23_040) -> Tier:
    """Like SmolLM2-135M in Q4_1."""
    return Tier(
        name="some",
        file="some.gguf",
        sha256="0" * 64,
        bytes=98_000_000,
        parameters=134_500_000,
        layers=30,
        context_tokens=CONTEXT,
        kv_bytes_per_token=kv_bytes,
        lineage=Lineage(origin="built", quantization="Q4_1"),
        quality=Quality(
            divergence=divergence(kl), kv_q8_0=None if kv_kl is None else divergence(kv_kl)
        ),
    )


def profile(*, prefill: float = 1.0, decode: float = 1.0) -> Profile:
    return Profile(
        tier_sha256="0" * 64,
        machine=machine_fingerprint(),
        threads=2,
        prefill_tokens_per_s=400.0,
        decode_tokens_per_s=90.0,
        load_s=0.1,
        resident_bytes=200_000_000,
        context_tokens=2048,
        measured_at=utc_now(),
        runs=3,
        kv_q8_0=KVSpeed(prefill=prefill, decode=decode),
    )


def advice(tier: Tier, profile: Profile | None = None, **options: Any) -> KVAdvice:
    return advise_kv(tier, profile, context_tokens=options.pop("context", CONTEXT), **options)


def test_it_is_worth_it_where_it_saves_memory_at_little_loss() -> None:
    found = advice(tier(), profile())
    assert found.kv_type == "q8_0"
    assert found.saved_bytes == round(23_040 * CONTEXT * 7.5 / 16)
    assert found.reason == "it saves 31% of weights and cache for 0.0040 nats a token"


@pytest.mark.parametrize(
    ("some", "options", "reason"),
    [
        (tier(kv_kl=None), {}, "not measured"),
        (tier(kv_kl=0.02), {}, "would cost 0.020 nats"),
        (tier(kv_bytes=100), {}, "save only 0%"),
        (tier(), {"context": 256}, "save only 3%"),
        (tier(), {"profile": profile(decode=0.5)}, "times as long"),
        (tier(), {"profile": profile(prefill=0.6, decode=0.9)}, "times as long"),
    ],
)
def test_where_it_is_not(some: Tier, options: dict[str, Any], reason: str) -> None:
    found = advice(some, options.pop("profile", None), **options)
    assert found.kv_type == "f16" and reason in found.reason


def test_a_tier_that_is_far_off_anyway_may_lose_more() -> None:
    assert advice(tier(kv_kl=0.02, kl=0.2)).kv_type == "q8_0"


def test_what_fits_only_with_q8_0_may_be_slower() -> None:
    slow = profile(decode=0.5)
    limit = 98_000_000 + 23_040 * CONTEXT - 1
    assert advice(tier(), slow, max_bytes=limit).kv_type == "q8_0"
    assert advice(tier(), slow, max_bytes=limit + 1).kv_type == "f16"
    assert advice(tier(), slow, max_bytes=limit // 2).kv_type == "f16"  # nothing fits

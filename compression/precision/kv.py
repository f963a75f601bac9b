"""Whether a tier's KV cache is better kept as q8_0 than as f16."""

from __future__ import annotations

from dataclasses import dataclass

from tierwise.runtime.context import KVType
from tierwise.runtime.family import Tier
from tierwise.runtime.profile import Profile

LEAST_SAVED = 0.05
"""Of weights and cache together; less memory saved is not worth any loss."""
MOST_LOSS = 0.01
"""Nats per token; or as much as a quarter of the tier's own KL from the base."""
MOST_SLOWER = 1.1
"""Times the seconds of a call with f16."""

Q8_0_SHARE = 8.5 / 16
"""Of the bytes in f16: 32 values of 8 bits share a scale of 16."""


@dataclass(frozen=True, slots=True)
class KVAdvice:
    """Args:
    kv_type: What to keep keys and values as.
    saved_bytes: With q8_0, at the context's full length.
    reason: In one sentence.
    """

    kv_type: KVType
    saved_bytes: int
    reason: str


def advise_kv(
    tier: Tier,
    profile: Profile | None,
    *,
    context_tokens: int,
    prompt_tokens: int = 300,
    reply_tokens: int = 40,
    max_bytes: int | None = None,
) -> KVAdvice:
    """q8_0 where it saves memory that counts, and costs neither quality nor time that does.

    Needs the tier's ``quality.kv_q8_0``; without it the answer is f16. (SmolLM2-135M: 23 kB a
    token in f16, so 8,192 tokens take 189 MB beside 98 MB of weights, and q8_0 saves 31 % of
    both.)

    Args:
        profile: On this machine; None if it was not measured.
        context_tokens: That the cache is to hold, of all sequences together.
        max_bytes: For weights and cache: where f16 does not fit and q8_0 does, speed and the
            share of memory do not matter.
    """
    f16 = tier.kv_bytes_per_token * context_tokens
    saved = round(f16 * (1 - Q8_0_SHARE))
    share = saved / (tier.bytes + f16) if tier.bytes + f16 else 0.0

    def f16_since(reason: str) -> KVAdvice:
        return KVAdvice("f16", saved, reason)

    quality = tier.quality
    if quality.kv_q8_0 is None:
        return f16_since("what q8_0 would cost was not measured, or the heads do not fit it")
    loss = quality.kv_q8_0.kl_mean
    own = quality.divergence.kl_mean if quality.divergence is not None else 0.0
    if loss > max(MOST_LOSS, own / 4):
        return f16_since(f"q8_0 would cost {loss:.3f} nats a token")
    if max_bytes is not None and tier.bytes + f16 > max_bytes >= tier.bytes + f16 - saved:
        return KVAdvice(
            "q8_0", saved, f"only with q8_0 do weights and cache fit {max_bytes / 1e6:,.0f} MB"
        )
    if share < LEAST_SAVED:
        return f16_since(f"q8_0 would save only {share:.0%} of weights and cache")
    speed = profile.kv_q8_0 if profile is not None else None
    if profile is not None and speed is not None:
        prefill = prompt_tokens / profile.prefill_tokens_per_s
        decode = reply_tokens / profile.decode_tokens_per_s
        slower = (prefill / speed.prefill + decode / speed.decode) / (prefill + decode)
        if slower > MOST_SLOWER:
            return f16_since(f"calls would take {slower:.2f} times as long with q8_0")
    return KVAdvice(
        "q8_0", saved, f"it saves {share:.0%} of weights and cache for {loss:.4f} nats a token"
    )

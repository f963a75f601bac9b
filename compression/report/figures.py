"""One row of figures per candidate: the family's tiers first, then what was tried and not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierwise.compression.front import REFERENCE_PROMPT, REFERENCE_REPLY
from tierwise.compression.report.svg import GONE, Mark, mark_of
from tierwise.compression.report.text import (
    interval_text,
    nats_text,
    rate_text,
    seconds_text,
    share_text,
    size_text,
)
from tierwise.compression.report.tried import Tried
from tierwise.runtime.family import Estimate, Family, Tier
from tierwise.runtime.profile import Profile

CALL = f"a call of {REFERENCE_PROMPT} + {REFERENCE_REPLY} tokens"


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate's figures; None is what was not measured.

    Args:
        tier: None for a candidate that was not kept.
        prefill_s: Seconds for the prompt of the reference call.
        decode_s: Seconds for its reply.
        estimated: Whether the seconds were reckoned and not measured.
        reason: Why it was not kept.
    """

    name: str
    mark: Mark
    tier: Tier | None = None
    bytes: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    seconds: float | None = None
    estimated: bool = False
    kl_mean: float | None = None
    top1: float | None = None
    top1_interval: Estimate | None = None
    success: Estimate | None = None
    layers: int | None = None
    quantization: str = ""
    reason: str = ""

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens a second."""
        return REFERENCE_PROMPT / self.prefill_s if self.prefill_s else None

    @property
    def decode_rate(self) -> float | None:
        """Reply tokens a second."""
        return REFERENCE_REPLY / self.decode_s if self.decode_s else None

    @property
    def about(self) -> str:
        """ "~" before figures that were reckoned."""
        return "~" if self.estimated else ""

    def told(self) -> dict[str, str]:
        """The figures as the page writes them."""
        about = self.about
        top1 = interval_text(self.top1_interval, 1) if self.top1_interval else None
        return {
            "size": size_text(self.bytes),
            "prefill": f"{about}{seconds_text(self.prefill_s)}",
            "decode": f"{about}{seconds_text(self.decode_s)}",
            "seconds": f"{about}{seconds_text(self.seconds)}",
            "prefill_rate": f"{about}{rate_text(self.prefill_rate)}",
            "decode_rate": f"{about}{rate_text(self.decode_rate)}",
            "kl": nats_text(self.kl_mean),
            "top1": top1 or share_text(self.top1),
            "success": interval_text(self.success),
        }

    def sentence(self) -> str:
        """All of it in a line or two, for the mouse."""
        told = self.told()
        parts = [f"{self.name}: {told['size']}, {told['seconds']} s a call"]
        parts.append(f"(prefill {told['prefill']}, decode {told['decode']})")
        parts.append(f"KL {told['kl']}, top-1 {told['top1']}")
        if self.success is not None:
            parts.append(f"tool success {told['success']}")
        said = ", ".join(parts).replace("call, (", "call (")
        return f"{said}. Not kept: {self.reason}" if self.tier is None else said


def rows_of(
    family: Family, tried: Sequence[Tried], profiles: Mapping[str, Profile]
) -> tuple[Row, ...]:
    """The family's tiers in their order, then the candidates that went, quickest first.

    Seconds are those that the build compared, where it tells them; else the profile's.
    """
    by_name = {candidate.name: candidate for candidate in tried}
    kept = [
        _tier_row(tier, mark_of(index), by_name.get(tier.name), profiles.get(tier.name))
        for index, tier in enumerate(family.tiers)
    ]
    names = {tier.name for tier in family.tiers}
    gone = [_gone_row(c, family.dropped) for c in tried if not c.kept and c.name not in names]
    gone.sort(key=lambda row: (row.seconds is None, row.seconds, row.name))
    told = names | {row.name for row in gone}
    untold = [
        Row(name=name, mark=GONE, reason=reason)
        for name, reason in family.dropped.items()
        if name not in told
    ]
    return (*kept, *gone, *untold)


def _tier_row(tier: Tier, mark: Mark, tried: Tried | None, profile: Profile | None) -> Row:
    divergence, tools = tier.quality.divergence, tier.quality.tools
    prefill = decode = seconds = None
    estimated = False
    if tried is not None and tried.kept and tried.bytes == tier.bytes and tried.seconds is not None:
        prefill, decode, seconds = tried.prefill_s, tried.decode_s, tried.seconds
    elif profile is not None:
        prefill = profile.seconds(REFERENCE_PROMPT, 0, cold=False)
        decode = profile.seconds(0, REFERENCE_REPLY, cold=False)
        seconds, estimated = prefill + decode, profile.estimated
    return Row(
        name=tier.name,
        mark=mark,
        tier=tier,
        bytes=tier.bytes,
        prefill_s=prefill,
        decode_s=decode,
        seconds=seconds,
        estimated=estimated,
        kl_mean=None if divergence is None else divergence.kl_mean,
        top1=None if divergence is None else divergence.top1_agreement.value,
        top1_interval=None if divergence is None else divergence.top1_agreement,
        success=None if tools is None else tools.overall,
        layers=tier.layers,
        quantization=tier.lineage.quantization,
    )


def _gone_row(candidate: Tried, dropped: Mapping[str, str]) -> Row:
    return Row(
        name=candidate.name,
        mark=GONE,
        bytes=candidate.bytes,
        prefill_s=candidate.prefill_s,
        decode_s=candidate.decode_s,
        seconds=candidate.seconds,
        kl_mean=candidate.kl_mean,
        top1=candidate.top1,
        layers=candidate.layers,
        quantization=candidate.quantization,
        reason=candidate.reason or dropped.get(candidate.name, ""),
    )

"""Which of the candidates that were made become tiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierwise.compression.front import REFERENCE_PROMPT, Measured, far_from_able, split_front
from tierwise.compression.make import Artifact
from tierwise.compression.measure import Measurements, Screened
from tierwise.compression.recipe import BuildConfig
from tierwise.compression.tier_source import TierSource


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided.

    Args:
        made: All candidates.
        kept: Those that become tiers.
        dropped: The others, and why.
        screened: What they were compared by; empty where nothing was to be chosen.
    """

    made: Sequence[Artifact]
    kept: Sequence[Artifact]
    dropped: Mapping[str, str]
    screened: Mapping[str, Screened]


def choose(
    made: Sequence[Artifact],
    sources: Sequence[TierSource],
    measure: Measurements,
    config: BuildConfig,
) -> Choice:
    """Compares all candidates on little text, and distilled ones by what they can do as well.

    Text costs nothing but time, and most candidates go: so all of them are read on
    `BuildConfig.screen_tokens` of the same text, where differences between candidates show far
    earlier than any one figure is certain, and only those that stay are measured in full.
    """
    if config.keep_all:
        return Choice(made, made, {}, {})
    taught = {source.name for source in sources if source.distillation is not None}
    files = {one.candidate.name: one.file for one in made}
    screened = {name: measure.screen(name, file) for name, file in files.items()}
    shown = {source.name: source.demonstration_tokens for source in sources}
    costs = [
        _measured(
            one,
            screened[one.candidate.name],
            demonstration=shown[one.candidate.source],
            distilled=one.candidate.source in taught,
        )
        for one in made
    ]
    unable: dict[str, str] = {}
    while True:
        left = [cost for cost in costs if cost.name not in unable]
        front, dropped = split_front(left, most=config.tiers, min_top1=config.min_top1)
        if not any(cost.distilled for cost in front):
            break
        success = {
            cost.name: measure.success(cost.name, files[cost.name]).result.overall.value
            for cost in front
        }
        found = far_from_able(front, success, min_tools=config.min_tools)
        if not found:
            break
        unable |= found  # their places are free for others
    names = {cost.name for cost in front}
    kept = [one for one in made if one.candidate.name in names]
    return Choice(made, kept, {**dropped, **unable}, screened)


def _measured(
    artifact: Artifact, screened: Screened, *, demonstration: int, distilled: bool
) -> Measured:
    return Measured(
        name=artifact.candidate.name,
        bytes=artifact.record.bytes,
        prefill_s=screened.prefill_s * (1 + demonstration / REFERENCE_PROMPT),
        decode_s=screened.decode_s,
        kl=screened.divergence.kl_mean,
        top1=screened.divergence.top1_agreement.value,
        distilled=distilled,
    )

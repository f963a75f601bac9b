"""Every tier's chance of success on a call, from all that is known of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tierwise.routing.calibration import Calibration
from tierwise.routing.success import SuccessModel
from tierwise.routing.variants import Variants
from tierwise.runtime.chat import Call
from tierwise.runtime.family import Family
from tierwise.runtime.remote_tier import RemoteTier

log = logging.getLogger("tierwise.routing")


class Chances:
    """What calibration says, else what the build measured, else what somebody claims.

    Args:
        family: Whose tiers they are.
        calibration: Of some or all of them.
        variants: Made of them.
    """

    def __init__(
        self, family: Family, calibration: Calibration | None, variants: Variants | None
    ) -> None:
        self._built = SuccessModel(family)
        self._calibration, self._variants = calibration, variants
        names = [tier.name for tier in family.tiers]
        known = () if calibration is None else calibration.tiers
        self._uncalibrated = [name for name in names if name not in known]
        if calibration is not None and self._uncalibrated:
            log.warning(
                "not calibrated: %s, whose chances are guessed from what the build measured; run "
                "tierwise calibrate again",
                ", ".join(self._uncalibrated),
            )

    def __call__(
        self, call: Call, prompt: Sequence[int], difficulty: float, remotes: Sequence[RemoteTier]
    ) -> dict[str, float]:
        """By tier name.

        Args:
            call: What is asked.
            prompt: Its tokens; of several kinds of prompts, the shortest.
            difficulty: Of the call, 0..1.
            remotes: Tiers on other machines. One that was not calibrated has the chance that its
                record claims, else that of the best tier of this machine.
        """
        known = {} if self._calibration is None else self._calibration.success(call, prompt)
        chances = self._with_the_others(known, difficulty)
        names = {remote.name for remote in remotes}
        best = max((chance for name, chance in chances.items() if name not in names), default=1.0)
        for remote in remotes:
            chances.setdefault(remote.name, best if remote.success is None else remote.success)
        return chances

    def usual(self, difficulty: float) -> dict[str, float]:
        """Of calls of which nothing else is known, by name of the tiers that are calibrated, built
        or made of these."""
        known = {} if self._calibration is None else self._calibration.usual_by_tier
        return self._with_the_others(known, difficulty)

    def _with_the_others(self, known: dict[str, float], difficulty: float) -> dict[str, float]:
        """Adds tiers that only the build measured, and variants."""
        chances = dict(known)
        if self._uncalibrated:
            built = self._built(difficulty)
            # The build asked other calls than calibration did: only proportions carry over.
            both = [name for name in known if name in built]
            scale = 1.0
            if any(built[name] for name in both):
                scale = sum(known[name] for name in both) / sum(built[name] for name in both)
            chances |= {name: min(1.0, scale * built[name]) for name in self._uncalibrated}
        if self._variants is not None:
            chances |= self._variants.chances(chances, difficulty)
        return chances

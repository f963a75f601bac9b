"""What a family's outcomes have taught: chances of success, how honest, and whether it pays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.budget import Budget
from tierwise.routing.decision import Forecast
from tierwise.routing.estimators import SuccessPredictor
from tierwise.routing.features import FeatureSpec, call_features
from tierwise.routing.isotonic import Reliability, TierCurves
from tierwise.routing.price_search import Price, price_for_quality, price_for_seconds
from tierwise.routing.representation import Floats
from tierwise.routing.risk import Guarantee, guarantee
from tierwise.routing.signals import Signals
from tierwise.routing.verdict import Verdict
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.remote_tier import RemoteTier

Member = TypeVar("Member", bound=Tier | RemoteTier)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Calls that nothing was learned from, for promises: shapes (n, tiers) and (n,)."""

    predicted: Floats
    outcomes: Floats
    cost: Floats
    groups: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Chances of success of a family's tiers, from outcomes.

    Args:
        tiers: Names, in the order of all columns.
        sha256: Of their files (of remote tiers: of url and model): others are other tiers.
        predictor: What was learned.
        curves: That make its chances honest; None where it had too little to learn from.
        signals: Chances once a reply is there; None where there is too little to learn from.
        spec: Of the features.
        means: Share of all calls that each tier answered rightly, shape (tiers,).
        usual: Its chance on a call of which nothing is known (`usual_chances`), shape (tiers,).
        verified: Share of right replies among those that verification finds no fault with, and
            among those that it does, shape (tiers, 2).
        estimator: Name of what was chosen.
        areas: Of every estimator, by cross-validation (NaN where it is not defined).
        reliability: By tier name.
        verdict: Whether to route.
        floor: Quality that the verdict is for.
        suites: How many calls of each.
        judged: For promises.
    """

    tiers: tuple[str, ...]
    sha256: tuple[str, ...]
    predictor: SuccessPredictor
    curves: TierCurves | None
    signals: Signals | None
    spec: FeatureSpec
    means: Floats
    usual: Floats
    verified: Floats
    estimator: str
    areas: Mapping[str, float]
    reliability: Mapping[str, Reliability]
    verdict: Verdict
    floor: float
    suites: Mapping[str, int]
    judged: Judged
    _promises: dict[tuple[object, ...], Guarantee] = field(default_factory=dict, repr=False)
    _prices: dict[tuple[object, ...], Price] = field(default_factory=dict, repr=False)

    def is_of(self, family: Family) -> bool:
        """Whether the family still has these very tiers (and perhaps others)."""
        known = {tier.name: tier.sha256 for tier in family.tiers}
        known |= {remote.name: remote.sha256 for remote in family.remotes}
        return all(known.get(n) == sha for n, sha in zip(self.tiers, self.sha256, strict=True))

    def success(self, call: Call, prompt: Sequence[int]) -> dict[str, float]:
        """Every tier's chance of success on a call.

        Where routing does not pay, those are the usual ones: then the same tier is best for every
        call, as long as it fits.

        Args:
            call: What is asked.
            prompt: Its tokens; of several kinds of prompts, the shortest.
        """
        if not self.verdict.route:
            return self.usual_by_tier
        row = self.chances(call_features(call, prompt)[None])[0]
        return dict(zip(self.tiers, row.tolist(), strict=True))

    @property
    def usual_by_tier(self) -> dict[str, float]:
        """`usual` by tier name."""
        return dict(zip(self.tiers, self.usual.tolist(), strict=True))

    def after(
        self, tier: str, chance: float, margins: Sequence[float], *, problem: bool = False
    ) -> float | None:
        """A reply's chance of being right; None where nothing is known of that.

        Args:
            tier: That replied.
            chance: Before it did.
            margins: As of `Reply`; remote tiers tell none.
            problem: Whether verification found fault with it.
        """
        if self.signals is None or tier not in self.tiers or not margins:
            return None
        return self.signals(self.tiers.index(tier), chance, margins, problem=problem)

    def instead(self, tier: str, later: float, rival: str, chance: float) -> float:
        """Another tier's chance, once a reply is there that is right with a chance of ``later``.

        Args:
            tier: That replied.
            later: From `after`.
            rival: The other one.
            chance: Its own before that was known.
        """
        if self.signals is None or not {tier, rival} <= set(self.tiers):
            return chance
        own, other = self.tiers.index(tier), self.tiers.index(rival)
        return float(self.signals.instead(own, np.array([later]), other, np.array([chance]))[0])

    def chances(self, x: Floats) -> Floats:
        """Of features of shape (m, columns): shape (m, tiers)."""
        raw = self.predictor.predict(x)
        return raw if self.curves is None else self.curves(raw)

    def ordered(self, tiers: Sequence[Member]) -> tuple[Member, ...]:
        """Tiers from the worst to the best by their outcomes; those that have none keep their
        place among the others."""
        known = self.usual_by_tier
        ranked = iter(sorted((t for t in tiers if t.name in known), key=lambda t: known[t.name]))
        return tuple(next(ranked) if tier.name in known else tier for tier in tiers)

    def promise(
        self, floor: float, confidence: float, enabled: Collection[str] | None = None
    ) -> Guarantee:
        """The threshold that keeps a floor, as a share of the best tier's successes, where calls go
        to the first tier above it in the order of `cheapest_first`.

        Args:
            floor: The share.
            confidence: That the promise is true.
            enabled: Tiers that may be asked; all by default.

        Raises:
            ConfigError: A floor or confidence that cannot be, or none of the tiers is calibrated.
        """
        columns = self._columns(enabled, "nothing can be promised", "leave guarantee out")
        key = (floor, confidence, *columns)
        if key not in self._promises:
            judged = self.judged
            self._promises[key] = guarantee(
                judged.predicted[:, columns],
                judged.outcomes[:, columns],
                self._mean_cost[columns],
                floor=floor,
                confidence=confidence,
                reference=int(np.argmax(self.means[columns])),
                groups=judged.groups.tolist(),
            )
        return self._promises[key]

    @property
    def _mean_cost(self) -> Floats:
        """Of the judged calls, shape (tiers,)."""
        cost = self.judged.cost
        return cost.mean(axis=0) if len(cost) else np.zeros(cost.shape[1])

    def cheapest_first(self, forecasts: Sequence[Forecast]) -> list[Forecast]:
        """In the order of cost that promises were tested in, whatever a tier takes for this call;
        tiers that are not calibrated keep their place."""
        cost = dict(zip(self.tiers, self._mean_cost.tolist(), strict=True))
        known = iter(sorted((f for f in forecasts if f.tier in cost), key=lambda f: cost[f.tier]))
        return [next(known) if f.tier in cost else f for f in forecasts]

    def _columns(self, enabled: Collection[str] | None, so: str, instead: str) -> list[int]:
        """Of these tiers; at least one."""
        columns = [i for i, name in enumerate(self.tiers) if enabled is None or name in enabled]
        if not columns:
            raise ConfigError(
                f"none of the enabled tiers is calibrated, so {so}; run tierwise calibrate, or "
                f"{instead}"
            )
        return columns

    @property
    def given(self) -> Floats:
        """Chances of the judged calls as `success` would have given them, shape (n, tiers)."""
        if self.verdict.route:
            return self.judged.predicted
        return np.tile(self.usual, (len(self.judged.groups), 1))

    def right_share(self, tier: str, *, problem: bool) -> float | None:
        """Share of a tier's replies that are right, of those that verification finds fault with
        or not, on the scale of `success`; None of tiers that are not calibrated."""
        if tier not in self.tiers:
            return None
        at = self.tiers.index(tier)
        share = float(self.verified[at, int(problem)])
        if not self.verdict.route:
            share += float(self.usual[at] - self.means[at])
        return min(1.0, max(0.0, share))

    def price(self, budget: Budget, enabled: Collection[str] | None = None) -> Price:
        """Of a second, for a budget's ``mean_seconds`` or ``mean_quality``.

        Args:
            budget: With one of these.
            enabled: Tiers that may be asked; all by default.

        Raises:
            ConfigError: Calibration has judged no calls, or none of these tiers.
        """
        columns = self._columns(
            enabled, "no price of a second can be found", "give price_per_second"
        )
        key = (budget.mean_seconds, budget.mean_quality, budget.quality, *columns)
        if key in self._prices:
            return self._prices[key]
        judged = self.judged
        data = self.given[:, columns], judged.outcomes[:, columns], judged.cost[:, columns]
        best = int(np.argmax(self.means[columns]))
        if budget.mean_seconds is not None:
            found = price_for_seconds(
                *data, budget.mean_seconds, reference=best, quality=budget.quality
            )
        else:
            found = price_for_quality(*data, budget.mean_quality or 1.0, reference=best)
        return self._prices.setdefault(key, found)

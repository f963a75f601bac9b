"""What outcomes teach about routing: chances of success, how honest they are, whether it pays.

Calls are split by groups into three parts. Estimators learn on the first; which of them is best
is found by cross-validation within it. Their chances are made honest on the second. The third
judges: reliability, the verdict for or against routing, and what can be promised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.budget import Budget
from tierwise.routing.controls import cheapest_that_will_do
from tierwise.routing.estimators import Estimator, SuccessPredictor
from tierwise.routing.estimators_linear import Logistic, RidgeGain
from tierwise.routing.estimators_neighbours import GuardedKNN
from tierwise.routing.estimators_prior import StructuralPrior
from tierwise.routing.features import PLAIN_SPEC, FeatureSpec, call_features
from tierwise.routing.isotonic import Reliability, TierCurves, reliability
from tierwise.routing.labelled import Labelled
from tierwise.routing.metrics import Curve, Sweep
from tierwise.routing.price_search import Price, price_for_quality, price_for_seconds
from tierwise.routing.representation import Floats
from tierwise.routing.risk import Guarantee, guarantee
from tierwise.routing.signals import Signals
from tierwise.routing.splits import Split, folds, split
from tierwise.routing.verdict import Verdict, judge
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.remote_tier import RemoteTier

FOLDS = 4
FEWEST_TO_LEARN = 40
"""Different groups to learn from; with fewer, the structural prior is taken."""

Member = TypeVar("Member", bound=Tier | RemoteTier)

_NO_DATA = "structural_prior"
"""The estimator that learns nothing."""

PRIOR_PROMPTS = 24.0
"""Different ones that a family's build counts for beside its calibration."""

_PRIOR_REPLIES = 4.0
"""That a tier's mean counts for beside what verification found."""


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
    _promises: dict[tuple[float, float], Guarantee] = field(default_factory=dict, repr=False)
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
            return dict(zip(self.tiers, self.usual.tolist(), strict=True))
        row = self.chances(call_features(call, prompt)[None])[0]
        return dict(zip(self.tiers, row.tolist(), strict=True))

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
        known = dict(zip(self.tiers, self.usual.tolist(), strict=True))
        ranked = iter(sorted((t for t in tiers if t.name in known), key=lambda t: known[t.name]))
        return tuple(next(ranked) if tier.name in known else tier for tier in tiers)

    def promise(self, floor: float, confidence: float) -> Guarantee:
        """The threshold that keeps a floor, as a share of the best tier's successes.

        Raises:
            ConfigError: A floor or confidence that cannot be.
        """
        key = (floor, confidence)
        if key not in self._promises:
            best = int(np.argmax(self.means))
            self._promises[key] = guarantee(
                self.judged.predicted,
                self.judged.outcomes,
                self.judged.cost,
                floor=floor,
                confidence=confidence,
                reference=best,
                groups=self.judged.groups.tolist(),
            )
        return self._promises[key]

    def price(self, budget: Budget, enabled: Collection[str] | None = None) -> Price:
        """Of a second, for a budget's ``mean_seconds`` or ``mean_quality``.

        Args:
            budget: With one of these.
            enabled: Tiers that may be asked; all by default.

        Raises:
            ConfigError: Calibration has judged no calls, or none of these tiers.
        """
        columns = [i for i, name in enumerate(self.tiers) if enabled is None or name in enabled]
        key = (budget.mean_seconds, budget.mean_quality, budget.quality, *columns)
        if key in self._prices:
            return self._prices[key]
        if not columns:
            raise ConfigError(
                "none of the enabled tiers is calibrated, so no price of a second can be found; "
                "run tierwise calibrate, or give price_per_second"
            )
        judged = self.judged
        # As `success` has it for calls.
        predicted = (
            judged.predicted if self.verdict.route else np.tile(self.usual, (len(judged.groups), 1))
        )
        data = predicted[:, columns], judged.outcomes[:, columns], judged.cost[:, columns]
        best = int(np.argmax(self.means[columns]))
        if budget.mean_seconds is not None:
            found = price_for_seconds(
                *data, budget.mean_seconds, reference=best, quality=budget.quality
            )
        else:
            found = price_for_quality(*data, budget.mean_quality or 1.0, reference=best)
        return self._prices.setdefault(key, found)


def fit_calibration(
    data: Labelled,
    family: Family,
    tiers: Sequence[Tier | RemoteTier],
    *,
    floor: float = 0.9,
    seed: int = 0,
) -> Calibration:
    """Learns from labelled calls.

    Args:
        data: Of these tiers, in this order.
        family: Theirs.
        tiers: The columns.
        floor: Share of the best tier's quality that is wanted.
        seed: Of all draws.

    Raises:
        ConfigError: The floor is not in 0..1.
    """
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor must be in 0..1, got {floor}")
    names = [tier.name for tier in tiers]
    parts = parts_of(data, seed)
    estimators = _estimators(family, names)
    curves_of = _cross_validated(data, parts.fit, estimators, seed)
    # By height, as the dearest tier may be no better than the cheapest; of equals the first.
    name = max(curves_of, key=lambda one: round(curves_of[one].height(), 9), default=_NO_DATA)
    areas = {one: curve.area() for one, curve in curves_of.items()} or {name: float("nan")}
    predictor = estimators[name].fit(data.x[parts.fit], data.y[parts.fit])
    curves = signals = None
    rows = parts.calibrate
    if name != _NO_DATA and len(rows):
        before = predictor.predict(data.x[rows])
        curves = TierCurves.fit(before, data.y[rows])
        # A curve knows these outcomes already, but has few steps to tell them by.
        known = curves(before), data.sure[rows], data.problems[rows]
        signals = Signals.fit(*known, data.y[rows])
    test = parts.test
    raw = predictor.predict(data.x[test]) if len(test) else np.zeros((0, len(names)))
    predicted = raw if curves is None or not len(test) else curves(raw)
    expected = data.expected(parts.fit)[test]
    choice = cheapest_that_will_do(predicted, expected, floor)
    groups = [data.groups[row] for row in test]
    usual = usual_chances(data, family, tiers)
    fixed = cheapest_that_will_do(usual[None], data.spent.mean(axis=0)[None], floor)
    verdict = judge(
        choice,
        data.y[test],
        data.spent[test],
        names,
        lengths=data.lengths[test],
        groups=groups,
        floor=floor,
        fixed=int(fixed[0]),
        seed=seed,
    )
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return Calibration(
        tiers=tuple(names),
        sha256=tuple(tier.sha256 for tier in tiers),
        predictor=predictor,
        curves=curves,
        signals=signals,
        spec=PLAIN_SPEC,
        means=data.y.mean(axis=0),
        usual=usual,
        verified=_verified(data),
        estimator=name,
        areas=areas,
        reliability={
            tier: reliability(predicted[:, at], data.y[test, at], groups=groups, seed=seed)
            for at, tier in enumerate(names)
            if len(test)
        },
        verdict=verdict,
        floor=floor,
        suites=dict(Counter(data.suites)),
        judged=Judged(
            predicted, data.y[test], expected, np.array([numbers[g] for g in groups], np.intp)
        ),
    )


def usual_chances(
    data: Labelled,
    family: Family,
    tiers: Sequence[Tier | RemoteTier],
    rows: NDArray[np.intp] | None = None,
) -> Floats:
    """A tier's chance on a call of which nothing is known, shape (tiers,): its share of right
    replies, and what the build had measured, which counts for `PRIOR_PROMPTS` prompts.

    Among a few dozen calls the luck of a tier is larger than most differences between tiers.

    Args:
        data: The calls.
        family: What was measured of it; only proportions count.
        tiers: The columns.
        rows: Of the calls that may be known; all by default.
    """
    rows = np.arange(len(data)) if rows is None else rows
    means = data.y[rows].mean(axis=0)
    local = np.array([isinstance(tier, Tier) for tier in tiers])
    before = means.copy()
    if local.any():
        prior = StructuralPrior.of(family, [tier.name for tier in tiers])
        built = prior.predict(data.x[rows]).mean(axis=0)[local]
        built = built * means[local].mean() / max(1e-9, built.mean())
        before[local] = np.minimum(1.0, built)
    n = len({data.groups[row] for row in rows})
    chances: Floats = (n * means + PRIOR_PROMPTS * before) / (n + PRIOR_PROMPTS)
    return chances


def _verified(data: Labelled) -> Floats:
    """See `Calibration.verified`; where there are few of a kind, drawn to the tier's mean."""
    means = data.y.mean(axis=0)
    columns = []
    for found in (~data.problems, data.problems):
        right = (data.y * found).sum(axis=0) + _PRIOR_REPLIES * means
        columns.append(right / (found.sum(axis=0) + _PRIOR_REPLIES))
    return np.stack(columns, axis=1)


def parts_of(data: Labelled, seed: int) -> Split:
    """The calls to learn from, to make chances honest on, and to judge by: the same for a seed."""
    strata = [(suite, *row) for suite, row in zip(data.suites, data.y.tolist(), strict=True)]
    return split(data.groups, strata, seed=seed)


def _estimators(family: Family, names: Sequence[str]) -> dict[str, Estimator]:
    hashed = PLAIN_SPEC.hashed
    return {
        _NO_DATA: StructuralPrior.of(family, names),
        "ridge_gain": RidgeGain(hashed),
        "logistic": Logistic(hashed),
        "guarded_knn": GuardedKNN(hashed),
    }


def _cross_validated(
    data: Labelled, rows: NDArray[np.intp], estimators: Mapping[str, Estimator], seed: int
) -> dict[str, Curve]:
    """The curve of quality over cost of every estimator; none where there is too little to learn
    from."""
    groups = [data.groups[row] for row in rows]
    if len(set(groups)) < FEWEST_TO_LEARN:
        return {}
    strata = [tuple(row) for row in data.y[rows].tolist()]
    inner = folds(groups, FOLDS, strata, seed=seed)
    cost = np.sort(data.spent[rows].mean(axis=0))
    order = np.argsort(np.argsort(data.spent[rows].mean(axis=0), kind="stable"), kind="stable")
    cost = (cost + np.arange(len(cost)) * 1e-9)[order]  # equal costs cannot be swept
    found = {}
    for name, estimator in estimators.items():
        predicted = np.zeros((len(rows), data.y.shape[1]))
        for test in inner:
            rest = np.setdiff1d(np.arange(len(rows)), test)
            fitted = estimator.fit(data.x[rows[rest]], data.y[rows[rest]])
            predicted[test] = fitted.predict(data.x[rows[test]])
        found[name] = Sweep(predicted, data.y[rows], cost).curve()
    return found

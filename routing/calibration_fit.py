"""Learns from outcomes: ``fit_calibration`` makes a `Calibration` of labelled calls.

Calls are split by groups into three parts. Estimators learn on the first; which of them is best
is found by cross-validation within it. Their chances are made honest on the second. The third
judges how honest they are, and what can be promised. Whether routing pays is asked of all calls:
the same is done four times with the parts exchanged, so that each call is decided by what was
learned without it (cross-fitting).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.calibration import Calibration, Judged
from tierwise.routing.controls import cheapest_that_will_do
from tierwise.routing.estimators import Estimator, SuccessPredictor
from tierwise.routing.estimators_linear import Logistic, RidgeGain
from tierwise.routing.estimators_neighbours import GuardedKNN
from tierwise.routing.estimators_prior import StructuralPrior
from tierwise.routing.features import PLAIN_SPEC
from tierwise.routing.isotonic import TierCurves, reliability
from tierwise.routing.labelled import Labelled
from tierwise.routing.metrics import Curve, Sweep
from tierwise.routing.representation import Floats
from tierwise.routing.signals import Signals
from tierwise.routing.splits import Rows, Split, folds, split
from tierwise.routing.verdict import Verdict, judge
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.remote_tier import RemoteTier

FOLDS = 4
FEWEST_TO_LEARN = 40
"""Different groups to learn from; with fewer, the structural prior is taken."""

PRIOR_PROMPTS = 24.0
"""Different ones that a family's build counts for beside its calibration."""

_NO_DATA = "structural_prior"
"""The estimator that learns nothing."""

_PRIOR_REPLIES = 4.0
"""That a tier's mean counts for beside what verification found."""


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
    learned = _learn(data, parts.fit, parts.calibrate, estimators, seed)
    test = parts.test
    predicted = learned.chances(data.x[test])
    groups = [data.groups[row] for row in test]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    usual = usual_chances(data, family, tiers)
    return Calibration(
        tiers=tuple(names),
        sha256=tuple(tier.sha256 for tier in tiers),
        predictor=learned.predictor,
        curves=learned.curves,
        signals=learned.signals,
        spec=PLAIN_SPEC,
        means=data.y.mean(axis=0),
        usual=usual,
        verified=_verified(data),
        estimator=learned.estimator,
        areas=learned.areas,
        reliability={
            tier: reliability(predicted[:, at], data.y[test, at], groups=groups, seed=seed)
            for at, tier in enumerate(names)
            if len(test)
        },
        verdict=_verdict(data, names, usual, estimators, floor, seed),
        floor=floor,
        suites=dict(Counter(data.suites)),
        judged=Judged(
            predicted,
            data.y[test],
            data.expected(parts.fit)[test],
            np.array([numbers[group] for group in groups], np.intp),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Learned:
    """What one part of the calls has taught, made honest on another; see `Calibration`."""

    estimator: str
    areas: Mapping[str, float]
    predictor: SuccessPredictor
    curves: TierCurves | None
    signals: Signals | None

    def chances(self, x: Floats) -> Floats:
        """As of `Calibration.chances`; ``x`` may have no rows."""
        if not len(x):
            return np.zeros((0, self.predictor.tiers))
        raw = self.predictor.predict(x)
        return raw if self.curves is None else self.curves(raw)


def _learn(
    data: Labelled,
    fit: Rows,
    calibrate: Rows,
    estimators: Mapping[str, Estimator],
    seed: int,
) -> _Learned:
    curves_of = _cross_validated(data, fit, estimators, seed)
    # By height, as the dearest tier may be no better than the cheapest; of equals the first.
    name = max(curves_of, key=lambda one: round(curves_of[one].height(), 9), default=_NO_DATA)
    areas = {one: curve.area() for one, curve in curves_of.items()} or {name: float("nan")}
    predictor = estimators[name].fit(data.x[fit], data.y[fit])
    curves = signals = None
    if name != _NO_DATA and len(calibrate):
        before = predictor.predict(data.x[calibrate])
        curves = TierCurves.fit(before, data.y[calibrate])
        # A curve knows these outcomes already, but has few steps to tell them by.
        known = curves(before), data.sure[calibrate], data.problems[calibrate]
        signals = Signals.fit(*known, data.y[calibrate])
    return _Learned(name, areas, predictor, curves, signals)


def _verdict(
    data: Labelled,
    names: Sequence[str],
    usual: Floats,
    estimators: Mapping[str, Estimator],
    floor: float,
    seed: int,
) -> Verdict:
    """On all calls, each decided by what was learned without it."""
    predicted = np.tile(usual, (len(data), 1))
    expected = data.expected(np.arange(len(data)))
    if len(set(data.groups)) >= FOLDS:
        quarters = folds(data.groups, FOLDS, _strata(data), seed=seed)
        for at, test in enumerate(quarters):
            calibrate = quarters[(at + 1) % FOLDS]
            fit = np.setdiff1d(np.arange(len(data)), np.concatenate((test, calibrate)))
            learned = _learn(data, fit, calibrate, estimators, seed)
            predicted[test] = learned.chances(data.x[test])
            expected[test] = data.expected(fit)[test]
    fixed = cheapest_that_will_do(usual[None], data.spent.mean(axis=0)[None], floor)
    return judge(
        cheapest_that_will_do(predicted, expected, floor),
        data.y,
        data.spent,
        names,
        lengths=data.lengths,
        groups=data.groups,
        floor=floor,
        fixed=int(fixed[0]),
        seed=seed,
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
    """The calls to learn from, to make chances honest on, and to judge those by: the same for a
    seed."""
    return split(data.groups, _strata(data), seed=seed)


def _strata(data: Labelled) -> list[tuple[object, ...]]:
    """Calls of one suite at which the same tiers were right."""
    return [(suite, *row) for suite, row in zip(data.suites, data.y.tolist(), strict=True)]


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

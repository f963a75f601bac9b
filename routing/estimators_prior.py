"""Success without any outcomes: what the family's measurements and a call's structure say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from tierwise.routing.difficulty import GRADE_AT
from tierwise.routing.estimators import Arrays
from tierwise.routing.features import COUNTS
from tierwise.routing.representation import Floats
from tierwise.routing.success import SuccessModel
from tierwise.runtime.errors import ConfigError
from tierwise.runtime.family import Family, Tier
from tierwise.runtime.remote_tier import RemoteTier

_COLUMN = COUNTS.index("difficulty")


@dataclass(frozen=True, slots=True)
class StructuralPrior:
    """`SuccessModel` at the features' structural difficulty, as estimator and predictor in one.

    Attributes:
        at: Difficulties, rising, shape (points,).
        chances: Of success there, shape (points, tiers).
    """

    kind: ClassVar[str] = "structural_prior"
    at: Floats
    chances: Floats

    @classmethod
    def of(cls, family: Family, tiers: Sequence[str]) -> Self:
        """Of some of a family's tiers, in the order of the outcomes' columns.

        Raises:
            ConfigError: The family has no tier of one of these names, or there are none.
        """
        if not tiers:
            raise ConfigError("a prior needs at least one tier")
        members = [family.member(name) for name in tiers]
        model, points = SuccessModel(family), list(GRADE_AT.values())
        chances = []
        for point in points:
            known = model(point)
            best = max(known.values())
            chances.append([_chance(member, known, best) for member in members])
        return cls(np.array(points), np.array(chances))

    @property
    def tiers(self) -> int:
        return int(self.chances.shape[1])

    def fit(self, x: Floats, y: Floats, weights: Floats | None = None) -> Self:
        """Itself: there is nothing to learn.

        Raises:
            ConfigError: The outcomes are of another number of tiers.
        """
        if y.ndim != 2 or y.shape[1] != self.tiers:
            raise ConfigError(f"the prior is of {self.tiers} tiers, the outcomes are {y.shape}")
        return self

    def predict(self, x: Floats) -> Floats:
        if x.ndim != 2 or x.shape[1] <= _COLUMN:
            raise ConfigError(f"features must have the shape (rows, columns), got {x.shape}")
        columns = [np.interp(x[:, _COLUMN], self.at, column) for column in self.chances.T]
        return np.stack(columns, axis=1)

    def arrays(self) -> Arrays:
        return {"at": self.at, "chances": self.chances}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        at, chances = arrays["at"], arrays["chances"]
        if at.ndim != 1 or chances.ndim != 2 or len(at) != len(chances) or not chances.size:
            raise ValueError(f"shapes of the prior do not match: {at.shape} and {chances.shape}")
        return cls(at, chances)


def _chance(tier: Tier | RemoteTier, known: Mapping[str, float], best: float) -> float:
    """Of a remote tier, what its owner says, or as the best of this machine."""
    if isinstance(tier, Tier):
        return known[tier.name]
    return best if tier.success is None else tier.success

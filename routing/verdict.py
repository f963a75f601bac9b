"""Is routing worth it? Its decisions on calls that it was not taught, against all that is simpler.

A router must beat, on the same calls and with paired intervals:

* **random**: as many calls to each tier, drawn at random,
* **shuffle**: its own decisions, exchanged among calls that cost about the same,
* **length**: as many calls to each tier, the longest requests to the dearest,
* **mix**: the best mixture of fixed tiers that costs the same. It stands for every fixed tier: one
  that is better for the same cost, or as good for less, is such a mixture.

Otherwise the verdict is not to route, and which fixed tier to use.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tierwise.routing.bootstrap import DRAWS, Interval, group_numbers, mean_interval, resamples
from tierwise.routing.controls import (
    by_length,
    cheapest_that_will_do,
    fixed_mix,
    oracle,
    shuffled,
    worth_of_cost,
)
from tierwise.routing.representation import Floats
from tierwise.runtime.errors import ConfigError

FEWEST = 50
"""Different prompts: with fewer, intervals are too wide to tell anything."""

CONTROLS = ("random", "shuffle", "length", "mix")

_LIKE = {
    "random": "sending as many calls to each tier at random",
    "shuffle": "exchanging its own decisions among calls of the same cost",
    "length": "sending the longest requests to the dearest tier",
    "mix": "the mixture of fixed tiers that costs the same",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One way of choosing tiers.

    Attributes:
        name: "routed", one of `CONTROLS`, "always" and a tier's name, or "oracle".
        quality: Share of calls answered rightly.
        cost: Mean per call, in the unit that was given.
        lead: By how much routing's quality is higher, paired; of the mix, at the same cost.
    """

    name: str
    quality: Interval
    cost: Interval
    lead: Interval


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to route, and why.

    Attributes:
        route: Whether routing beats every control.
        reason: In one English sentence.
        best_fixed: The cheapest tier that reaches the floor by itself.
        n: Calls that it rests on.
        prompts: Different prompts among them.
        table: Every contender; empty where there was too little to compare.
    """

    route: bool
    reason: str
    best_fixed: str
    n: int
    prompts: int
    table: tuple[Contender, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """For people."""
        head = f"{'':<20}{'quality':>24}{'cost':>26}{'lead of routing':>26}"
        rows = [f"{c.name:<20}{c.quality!s:>24}{c.cost!s:>26}{c.lead!s:>26}" for c in self.table]
        said = "route" if self.route else f"do not route, always use {self.best_fixed}"
        return "\n".join([f"{said}: {self.reason}", *([head, *rows] if rows else [])])


def judge(
    choice: NDArray[np.integer[Any]],
    outcomes: Floats,
    cost: Floats,
    tiers: Sequence[str],
    *,
    lengths: Floats,
    groups: Sequence[Hashable] | None = None,
    floor: float = 0.9,
    fixed: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Verdict:
    """The verdict on decisions for n calls that nothing was learned or chosen from.

    Calls that some tier was not asked are left out.

    Args:
        choice: Number of the tier that routing chose, shape (n,).
        outcomes: Shape (n, tiers), NaN where unknown.
        cost: Shape (tiers,) or (n, tiers), in any unit.
        tiers: Their names.
        lengths: Of the requests, shape (n,).
        groups: Of the prompts; copies of one say no more than one. All different by default.
        floor: Quality that is wanted, as a share of the best fixed tier's.
        fixed: Number of the tier to use where routing is not worth it; by default the cheapest
            that reaches the floor on these calls.
        draws: Of the bootstrap.
        seed: Of its draws.

    Raises:
        ConfigError: Shapes that do not match, or a choice that is no tier.
    """
    n = len(outcomes)
    if (
        outcomes.ndim != 2
        or outcomes.shape[1] != len(tiers)
        or choice.shape != (n,)
        or np.shape(lengths) != (n,)
        or (groups is not None and len(groups) != n)
        or (n and not 0 <= choice.min() <= choice.max() < len(tiers))
    ):
        raise ConfigError(
            f"a verdict needs outcomes (n, tiers) and for each call a choice among the tiers and a "
            f"length; got {outcomes.shape}, {choice.shape} and {np.shape(lengths)} for "
            f"{len(tiers)} tiers"
        )
    known = np.flatnonzero(~np.isnan(outcomes).any(axis=1))
    y = outcomes[known].astype(np.float64)
    spent = np.broadcast_to(np.asarray(cost, np.float64), outcomes.shape)[known]
    names = list(range(n)) if groups is None else list(groups)
    numbers = group_numbers([names[i] for i in known])
    prompts = len(set(numbers.tolist()))
    if fixed is None and len(y):
        fixed = int(cheapest_that_will_do(y.mean(axis=0)[None], spent.mean(axis=0)[None], floor)[0])
    elif fixed is None:
        fixed = len(tiers) - 1
    best_fixed = tiers[fixed]
    reason = _hopeless(choice[known], y, prompts, tiers)
    if reason:
        return Verdict(False, reason, best_fixed, len(y), prompts, ())
    counts = resamples(len(y), groups=numbers.tolist(), draws=draws, seed=seed)
    table = _table(choice[known], y, spent, lengths[known], tiers, counts, seed)
    reason = _beaten(table, y, floor)
    route = not reason
    return Verdict(
        route, reason or _worth_it(table), best_fixed, len(y), prompts, tuple(table.values())
    )


def _hopeless(
    choice: NDArray[np.integer[Any]], y: Floats, prompts: int, tiers: Sequence[str]
) -> str:
    """Why there is nothing to compare; "" if there is."""
    if prompts < FEWEST:
        copies = f" ({prompts} of them different)" if prompts < len(y) else ""
        return (
            f"only {len(y)} calls{copies} have an outcome from every tier, and at least {FEWEST} "
            "different ones are needed to tell anything"
        )
    if len(tiers) < 2:
        return f"{tiers[0]} is the only tier"
    if (y == y[:, :1]).all():
        if y.min() == y.max():
            return f"every tier {'succeeded' if y.min() else 'failed'} on all {len(y)} calls"
        return "all tiers succeeded and failed on the same calls"
    if (choice == choice[0]).all():
        return f"routing sends every call to {tiers[int(choice[0])]}"
    return ""


def _table(
    choice: NDArray[np.integer[Any]],
    y: Floats,
    spent: Floats,
    lengths: Floats,
    tiers: Sequence[str],
    counts: Floats,
    seed: int,
) -> dict[str, Contender]:
    """Every contender. Each is a distribution over the tiers for each call, so that what is drawn
    at random is compared in expectation."""
    routed = np.eye(len(tiers))[choice]
    shares = {
        "routed": routed,
        "random": shuffled(routed),
        "shuffle": shuffled(routed, spent),
        "length": by_length(routed, spent, lengths, seed),
        "mix": fixed_mix(routed, y, spent),
        **{f"always {name}": np.eye(len(tiers))[[i] * len(y)] for i, name in enumerate(tiers)},
        "oracle": np.eye(len(tiers))[oracle(y, spent)],
    }
    quality = {name: (share * y).sum(axis=1) for name, share in shares.items()}
    cost = {name: (share * spent).sum(axis=1) for name, share in shares.items()}
    lead = {name: quality["routed"] - quality[name] for name in shares}
    # A resample may hold more of the calls that routing sends to a good tier. What that is worth
    # by the tiers' means, or along the mixture by the cost, is no merit of routing: it is taken
    # off. Over all calls it is 0.
    for name in ("random", "shuffle", "length"):
        lead[name] = lead[name] - (routed - shares[name]) @ y.mean(axis=0)
    lead["mix"] = lead["mix"] - worth_of_cost(shares["mix"], y, spent) * (
        cost["routed"] - cost["mix"]
    )
    return {
        name: Contender(name, *(mean_interval(v[name], counts) for v in (quality, cost, lead)))
        for name in shares
    }


def _beaten(table: dict[str, Contender], y: Floats, floor: float) -> str:
    """Which control routing does not beat; "" if it beats all."""
    for name in CONTROLS:
        lead = table[name].lead
        if not lead.low > 0:
            return (
                f"routing is not shown to be better than {_LIKE[name]} (its lead in quality is "
                f"{lead})"
            )
    reached, wanted = table["routed"].quality.value, floor * float(y.mean(axis=0).max())
    if reached < wanted - 1e-9:
        return f"routing reaches a quality of {reached:.3f}, below the {wanted:.3f} that is wanted"
    return ""


def _worth_it(table: dict[str, Contender]) -> str:
    routed = table["routed"]
    weakest = min(CONTROLS, key=lambda name: table[name].lead.low)
    return (
        f"routing answers {routed.quality.value:.1%} rightly at a cost of {routed.cost.value:.3g} "
        f"per call and beats every control, {_LIKE[weakest]} by {table[weakest].lead}"
    )

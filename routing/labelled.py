"""Outcomes as arrays: what was asked, which tiers were right, and what that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tierwise.evaluation.outcomes import OutcomeStore, TierOutcome
from tierwise.routing.cost import CostModel, ExpectedReply, kind_of
from tierwise.routing.features import call_features
from tierwise.routing.representation import Floats
from tierwise.routing.signals import sureness
from tierwise.routing.verify import verify
from tierwise.runtime.chat import Call
from tierwise.runtime.errors import CalibrationError
from tierwise.runtime.family import Tier
from tierwise.runtime.message_json import call_from_json, reply_from_json
from tierwise.runtime.profile import Profile
from tierwise.runtime.remote_tier import RemoteTier


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Calls that every tier has answered, a row each.

    Args:
        calls: What was asked.
        suites: Where it is from.
        groups: Rows of one group are alike, and must not be parted.
        x: Features, shape (n, columns).
        y: 1 for a right reply and 0 for a wrong one, shape (n, tiers).
        problems: Whether verification finds fault with the reply, shape (n, tiers), bool.
        sure: `sureness` of the reply, shape (n, tiers, 2).
        spent: Seconds that the reply took, shape (n, tiers): of this machine by its tokens, of a
            remote tier as they were.
        lengths: Characters of the request, shape (n,).
    """

    calls: tuple[Call, ...]
    suites: tuple[str, ...]
    groups: tuple[str, ...]
    x: Floats
    y: Floats
    problems: NDArray[np.bool_]
    sure: Floats
    spent: Floats
    lengths: Floats

    def __len__(self) -> int:
        return len(self.calls)

    def expected(self, rows: NDArray[np.intp]) -> Floats:
        """A forecast of ``spent``, shape (n, tiers): its mean over calls of the same kind.

        Args:
            rows: That the means are taken of.
        """
        out = np.tile(self.spent[rows].mean(axis=0), (len(self), 1))
        kinds = np.array([kind_of(call) for call in self.calls])
        for kind in set(kinds[rows].tolist()):
            out[kinds == kind] = self.spent[rows][kinds[rows] == kind].mean(axis=0)
        return out


def labelled(
    store: OutcomeStore, tiers: Sequence[Tier | RemoteTier], profiles: Mapping[str, Profile]
) -> Labelled:
    """The calls that all of these tiers have answered.

    Args:
        store: Of the outcomes.
        tiers: In the order of the columns.
        profiles: By the names of tiers with files; of this machine, or estimated.

    Raises:
        CalibrationError: There are none.
    """
    by_task: dict[tuple[str, str], dict[str, TierOutcome]] = {}
    for outcome in store.outcomes([tier.sha256 for tier in tiers]):
        by_task.setdefault((outcome.suite, outcome.task), {})[outcome.tier] = outcome
    files = {tier.sha256 for tier in tiers}
    known = [
        task for task in store.tasks() if files == set(by_task.get((task.suite, task.task), ()))
    ]
    if not known:
        raise CalibrationError(
            f"{str(store.path)!r} holds no call that all of {', '.join(t.name for t in tiers)} "
            "have answered. Run tierwise calibrate (again, if it was stopped early)."
        )
    costs = CostModel(profiles)
    # Calls are routed by this machine's own prompts; a server counts by another template.
    here = [at for at, tier in enumerate(tiers) if isinstance(tier, Tier)] or range(len(tiers))
    calls, x, y, problems, sure, spent = [], [], [], [], [], []
    for task in known:
        call = call_from_json(task.call)
        outcomes = [by_task[task.suite, task.task][tier.sha256] for tier in tiers]
        shortest = min(outcomes[at].prompt_tokens for at in here)
        calls.append(call)
        x.append(call_features(call, range(shortest)))
        y.append([float(outcome.passed) for outcome in outcomes])
        replies = [reply_from_json(outcome.reply) for outcome in outcomes]
        problems.append([bool(verify(call, reply)) for reply in replies])
        sure.append([sureness(outcome.margins) for outcome in outcomes])
        spent.append([_seconds(costs, t, o) for t, o in zip(tiers, outcomes, strict=True)])
    return Labelled(
        calls=tuple(calls),
        suites=tuple(task.suite for task in known),
        groups=tuple(f"{task.suite}\0{task.group}" for task in known),
        x=np.array(x, np.float32),
        y=np.array(y),
        problems=np.array(problems),
        sure=np.array(sure),
        spent=np.array(spent),
        lengths=np.array([len(call.request) for call in calls], float),
    )


def _seconds(costs: CostModel, tier: Tier | RemoteTier, outcome: TierOutcome) -> float:
    if isinstance(tier, RemoteTier):
        return outcome.seconds or 0.0  # each of its calls is timed
    chosen = outcome.completion_tokens - outcome.forced_tokens
    reply = ExpectedReply(chosen, outcome.forced_tokens)
    new = outcome.prompt_tokens - outcome.cached_tokens
    return costs.cost(tier.name, new, reply, cold=False).seconds

"""Runs every tier of a family over suites, and keeps what came of it.

Suites are run in blocks, and in each block every tier has its turn: whenever the run is stopped,
all tiers have answered the same tasks, from all suites alike. What is known is not run again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

from tierwise.evaluation.outcomes import KnownTask, OutcomeStore, TierOutcome
from tierwise.evaluation.own_prompts import OwnTask
from tierwise.evaluation.remote_calls import RemoteAsker
from tierwise.evaluation.success import AT_ONCE, REPLY_ROOM, Outcome, run_suite
from tierwise.evaluation.suites import Suite
from tierwise.evaluation.tasks import Checkable
from tierwise.runtime.chat import Reply
from tierwise.runtime.energy import EnergyMeter
from tierwise.runtime.errors import RemoteError
from tierwise.runtime.family import Family, Tier, nearest_first
from tierwise.runtime.message_json import call_to_json, reply_from_json, reply_to_json
from tierwise.runtime.pool import Pool
from tierwise.runtime.remote_tier import RemoteTier

BLOCK = 16
FIRST = 4
"""Tasks of the first block where time is limited: then it is known how many may follow."""
TIMED = 2
"""Tasks of a block that run alone, so that their seconds are those of a call."""

Item = tuple[Checkable, str]
Progress = Callable[[str, float], None]


def collect_outcomes(
    family: Family,
    suites: Sequence[Suite],
    store: OutcomeStore,
    *,
    pool: Pool,
    remotes: Sequence[RemoteTier] = (),
    minutes: float | None = None,
    progress: Progress | None = None,
    left_out: Callable[[RemoteTier, str], None] | None = None,
) -> int:
    """Runs what is not known yet; returns how many tasks are left for want of time.

    Args:
        family: Its tiers that have files are run.
        suites: What to run; blocks of all of them alternate.
        store: Where outcomes go, turn by turn: a run that is stopped keeps all, one that is killed
            loses a tier's turn at a block.
        pool: Loads the tiers.
        remotes: Tiers on other machines that are asked as well. One that is out of reach is left
            out from then on; what it has answered is kept.
        minutes: When to stop; None for never.
        progress: Called with every reply.
        left_out: Called with a remote tier that is left out, and why, in English.

    Raises:
        DiskFullError: There is no room for the outcomes; what was written stays.
        ModelError: A tier cannot be loaded.
        MissingExtraError: Remote tiers are to be asked, and langchain-openai is not installed.
    """
    ends = None if minutes is None else time.monotonic() + minutes * 60
    tiers = [tier for tier in nearest_first(family.tiers) if tier.file]  # the reference first
    hashes = [*(tier.sha256 for tier in tiers), *(remote.sha256 for remote in remotes)]
    known = {(suite.name, one): store.known(suite.name, one) for suite in suites for one in hashes}
    askers = [
        RemoteAsker(one, works=any(known[s.name, one.sha256] for s in suites), ends=ends)
        for one in remotes
    ]
    blocks = deque(_alternating(suites))
    bar = _Bar(progress, sum(len(items) for _, items in blocks))
    left = 0
    pace: float | None = None  # seconds that all tiers together take for a task
    while blocks:
        suite, items = blocks.popleft()
        room = len(items)
        if ends is not None:
            left_s = ends - time.monotonic()
            room = (FIRST if pace is None else int(left_s / pace)) if left_s > 0 else 0
            if 0 < room < len(items):
                blocks.appendleft((suite, items[room:]))
                items = items[:room]
        everybody: list[Tier | RemoteAsker] = [*tiers, *askers]
        wanted = [
            (one, missing)
            for one in everybody
            if (missing := [i for i in items if i[0].id not in known[suite.name, _hash(one)]])
        ]
        if room < 1:
            left += len({task.id for _, missing in wanted for task, _ in missing})
            continue
        began = time.monotonic()
        for turn, (one, missing) in enumerate(wanted):
            bar.begin(suite.name, len(items), turn / len(wanted), 1 / len(wanted))
            if isinstance(one, Tier):
                _turn(suite, missing, one, store, pool, reference=tiers[0], bar=bar)
                continue
            try:
                _remote_turn(suite, missing, one, store, reference=tiers[0])
            except RemoteError as error:
                askers.remove(one)
                if left_out is not None:
                    left_out(one.tier, str(error))
            bar.tell(1.0, one.tier.name)
        if wanted:
            pace = (time.monotonic() - began) / len(items)
        bar.done += len(items)
    return left


def _hash(one: Tier | RemoteAsker) -> str:
    return one.sha256 if isinstance(one, Tier) else one.tier.sha256


@dataclass
class _Bar:
    """How far it all is."""

    progress: Progress | None
    total: int
    done: int = 0
    suite: str = ""
    _place: tuple[float, float] = (0.0, 0.0)

    def begin(self, suite: str, items: int, start: float, share: float) -> None:
        """A turn at a block, of which it is this share from there on."""
        self.suite, self._place = suite, (items * start, items * share)

    def tell(self, share: float, name: str) -> None:
        """So much of the turn is over."""
        if self.progress is not None:
            whole = self.done + self._place[0] + self._place[1] * share
            self.progress(f"{self.suite}: {name}", whole / max(1, self.total))


def left_to_ask(suites: Sequence[Suite], store: OutcomeStore, tier: Tier | RemoteTier) -> int:
    """How many tasks of the suites the tier has not answered yet."""
    return sum(
        task.id not in known
        for suite in suites
        for known in [store.known(suite.name, tier.sha256)]
        for task in suite.tasks
    )


def has_kept_up(
    suites: Sequence[Suite], store: OutcomeStore, tier: RemoteTier, others: Sequence[Tier]
) -> bool:
    """Whether the tier has answered all tasks of the suites that all others have."""
    for suite in suites:
        common = {task.id for task in suite.tasks}
        for other in others:
            common &= store.known(suite.name, other.sha256)
        if not common <= store.known(suite.name, tier.sha256):
            return False
    return True


def judge_by(
    references: Sequence[Tier | RemoteTier], suites: Sequence[Suite], store: OutcomeStore
) -> None:
    """Judges replies to prompts without a given answer, whoever they were compared with before.

    Args:
        references: The first of them that said something to a prompt is right; where none did,
            nobody is.
    """
    for suite in suites:
        tasks = {t.id: t for t in suite.tasks if isinstance(t, OwnTask) and t.expected is None}
        rows: dict[str, list[TierOutcome]] = {}
        for outcome in store.outcomes(suite=suite.name) if tasks else ():
            if outcome.task in tasks:
                rows.setdefault(outcome.task, []).append(outcome)
        changed: list[TierOutcome] = []
        for name, outcomes in rows.items():
            replies = {one.tier: reply_from_json(one.reply) for one in outcomes}
            best = next((r.sha256 for r in references if _says(replies.get(r.sha256))), None)
            task = tasks[name] if best is None else tasks[name].against(replies[best])
            for one in outcomes:
                passed = one.tier == best or task.check(replies[one.tier])
                if passed != one.passed:
                    changed.append(replace(one, passed=passed))
        store.add([], changed)


def _says(reply: Reply | None) -> bool:
    return reply is not None and bool(reply.text.strip() or reply.tool_calls)


def _alternating(suites: Sequence[Suite]) -> Iterator[tuple[Suite, list[Item]]]:
    """Blocks of all suites in turn."""
    waiting = [(suite, iter(list(zip(suite.tasks, suite.groups, strict=True)))) for suite in suites]
    while waiting:
        for suite, items in list(waiting):
            block = list(islice(items, BLOCK))
            if block:
                yield suite, block
            if len(block) < BLOCK:
                waiting.remove((suite, items))


def _referenced(task: Checkable, suite: Suite, store: OutcomeStore, best: Tier) -> Checkable:
    """With the best tier's reply as the right one, where none was given."""
    if not isinstance(task, OwnTask) or task.expected is not None:
        return task
    found = store.reply(suite.name, task.id, best.sha256)
    return task if found is None else task.against(reply_from_json(found))


def _turn(
    suite: Suite,
    items: Sequence[Item],
    tier: Tier,
    store: OutcomeStore,
    pool: Pool,
    *,
    reference: Tier,
    bar: _Bar,
) -> None:
    """One tier answers a block, a few tasks alone and the others together. What it has answered
    when it is stopped is kept."""
    tasks = [_referenced(task, suite, store, reference) for task, _ in items]
    prompts = [pool.prompt(task.call, taught_tools=tier.taught_tools) for task in tasks]
    longest = max(map(len, prompts))
    room = min(tier.context_tokens, longest + REPLY_ROOM)
    rows: list[TierOutcome] = []

    def keep(outcome: Outcome[Checkable], seconds: float | None, joules: float | None) -> None:
        rows.append(_row(suite, tier, tasks[len(rows)], outcome, seconds, joules))
        bar.tell(len(rows) / len(tasks), tier.name)

    try:
        with pool.acquire(tier, context_tokens=room) as lease, ExitStack() as more:
            meter = EnergyMeter(threads=1)  # an estimate is not kept, so its threads do not matter
            for task in tasks[:TIMED]:
                meter.lap()
                began = time.perf_counter()
                (outcome,) = run_suite(lease.tier, [_limited(task)], at_once=1)
                seconds, energy = time.perf_counter() - began, meter.lap()
                keep(outcome, seconds, None if energy.source == "estimated" else energy.joules)
            rest = list(map(_limited, tasks[TIMED:]))
            for _ in rest[1:AT_ONCE]:  # a lease for each makes room for each
                more.enter_context(pool.acquire(tier, context_tokens=room))
            run_suite(lease.tier, rest, each=lambda outcome: keep(outcome, None, None))
    finally:
        store.add(_known(suite, items), rows)


def _remote_turn(
    suite: Suite,
    items: Sequence[Item],
    asker: RemoteAsker,
    store: OutcomeStore,
    *,
    reference: Tier,
) -> None:
    """A tier on another machine answers a block. What it answered before it failed is kept."""
    tasks = [_referenced(task, suite, store, reference) for task, _ in items]
    rows: list[TierOutcome] = []
    try:
        for at, answer in asker.ask([_limited(task).call for task in tasks]):
            task = tasks[at]
            passed = answer.fault is None and task.check(answer.reply)
            outcome = Outcome(task, answer.reply, passed)
            rows.append(_row(suite, asker.tier, task, outcome, answer.seconds, None))
    finally:
        store.add(_known(suite, items), rows)


def _known(suite: Suite, items: Sequence[Item]) -> list[KnownTask]:
    return [KnownTask(suite.name, t.id, group, call_to_json(t.call)) for t, group in items]


class _Limited:
    """A task whose reply has an end."""

    def __init__(self, task: Checkable) -> None:
        self.id, self.check = task.id, task.check
        limit = task.call.max_tokens or REPLY_ROOM
        self.call = replace(task.call, max_tokens=limit)


def _limited(task: Checkable) -> Checkable:
    return task if task.call.max_tokens is not None else _Limited(task)


def _row(
    suite: Suite,
    tier: Tier | RemoteTier,
    task: Checkable,
    outcome: Outcome[Checkable],
    seconds: float | None,
    joules: float | None,
) -> TierOutcome:
    usage = outcome.reply.usage
    # Without a right answer it is the reference itself.
    first = isinstance(task, OwnTask) and task.expected is None and _says(outcome.reply)
    return TierOutcome(
        suite=suite.name,
        task=task.id,
        tier=tier.sha256,
        passed=outcome.passed or first,
        seconds=seconds,
        joules=joules,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        forced_tokens=usage.forced_tokens,
        margins=outcome.reply.margins,
        reply=reply_to_json(outcome.reply),
    )
